"""What follows for the fences of mounts from the groups that guard them (`guards.py`)."""

from math import inf
from typing import Protocol

from replicator import events
from replicator.agent.core import Core
from replicator.agent.failover.fencing import Fencing
from replicator.failover.writing import Right
from replicator.failovers import Guard
from replicator.fences import FOREVER_NS, STRICTNESS, FenceMode
from replicator.fs.fence import boottime_ns


class Standing(Protocol):
    """`guards.Standing`. `is_open`: as it was told last."""

    is_open: bool


class Guards(Protocol):
    """`guards.Guards`."""

    def all(self) -> tuple[Guard, ...]: ...
    def standing(self, guard: Guard) -> Standing: ...
    def mounts_of(self, guard: Guard) -> tuple[str, ...]: ...
    def right_of(self, guard: Guard) -> Right: ...
    def mode_of(self, guard: Guard) -> FenceMode: ...
    def is_closed_for_good(self, guard: Guard) -> bool: ...


def to_ns(until_s: float) -> int:
    """Of a fence."""
    return FOREVER_NS if until_s == inf else int(until_s * 1e9)


class GuardFences:
    """Of one agent."""

    def __init__(self, core: Core, fencing: Fencing, guards: Guards) -> None:
        self._core = core
        self._fencing = fencing
        self._guards = guards
        self._fenced: set[str] = set()  # mounts whose fences are of groups: others may have some, too

    def begin(self) -> None:
        """When the agent starts: fences of an earlier one are taken up, or end with their groups. One that is
        just closed is of whoever closed it, if no group guards it.
        """
        guarded = {mount for guard in self._guards.all() for mount in self._guards.mounts_of(guard)}
        for mount in self._core.state.mounts:
            if mount.id in guarded or self._fencing.until_ns(mount.id):
                self._fenced.add(mount.id)

    async def settle(self) -> None:
        """Write what holds now into the fences of all mounts."""
        for guard in self._guards.all():
            self._note(guard, self._guards.right_of(guard))
        for mount in self._core.state.mounts:
            # Decided and written without a checkpoint in between: what was decided earlier never wins.
            fence = self._fence_of(mount.id)
            if fence is None:
                if mount.id in self._fenced:
                    self._fenced.discard(mount.id)
                    await self._fencing.remove([mount.id])
            else:
                self._fenced.add(mount.id)
                for_good = any(
                    self._guards.is_closed_for_good(guard) and mount.id in self._guards.mounts_of(guard)
                    for guard in self._guards.all()
                )
                await self._fencing.set_mode([mount.id], *fence, for_good=for_good)

    def _fence_of(self, mount: str) -> tuple[FenceMode, int, str] | None:
        """Of several groups the one decides whose right ends first, and of these the strictest."""
        found: list[tuple[int, int, str]] = []
        for guard in self._guards.all():
            allowed = self._guards.right_of(guard)
            if allowed.until_s < inf and mount in self._guards.mounts_of(guard):
                found.append(
                    (-to_ns(allowed.until_s), STRICTNESS.index(self._guards.mode_of(guard)), allowed.reason)
                )
        if not found:
            return None
        earlier, strictness, reason = max(found)
        return STRICTNESS[strictness], -earlier, reason

    def _note(self, guard: Guard, allowed: Right) -> None:
        """Events of what opens and closes."""
        standing = self._guards.standing(guard)
        is_open = allowed.holds(boottime_ns() / 1e9)
        if is_open is standing.is_open:
            return
        standing.is_open = is_open
        if is_open:
            self._core.events.add(events.FENCE_OPENED, name=guard.name)
        else:
            mode = self._guards.mode_of(guard).name.lower().replace("_", "-")
            self._core.events.add(events.FENCE_CLOSED, name=guard.name, mode=mode, reason=allowed.reason)

    def look(self) -> None:
        """Events of leases that have lapsed meanwhile."""
        for guard in self._guards.all():
            self._note(guard, self._guards.right_of(guard))
