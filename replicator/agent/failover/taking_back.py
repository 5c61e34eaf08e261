"""Taking over where the other side is lost for good: `dtctl failover now NAME --source-is-off`.

A former source takes back what it has become a copy of, because its owner is lost.

The roles are those of a reversal (`failback --stay`), but the owner is not there to agree: this host becomes
the target of a monitor of the same group, made of what it knew as its source, and fails over as any target
does. So the epoch rises, the copy is opened and captured, and the owner finds itself superseded if it comes
back all the same (`deposed.py`).

An owner whose home is lost in the middle of a failback takes over from it again (`Failback.without_home`).
"""

from collections.abc import Callable
from typing import Protocol

from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.homecoming import Deeds
from replicator.agent.failover.monitors import Monitors, MonitorView
from replicator.errors import ReplicatorError
from replicator.failovers import (
    Guard,
    Lapse,
    Monitor,
    MonitorSettings,
    Phase,
    Promotion,
    Script,
    ScriptKind,
    Take,
    WatchedAddress,
    superseded_reason,
)
from replicator.repset import unique_name


class HomeIsLost(Protocol):
    """`failback.Failback`."""

    async def without_home(self, group: str) -> None: ...


class TakingBack:
    """Of one agent. `scripts`: of a new monitor."""

    def __init__(
        self,
        core: Core,
        guards: Guards,
        groups: Groups,
        monitors: Monitors,
        deeds: Deeds,
        scripts: Callable[[], dict[ScriptKind, Script]],
        failback: HomeIsLost,
    ) -> None:
        self._core = core
        self._guards = guards
        self._groups = groups
        self._monitors = monitors
        self._deeds = deeds
        self._scripts = scripts
        self._failback = failback

    async def now(self, key: str, *, forced: bool, source_is_off: bool) -> MonitorView:
        """Fail over a group by its name or uuid, whether this host is its target, is just handing it back, or
        has become a copy of what its target owns. Raises ReplicatorError, with what can be done instead.
        """
        guard = self._guard(key)
        if guard is not None and self._groups.get(guard.group) is None:
            record = self._check(guard, source_is_off)
            await self._deeds.adopt(self._monitor(guard, record), guard)
            key = guard.group
        await self._end_failback(key, source_is_off)
        return await self._monitors.now(key, forced=forced, source_is_off=source_is_off)

    async def before_opening(self, record: Promotion) -> None:
        """This host owns the group now, and is no source of its former time any more, if it was one."""
        guard = self._guards.get(record.group)
        if guard is not None and guard.is_held and record.owner == self._core.identity.uuid:
            await self._deeds.retire(guard)

    async def _end_failback(self, key: str, home_is_off: bool) -> None:
        """Home may own the group by now. Raises ReplicatorError."""
        monitor = next((m for m in self._groups.all() if key in (m.name, m.uuid)), None)
        if monitor is None or monitor.phase is not Phase.HANDING_BACK:
            return
        name, home = monitor.name, monitor.source_name or monitor.settings.source_host
        if not home_is_off:
            raise ReplicatorError(
                f"{name}: a failback is under way: dtctl failback {name} --abandon takes it back, as long as"
                f" that can be. Only if {home} is lost for good, or certainly off: dtctl failover now {name}"
                " --source-is-off"
            )
        await self._failback.without_home(monitor.uuid)

    def _guard(self, key: str) -> Guard | None:
        """None: a monitor has that name, or nothing has."""
        if any(key in (monitor.name, monitor.uuid) for monitor in self._groups.all()):
            return None
        try:
            return self._guards.find(key)
        except NotFoundError:
            return None

    def _check(self, guard: Guard, owner_is_off: bool) -> Promotion:
        """By which the other host owns it. Raises ReplicatorError."""
        record = guard.superseded
        if record is None or not guard.is_held:
            raise ReplicatorError(
                f"{guard.name}: this host is its source, and has lost it to nobody: there is nothing to take"
                " over (dtctl failover guards)"
            )
        owner = record.owner_name
        away = {away.connection for away in self._core.state.away if away.group == guard.group and away.told}
        if not away.issuperset(guard.copies):
            raise ReplicatorError(
                f"{guard.name}: what is here is what this host had itself, not yet a copy of what {owner}"
                f" owns: dtctl failover open {guard.name} --even-if-two-masters lets programs write it"
            )
        if not owner_is_off:
            raise ReplicatorError(
                f"{guard.name}: {superseded_reason(record)} on {owner}. Only if {owner} is lost for good, or"
                f" certainly off: dtctl failover now {guard.name} --source-is-off; what {owner} has not sent"
                " is lost then"
            )
        return record

    def _monitor(self, guard: Guard, record: Promotion) -> Monitor:
        """As its owner would have made it here, as far as a source knows; a person is asked from now on."""
        addresses = tuple(WatchedAddress(address=address.address) for address in guard.addresses)
        settings = MonitorSettings(
            source_host=guard.target_host,
            source_port=guard.target_port,
            addresses=addresses,
            take=Take.MONITORED if addresses else Take.NONE,
            witness=guard.witness,
            lapse=guard.lapse if guard.lapse is not Lapse.NONE else None,
            scripts=self._scripts(),
        )
        name = unique_name(guard.name, [monitor.name for monitor in self._groups.all()])
        return Monitor(uuid=guard.group, name=name, settings=settings, epoch=record.epoch)
