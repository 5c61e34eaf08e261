"""The monitors of this agent, for those who use it: added, edited, removed, asked, answered.

`watching.py` drives them.
"""

import re
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.heartbeats import Begun, HeartbeatAsker, HeartbeatKeeper
from replicator.agent.failover.watching import Watching
from replicator.agent.state import new_uuid
from replicator.errors import ReplicatorError, UsageError
from replicator.failover.addresses import look, place_of, risks
from replicator.failover.addresses import wanted as wanted_by
from replicator.failover.candidate import Order
from replicator.failover.monitor import AddressView
from replicator.failover.phases import ASSUMING, OWNING, GroupEvent
from replicator.failover.scripts import check as check_script
from replicator.failover_reports import Report, ReportOutcome
from replicator.failover_settings import check_name, check_settings
from replicator.failovers import Monitor, MonitorSettings, Phase, Script, ScriptKind, WatchedAddress


class MonitorRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new monitor, or all settings of one that is there. `name` "": after its source, or as it is.
    `even_if_silent`: its addresses need not answer now.
    """

    settings: MonitorSettings
    name: str = ""
    even_if_silent: bool = False


class MonitorView(msgspec.Struct, frozen=True, kw_only=True):
    """A monitor as users see it. `doing`: in words. `question`: what a person is asked; "": nothing.
    `report`: of what is under way, if something is. `warnings`: what may come of its settings.
    """

    uuid: str
    name: str
    source: str  # HOST:PORT
    source_name: str
    source_uuid: str
    phase: Phase
    since: float  # of the phase, seconds since the epoch of clocks
    epoch: int
    doing: str
    failed: bool
    armed: bool
    question: str
    halted: str  # why a failover that was begun waits for a person; "": it does not
    addresses: tuple[AddressView, ...]
    settings: MonitorSettings
    report: Report | None
    warnings: tuple[str, ...] = ()


async def _nothing(group: str) -> None:
    pass


class Monitors:
    """`run` watches. `report_of`: the procedure under way of a group. `default_scripts`: of a new monitor.
    `leave_addresses`: those of a group that nobody watches any more stay where they are.
    """

    def __init__(self, core: Core, groups: Groups, calls: Calls) -> None:
        self.report_of: Callable[[str], Report | None] = lambda group: None
        self.is_armed: Callable[[Monitor], bool] = lambda monitor: False
        self.default_scripts: Callable[[], dict[ScriptKind, Script]] = dict
        self.leave_addresses: Callable[[str], Awaitable[None]] = _nothing
        self._core = core
        self._groups = groups
        self._keeper = HeartbeatKeeper(core, calls)
        self._asker = HeartbeatAsker(calls, self._found)
        self.watching = Watching(core, groups, self._asker)

    async def run(self) -> None:
        """Until cancelled; the next agent goes on watching."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self.watching.run)

    # --- looking ---

    def all(self) -> list[MonitorView]:
        return [self._view(monitor) for monitor in self._groups.all()]

    def get(self, key: str) -> MonitorView:
        """By name or uuid. Raises NotFoundError."""
        return self._view(self._groups.find(key))

    def _view(self, monitor: Monitor) -> MonitorView:
        settings, report = monitor.settings, self.report_of(monitor.uuid)
        return MonitorView(
            uuid=monitor.uuid,
            name=monitor.name,
            source=str(Address(settings.source_host, settings.source_port)),
            source_name=monitor.source_name,
            source_uuid=monitor.source_uuid,
            phase=monitor.phase,
            since=monitor.since,
            epoch=monitor.epoch,
            doing=_DOING[monitor.phase],
            failed=self.watching.has_failed(monitor.uuid),
            armed=self.is_armed(monitor),
            question=self._question(monitor),
            halted=report.text if report is not None and report.outcome is ReportOutcome.HALTED else "",
            addresses=tuple(self.watching.views(monitor)),
            settings=settings,
            report=report,
            warnings=tuple(risks(settings)),
        )

    def _question(self, monitor: Monitor) -> str:
        if monitor.phase is not Phase.ASKING:
            return ""
        reason = self.watching.reason(monitor.uuid)
        what = f"{monitor.settings.source_host} has failed" + (f" ({reason})" if reason else "")
        return f"{what}: shall this host take over?"

    # --- changing them ---

    async def add(self, request: MonitorRequest) -> MonitorView:
        """FO-01. Raises UsageError; ReplicatorError if an address does not answer."""
        settings = request.settings
        scripts = {**self.default_scripts(), **settings.scripts}
        settings = msgspec.structs.replace(settings, scripts=scripts)
        name = request.name or re.sub(r"[^A-Za-z0-9_.-]+", "-", settings.source_host).strip("-.")
        check_name(name)
        monitor = Monitor(uuid=new_uuid(), name=name, settings=settings, since=time.time())
        await self._check(monitor, None)
        if not request.even_if_silent:
            await self._check_answers(monitor, settings.addresses)
        await self._groups.add(monitor)
        addresses = ", ".join(a.address for a in settings.addresses)
        text = self.watching.tell(
            events.MONITOR_ADDED, name=name, source=self._view(monitor).source, addresses=addresses
        )
        await self._groups.note(monitor, "added", text)
        await self._advise(monitor)
        return self.get(monitor.uuid)

    async def edit(self, key: str, request: MonitorRequest) -> MonitorView:
        """FO-11: while it watches. Raises as `add`."""
        before = self._groups.find(key)
        _check_edit(before, request.settings)
        name = request.name or before.name
        check_name(name)
        if any(name == other.name and other.uuid != before.uuid for other in self._groups.all()):
            raise UsageError(f"monitor {name!r} exists: choose another name")
        wanted = msgspec.structs.replace(before, settings=request.settings, name=name)
        await self._check(wanted, before)
        new = [a for a in request.settings.addresses if a not in before.settings.addresses]
        if (
            not request.even_if_silent
            and before.phase is Phase.WATCHING
            and not self.watching.has_failed(before.uuid)
        ):
            await self._check_answers(wanted, tuple(new))
        same_source = _source(wanted.settings) == _source(before.settings)
        known = {} if same_source else {"source_uuid": "", "source_name": ""}
        monitor = await self._groups.change(
            before.uuid,
            check=partial(_check_edit, settings=request.settings),  # all this took its time
            settings=request.settings,
            name=name,
            **known,
        )
        self.watching.edited(monitor)
        what = ", ".join(_differences(before, monitor)) or "nothing"
        text = self.watching.tell(events.MONITOR_EDITED, name=monitor.name, what=what)
        await self._groups.note(monitor, "edited", text)
        await self._advise(monitor)
        return self.get(monitor.uuid)

    async def remove(self, key: str, *, even_if_owner: bool = False) -> MonitorView:
        """FO-11. A group that this host has taken over is not forgotten by the way."""
        monitor = self._groups.find(key)
        _check_not_moving(monitor)
        if monitor.phase in OWNING and not even_if_owner:
            raise ReplicatorError(
                f"this host has taken over from {monitor.settings.source_host}: without its monitor nobody"
                f" could lead it home. dtctl failback {monitor.name}, or --even-if-owner"
            )
        view = self._view(monitor)
        if monitor.phase in OWNING:
            await self.leave_addresses(monitor.uuid)  # first: else the next start would take them away
        await self._groups.remove(monitor.uuid)
        text = self.watching.tell(events.MONITOR_REMOVED, name=monitor.name, source=view.source)
        await self._groups.note(monitor, "removed", text)
        return view

    async def set_watching(self, key: str, *, on: bool) -> MonitorView:
        """Watch, or stop watching for a while."""
        monitor = self._groups.find(key)
        if on == (monitor.phase is not Phase.IDLE):
            return self._view(monitor)
        if monitor.phase in OWNING:
            raise ReplicatorError(
                f"this host has taken over from {monitor.settings.source_host}, and does not watch it:"
                f" dtctl failback {monitor.name}"
            )
        monitor = await self._groups.step(monitor.uuid, GroupEvent.START if on else GroupEvent.STOP)
        await self._groups.note(monitor, "started" if on else "stopped", _DOING[monitor.phase])
        return self._view(monitor)

    async def _check(self, monitor: Monitor, before: Monitor | None) -> None:
        settings = monitor.settings
        check_settings(settings)
        for script in settings.scripts.values():
            check_script(script)
        for other in self._groups.all():
            if other.uuid != monitor.uuid and _source(other.settings) == _source(settings):
                raise UsageError(
                    f"monitor {other.name} watches {settings.source_host} already: dtctl failover edit"
                    f" {other.name}"
                )
        known = {name for _, name in await trio.to_thread.run_sync(socket.if_nameindex)}
        for address in settings.addresses:
            if address.interface and address.interface not in known:
                names = ", ".join(sorted(known))
                raise UsageError(f"this host has no interface {address.interface!r}; it has: {names}")

    async def _advise(self, monitor: Monitor) -> None:
        """FO-07, FO-08: what a person should know of these settings before they are needed."""
        host = await look()
        lines = risks(monitor.settings)
        for item in wanted_by(monitor.settings):
            try:
                place_of(item, host)
            except ReplicatorError as error:
                lines.append(f"as this host is now, it could not take over: {error}")
        for line in lines:
            self.watching.tell(events.ADVICE, text=f"monitor {monitor.name}: {line}")

    async def _check_answers(self, monitor: Monitor, addresses: tuple[WatchedAddress, ...]) -> None:
        """A name or port that is misspelled would look like a source that has failed."""
        silent: list[str] = []

        async def ask(address: WatchedAddress) -> None:
            if reason := await self.watching.ask_once(monitor, address, limits.MONITOR_FIRST_S):
                silent.append(f"{address.address} ({reason})")

        async with trio.open_nursery() as nursery:
            for address in addresses:
                if address.monitored:
                    nursery.start_soon(ask, address)
        self._asker.forget(monitor.uuid)
        if silent:
            raise ReplicatorError(
                f"no answer from {', '.join(sorted(silent))}: it would count as failed; if it is only down at"
                " this moment, say --even-if-silent"
            )

    async def _found(self, monitor: Monitor, begun: Begun) -> None:
        known = self._groups.get(monitor.uuid)
        if known is not None and (known.source_uuid, known.source_name) != (
            begun.agent_uuid,
            begun.agent_name,
        ):
            await self._groups.change(
                monitor.uuid, source_uuid=begun.agent_uuid, source_name=begun.agent_name
            )

    # --- taking over ---

    async def answer(self, key: str, *, yes: bool, forced: bool, source_is_off: bool = False) -> MonitorView:
        """What was asked; whoever said no may still say yes. A failover goes on after this returns. Raises
        ReplicatorError if nothing is asked.
        """
        monitor = self._groups.find(key)
        if monitor.phase not in (Phase.ASKING, Phase.DECLINED):
            raise ReplicatorError(
                f"monitor {monitor.name} asks nothing: {_DOING[monitor.phase]}; dtctl failover now"
                f" {monitor.name} begins without being asked"
            )
        if yes:
            return await self._begin(monitor, "answered yes", forced, source_is_off)
        if monitor.phase is Phase.ASKING:
            monitor = await self._groups.step(monitor.uuid, GroupEvent.DECLINE)
            text = self.watching.tell(
                events.FAILOVER_DECLINED,
                name=monitor.name,
                source=monitor.settings.source_host,
                reason="answered no",
            )
            await self._groups.note(monitor, "declined", text)
        return self._view(monitor)

    async def now(self, key: str, *, forced: bool, source_is_off: bool = False) -> MonitorView:
        """FO-15: without waiting for a countdown, or once more what waits for a person. `source_is_off`: he
        answers for that, in place of leases and witness.
        """
        monitor = self._groups.find(key)
        if monitor.phase is Phase.ACTIVE:
            raise ReplicatorError(f"this host has taken over from {monitor.settings.source_host} already")
        return await self._begin(monitor, "asked for", forced, source_is_off)

    async def _begin(self, monitor: Monitor, reason: str, forced: bool, source_is_off: bool) -> MonitorView:
        order = Order.OFF if source_is_off else Order.PERSON
        if source_is_off:
            reason = f"{reason}: the source is off"
        await self.watching.begin(monitor.uuid, reason, forced=forced, order=order)
        return self.get(monitor.uuid)


_DOING = {
    Phase.WATCHING: "monitoring",
    Phase.ASKING: "failed; a person is asked",
    Phase.DECLINED: "failed; failover was declined, and can still be begun",
    Phase.TAKING_OVER: "addresses are being taken",
    Phase.ACTIVE: "failed over",
    Phase.HANDING_BACK: "addresses are being given back",
    Phase.IDLE: "not monitoring",
}
"""FO-21."""


def _check_not_moving(monitor: Monitor) -> None:
    if monitor.phase in ASSUMING:
        raise ReplicatorError(f"monitor {monitor.name}: {_DOING[monitor.phase]}; wait for the end of that")


def _check_edit(monitor: Monitor, settings: MonitorSettings) -> None:
    _check_not_moving(monitor)
    if monitor.phase in OWNING and _moves(monitor.settings) != _moves(settings):
        raise ReplicatorError(
            f"this host has taken over from {monitor.settings.source_host}: source, addresses and copies"
            f" of {monitor.name} stay until they have gone home (dtctl failback {monitor.name})"
        )


def _source(settings: MonitorSettings) -> tuple[str, int]:
    return settings.source_host.lower(), settings.source_port


def _moves(settings: MonitorSettings) -> tuple[object, ...]:
    """What has moved with a failover."""
    return _source(settings), settings.taken, settings.copies


def _differences(before: Monitor, after: Monitor) -> list[str]:
    """Names of what is different."""
    fields = MonitorSettings.__struct_fields__
    found = [n for n in fields if getattr(before.settings, n) != getattr(after.settings, n)]
    return ["name", *found] if before.name != after.name else found
