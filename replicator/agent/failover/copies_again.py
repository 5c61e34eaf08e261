"""Copies that this host was the owner of, and is not any more: they follow their source again, or end."""

import shutil
from functools import partial

import trio

from replicator import limits
from replicator.agent.core import Core
from replicator.errors import ReplicatorError
from replicator.failovers import Promotion
from replicator.net.frames import Connect
from replicator.receiver.prepared import is_prepared, prepare
from replicator.receiver.replica_state import StateFile
from replicator.world import World


class CopiesAgain:
    """`handing_over.Copies`. All of it may be called again after a crash."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def connect_of(self, connection: str) -> Connect | None:
        """See `handing_over.Copies`."""
        directory = self._core.home.target(connection)
        state = await trio.to_thread.run_sync(lambda: StateFile(World(), directory).load())
        return state.connect if state is not None else None

    async def follow(self, connection: str, record: Promotion, connect: Connect | None) -> None:
        """See `handing_over.Copies`."""
        directory = self._core.home.target(connection)
        if not await trio.to_thread.run_sync(is_prepared, World(), directory, record.epoch):
            await self.discard(connection)
            make = partial(
                prepare,
                World(),
                directory,
                connection,
                source_uuid=record.owner,
                source_name=record.owner_name,
                epoch=record.epoch,
                tails={},
                connect=connect,
            )
            try:
                await trio.to_thread.run_sync(make)
            except OSError as error:
                raise ReplicatorError(
                    f"the copy of {record.owner_name} cannot be prepared: {error.strerror} ({directory})"
                ) from error
        if self._core.children.receiver(connection) is None:
            await self._core.children.start_receiver(connection, patient=True)

    async def discard(self, connection: str) -> None:
        """Its receiver ends, and with it all that is known of the copy; its files stay."""
        child = self._core.children.receiver(connection)
        if child is not None:
            try:
                await child.call("forget")
            except ReplicatorError:
                pass  # it is just ending
        with trio.move_on_after(limits.FAILBACK_PATIENCE_S):
            while self._core.children.receiver(connection) is not None:  # noqa: ASYNC110 -- nobody tells
                await trio.sleep(limits.CHILD_POLL_S)
        if self._core.children.receiver(connection) is not None:
            raise ReplicatorError(f"the receiver of copy {connection} does not end")
        directory = self._core.home.target(connection)
        await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
