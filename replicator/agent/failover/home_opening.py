"""Home owns the group again: its programs write, and its copies follow. The end of `homecoming.py`.

All of it may be asked for again, also after a crash in the middle.
"""

import uuid
from typing import Protocol

import msgspec
import trio

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guards import Guards
from replicator.agent.state import Connection, Mount
from replicator.errors import NotPermittedError
from replicator.failover.handback import Mark
from replicator.failovers import Promotion, return_of
from replicator.queue.cursor import Cursor
from replicator.sender.arguments import Restored
from replicator.world import World


class Records(Protocol):
    """`promotion.py`."""

    def record(self, group: str) -> Promotion | None: ...


class Former(Protocol):
    """`former_owner.py`."""

    async def end(self, record: Promotion) -> None:
        """It is no former owner any more: what was held goes on, mounts may come up."""
        ...


class HomeOpening:
    """Of one agent. Raises NotPermittedError where this agent does not own the group by that record."""

    def __init__(
        self, core: Core, guards: Guards, fencing: Fencing, records: Records, former: Former
    ) -> None:
        self._core = core
        self._guards = guards
        self._fencing = fencing
        self._records = records
        self._former = former

    async def open(self, record: Promotion, owner: str) -> None:
        """Programs may write, and forward connections go on from where the journals stand at that moment:
        both sides are equal there. The mounts are frozen until that is durable: nothing comes in between.
        """
        self._check_own(record)
        returning = {copy.connection for copy in record.copies}
        forward = [c for c in self._core.state.connections if return_of(c.uuid) in returning]
        mounts = {j.mount.id: j.mount for c in forward for j in self._core.children.journals(c)}
        if not all(_is_noted(connection, record) for connection in forward):
            await self._fencing.freeze(mounts)
        await self._guards.supersede(record.group, record)
        await self._former.end(record)
        for copy in returning:
            child = self._core.children.receiver(copy)
            if child is not None:
                await child.call("forget")
        await self._bring_up(list(mounts.values()))
        await self._note_where_they_go_on(forward, record)
        await self._guards.settle()
        await self._fencing.thaw(mounts)
        guard = self._guards.get(record.group)
        name = guard.name if guard is not None else record.group
        self._core.events.add(events.HANDED_BACK_HOME, name=name, owner=owner, epoch=record.epoch)

    async def resume(self, record: Promotion) -> None:
        """Forward connections send from now on: their copies are prepared. An agent that has started again
        meanwhile has begun with that by itself.
        """
        self._check_own(record)
        returning = {copy.connection for copy in record.copies}
        for connection in self._core.state.connections:
            if return_of(connection.uuid) in returning:
                await self._core.children.start_sender(connection, patient=True)

    async def _note_where_they_go_on(self, forward: list[Connection], record: Promotion) -> None:
        async with self._core.change() as change:
            known = {}
            for connection in forward:
                if not _is_noted(connection, record):
                    known[connection.uuid] = await self._restored(connection, record)
            connections = tuple(known.get(c.uuid, c) for c in self._core.state.connections)
            await change.save(connections=connections)
        for uuid_ in known:  # one that an agent has begun which was killed in the middle of this
            await self._core.children.stop_sender(uuid_)

    def _check_own(self, record: Promotion) -> None:
        known = self._records.record(record.group)
        if known is None or known.owner != self._core.identity.uuid or known.epoch != record.epoch:
            raise NotPermittedError(f"{self._core.identity.name} does not own this group")

    async def _restored(self, connection: Connection, record: Promotion) -> Connection:
        heads: dict[str, Mark] = {}
        for journal in self._core.children.journals(connection):
            heads[journal.mount.id] = await trio.to_thread.run_sync(self._head, journal.mount)
        restored = Restored(restore=_name_of(connection, record), heads=heads)
        return msgspec.structs.replace(connection, epoch=record.epoch, restored=restored)

    def _head(self, mount: Mount) -> Mark:
        """Where its journal ends. Raises JournalError."""
        cursor = Cursor.open(World(), self._core.children.journal_settings(mount), mount.id, None)
        try:
            head = cursor.head()
        finally:
            cursor.close()
        return head.sequence, head.chain

    async def _bring_up(self, mounts: list[Mount]) -> None:
        """Raises ReplicatorError: one does not serve."""
        children = self._core.children
        captures = [await children.start_capture(mount, patient=True) for mount in mounts]
        for child in captures:
            await child.wait_running()
            await child.call("status")


def _name_of(connection: Connection, record: Promotion) -> str:
    """Of what a connection goes on after, as `Restored.restore`."""
    return str(uuid.uuid5(uuid.UUID(connection.uuid), f"hand-over {record.epoch}"))


def _is_noted(connection: Connection, record: Promotion) -> bool:
    restored = connection.restored
    return restored is not None and restored.restore == _name_of(connection, record)
