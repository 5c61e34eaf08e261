"""Copies of this agent that were promoted, after the group was handed back: they follow their source again,
or end.
"""

import trio

from replicator import limits
from replicator.agent.core import Core
from replicator.errors import ReplicatorError
from replicator.failovers import Promotion
from replicator.receiver import prepared
from replicator.world import World


class FollowedCopies:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def follow(self, connection: str, record: Promotion) -> None:
        """The directories of this copy equal what its source has at the hand-over: a new copy is made of
        them, in which nothing is to be compared. Its receiver waits for a source of that epoch. Raises
        ReplicatorError; may be done again.
        """
        directory, world = self._core.home.target(connection), World()
        if not await trio.to_thread.run_sync(prepared.is_prepared, world, directory, record.epoch):
            await self.discard(connection)

            def write() -> None:
                prepared.prepare(
                    world,
                    directory,
                    connection,
                    source_uuid=record.owner,
                    source_name=record.owner_name,
                    epoch=record.epoch,
                    tails={},
                )

            await trio.to_thread.run_sync(write)
        if self._core.children.receiver(connection) is None:
            await self._core.children.start_receiver(connection, patient=True)

    async def discard(self, connection: str) -> None:
        """There is no such copy any more; its files stay. Raises ReplicatorError."""
        child = self._core.children.receiver(connection)
        if child is None:
            return
        await child.wait_running()
        await child.call("forget")
        for _ in range(int(limits.RESTORE_CALL_S / limits.CHILD_POLL_S)):
            if self._core.children.receiver(connection) is None:
                return
            await trio.sleep(limits.CHILD_POLL_S)
        raise ReplicatorError(f"the copy of connection {connection} does not end")
