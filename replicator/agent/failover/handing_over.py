"""The owner's own side of a failback: see `failback.OwnSide`. All of it may be called again after a crash."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from replicator.agent.failover.failback import Say
from replicator.agent.state import Mount
from replicator.failover.handback import Mark
from replicator.failovers import Monitor, Promotion, return_of
from replicator.fences import FenceMode

_DRAIN_TRIES = 5


class Records(Protocol):
    """`promotion.Promotions`: the records of groups."""

    def record(self, group: str) -> Promotion | None: ...
    async def keep(self, record: Promotion) -> None: ...


class Copies(Protocol):
    """Copies of this agent that were promoted, and follow their source again."""

    async def follow(
        self,
        monitor: Monitor,
        promotion: Promotion,
        connections: Sequence[str],
        mounts: Sequence[str],
        say: Say,
    ) -> None:
        """First nothing writes here any more; the record is kept last."""
        reason = f"{promotion.owner_name} owns the data now"
        known = [mount for mount in self._core.state.mounts if mount.id in mounts]
        await self._fencing.set_mode([mount.id for mount in known], FenceMode.READ_ONLY, 0, reason)
        for uuid in connections:
            await self._connections.remove_quietly(return_of(uuid))
        for mount in known:
            await self._release(mount, say)
        for uuid in connections:
            await self._copies.follow(uuid, promotion)
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
