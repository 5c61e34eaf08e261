"""The owner's own side of a failback: see `failback_parts.OwnSide`. All of it may be called again after a
crash.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import trio

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.failover.catching_up import catch_up
from replicator.agent.failover.failback_parts import Frozen, Say
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.mounts import Mounts
from replicator.agent.state import Connection, Mount
from replicator.errors import JournalError, ReplicatorError
from replicator.failover.handback import Behind, Mark
from replicator.failovers import Monitor, Promotion, return_of
from replicator.fences import FenceMode
from replicator.net.frames import Connect
from replicator.queue.cursor import Cursor
from replicator.status import TargetDataState
from replicator.world import World

_DRAIN_TRIES = 5


class Records(Protocol):
    """`promotion.Promotions`: the records of groups."""

    def record(self, group: str) -> Promotion | None: ...
    async def keep(self, record: Promotion) -> None: ...


class Copies(Protocol):
    """Copies of this agent that were promoted, and follow their source again."""

    async def follow(self, connection: str, record: Promotion, connect: Connect | None) -> None:
        """The directories of this copy equal what its source has at the hand-over: a new copy is made of
        them, in which nothing is to be compared. Its receiver waits for a source of that epoch. `connect`:
        what is copied there.
        """
        ...

    async def connect_of(self, connection: str) -> Connect | None:
        """What its stream has said last."""
        ...

    async def discard(self, connection: str) -> None:
        """There is no such copy any more; its files stay."""
        ...


class HandingOver:
    """Of one agent."""

    def __init__(
        self,
        core: Core,
        groups: Groups,
        connections: Connections,
        mounts: Mounts,
        fencing: Fencing,
        guards: Guards,
        records: Records,
        copies: Copies,
    ) -> None:
        self._core = core
        self._groups = groups
        self._connections = connections
        self._mounts = mounts
        self._fencing = fencing
        self._guards = guards
        self._records = records
        self._copies = copies

    # --- what there is ---

    def connections(self, monitor: Monitor) -> tuple[str, ...]:
        record = self._records.record(monitor.uuid)
        return tuple(copy.connection for copy in record.copies) if record is not None else ()

    def _returning(self, monitor: Monitor) -> list[Connection]:
        uuids = {return_of(uuid) for uuid in self.connections(monitor)}
        return [c for c in self._core.state.connections if c.uuid in uuids]

    def _captured(self, monitor: Monitor) -> list[Mount]:
        """The mounts that programs of the group write to."""
        found = {
            journal.mount.id: journal.mount
            for connection in self._returning(monitor)
            for journal in self._core.children.journals(connection)
        }
        return list(found.values())

    async def behind(self, monitor: Monitor) -> Sequence[Behind]:
        forward = {return_of(uuid): uuid for uuid in self.connections(monitor)}
        found = []
        for connection in self._returning(monitor):
            status = await self._connections.status(connection)
            waiting = status.tracking or status.target_data_state is not TargetDataState.OK
            bytes_ = max(status.tracked_bytes, status.remaining_mirror_bytes) if waiting else 0
            found.append(
                Behind(
                    connection=forward[connection.uuid],
                    state=status.state.value,
                    operations=status.queued_ops,
                    bytes=status.queued_bytes + bytes_,
                )
            )
        return found

    # --- before the hand-over ---

    async def catch_up(self, monitor: Monitor, say: Say) -> None:
        """See `catching_up`; of all connections of the group."""
        self._expect_all(monitor)
        for connection in self._returning(monitor):
            await catch_up(self._connections, connection, say)

    def _expect_all(self, monitor: Monitor) -> None:
        """Raises ReplicatorError: a return connection is gone."""
        if len(self._returning(monitor)) != len(self.connections(monitor)):
            raise ReplicatorError(
                f"a return connection of {monitor.name} is gone: restore to the source instead"
            )

    async def freeze(self, monitor: Monitor) -> Frozen:
        found = {uuid: await self._copies.connect_of(uuid) for uuid in self.connections(monitor)}
        copies = {uuid: connect for uuid, connect in found.items() if connect is not None}
        mounts = tuple(mount.id for mount in self._captured(monitor))
        await self._fencing.freeze(mounts)
        return Frozen(mounts=mounts, copies=copies)

    async def thaw(self, monitor: Monitor) -> None:
        await self._fencing.thaw([mount.id for mount in self._captured(monitor)])

    async def drain(self, monitor: Monitor, say: Say) -> dict[str, dict[str, Mark]]:
        """Raises WaitTimeoutError: it takes longer than the group's `drain_s`."""
        self._expect_all(monitor)
        forward = {return_of(uuid): uuid for uuid in self.connections(monitor)}
        found: dict[str, dict[str, Mark]] = {}
        for connection in self._returning(monitor):
            for _ in range(_DRAIN_TRIES):
                before = await self._heads(connection)
                await self._connections.wait(connection.uuid, monitor.settings.drain_s)
                heads = await self._heads(connection)
                if heads == before:  # nothing came in between: mtimes that were still to be told
                    break
            found[forward[connection.uuid]] = heads
        return found

    async def _heads(self, connection: Connection) -> dict[str, Mark]:
        def head(mount: Mount) -> Mark:
            settings = self._core.children.journal_settings(mount)
            try:
                cursor = Cursor.open(World(), settings, mount.id, None)
            except JournalError as error:
                raise ReplicatorError(f"{mount.path}: {error}") from error
            try:
                position = cursor.head()
                return position.sequence, position.chain
            finally:
                cursor.close()

        journals = self._core.children.journals(connection)
        return {j.mount.id: await trio.to_thread.run_sync(head, j.mount) for j in journals}

    # --- after it ---

    async def follow(
        self,
        monitor: Monitor,
        promotion: Promotion,
        connections: Sequence[str],
        frozen: Frozen,
        say: Say,
    ) -> None:
        """First nothing writes here any more; the record is kept last."""
        reason = f"{promotion.owner_name} owns the data now"
        known = [mount for mount in self._core.state.mounts if mount.id in frozen.mounts]
        await self._fencing.set_mode(
            [mount.id for mount in known], FenceMode.READ_ONLY, 0, reason, for_good=True
        )
        for uuid in connections:
            await self._connections.remove_quietly(return_of(uuid))
        await self._guards.dismiss(monitor.uuid)  # a return connection was told that this host is superseded
        for mount in known:
            await self._release(mount, say)
        for uuid in connections:
            await self._copies.follow(uuid, promotion, frozen.copies.get(uuid))
        await self._records.keep(promotion)
        if self._groups.get(monitor.uuid) is not None:
            await self._groups.change(monitor.uuid, epoch=promotion.epoch)

    async def _release(self, mount: Mount, say: Say) -> None:
        """It was captured for the group. Where another connection needs it (a chain) it stays."""
        needed = any(
            mount.id == journal.mount.id
            for connection in self._core.state.connections
            for journal in self._core.children.journals(connection)
        )
        if not needed:
            await self._mounts.remove(mount.path, force=True)
            say(f"{mount.path} is not captured any more")
        await self._fencing.remove([mount.id])
        await self._fencing.thaw([mount.id])

    # --- instead of it ---

    async def turn_around(self, monitor: Monitor) -> None:
        for uuid in self.connections(monitor):
            await self._copies.discard(uuid)
        if self._groups.get(monitor.uuid) is not None:
            await self._groups.remove(monitor.uuid)

    async def has_turned(self, monitor: Monitor) -> bool:
        return self._groups.get(monitor.uuid) is None


def marks_of(positions: dict[str, list[int]]) -> dict[str, Mark]:
    """As a receiver tells them."""
    return msgspec.convert(positions, dict[str, Mark])
