"""Drives the monitors of this agent: sends probes, looks at what comes of them, and does what follows.

What follows is decided anew at each look, from the phase of the group (durable) and what the machine knows
now. So an agent that was restarted goes on where the last one stood: it watches with a whole countdown, and
a question that was asked stays asked until the source has really been heard.
"""

import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import trio

from replicator import events, limits
from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover import syslog
from replicator.agent.failover.contained import OUTSIDE, reason_of
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.heartbeats import HeartbeatAsker
from replicator.errors import ReplicatorError
from replicator.events import EventType
from replicator.failover.candidate import Order
from replicator.failover.monitor import AddressView, Change, News, Probe, SourceMonitor
from replicator.failover.phases import GroupEvent
from replicator.failover.probes import Silent, Unable, probe
from replicator.failover_settings import ip_of
from replicator.failovers import CheckKind, Monitor, Phase, WatchedAddress

WATCHED = frozenset({Phase.WATCHING, Phase.ASKING, Phase.DECLINED})
"""Phases in which signs of life matter."""


class TakesOver(Protocol):
    """`failover_plan.Failover`."""

    async def fail_over(
        self, group: str, *, reason: str, forced: bool, order: Order | None = None
    ) -> object: ...


async def _nothing(monitor: Monitor, reason: str = "") -> None:
    pass


class _Driven:
    """One group. `machine` None: it is not watched now."""

    def __init__(self) -> None:
        self.machine: SourceMonitor | None = None
        self.asked = False  # of the present question, people were told
        self.reason = ""  # why the source counts as failed
        self.attempt: _Attempt | None = None  # to fail over by itself
        self.commands: set[Probe] = set()  # under way, without their numbers
        self.is_ready = False  # to fail over at once
        self.trouble = ""  # why nothing could be decided at the last look


class _Attempt:
    """To fail over. `error`: why it was not even begun."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: ReplicatorError | None = None


class Watching:
    """Of one agent. `taking_over`: who fails a group over. `run_question_script`: tells a script that a
    person is asked. `get_ready`: a group may soon be failed over; it raises nothing.
    """

    def __init__(self, core: Core, groups: Groups, heartbeats: HeartbeatAsker) -> None:
        self.taking_over: TakesOver | None = None
        self.run_question_script: Callable[[Monitor, str], Awaitable[None]] = _nothing
        self.get_ready: Callable[[Monitor], Awaitable[None]] = _nothing
        self._core = core
        self._groups = groups
        self._heartbeats = heartbeats
        self._driven: dict[str, _Driven] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        self._driven.clear()
        async with trio.open_nursery() as self._nursery:
            while True:
                changed = self._groups.changed
                for monitor in self._groups.all():
                    if monitor.uuid not in self._driven:
                        self._driven[monitor.uuid] = _Driven()
                        self._nursery.start_soon(self._drive, monitor.uuid)
                await changed.wait()

    # --- for others ---

    def views(self, monitor: Monitor) -> list[AddressView]:
        """Of one that is not watched now: as at its beginning."""
        driven = self._driven.get(monitor.uuid)
        machine = driven.machine if driven is not None else None
        return list((machine or SourceMonitor(monitor.settings, 0.0)).views())

    def has_failed(self, uuid: str) -> bool:
        driven = self._driven.get(uuid)
        return driven is not None and driven.machine is not None and driven.machine.failed

    def reason(self, uuid: str) -> str:
        driven = self._driven.get(uuid)
        return driven.reason if driven is not None else ""

    def edited(self, monitor: Monitor) -> None:
        """Its settings are other ones."""
        driven = self._driven.get(monitor.uuid)
        if driven is not None and driven.machine is not None:
            driven.machine.edit(monitor.settings, trio.current_time())
        self._heartbeats.forget(monitor.uuid)

    async def ask_once(self, monitor: Monitor, address: WatchedAddress, timeout_s: float) -> str:
        """Why one of its addresses would not count as alive now; "": it would."""
        machine = SourceMonitor(monitor.settings, 0.0)
        probes = [each for each in machine.due(0.0) if each.address == address.address]
        async with trio.open_nursery() as nursery:
            for each in probes:
                nursery.start_soon(self._probe, monitor, machine, each, timeout_s)
        machine.look(0.0)
        if machine.answers(address.address):
            return ""
        return next(view.reason for view in machine.views() if view.address == address.address) or "no answer"

    def tell(self, type_: EventType, **fields: object) -> str:
        """An event, for the system's log as well. Returns its text."""
        event = self._core.events.add(type_, **fields)
        syslog.tell(event)
        return event.text

    async def begin(self, uuid: str, reason: str, *, forced: bool, order: Order = Order.PERSON) -> None:
        """Fail over. It goes on after this returns, and when this is cancelled. Raises ReplicatorError if
        that is known at once to be impossible.
        """
        assert self._nursery is not None
        attempt = _Attempt()
        self._nursery.start_soon(self._take_over, uuid, reason, forced, attempt, order)
        with trio.move_on_after(limits.FAILOVER_BEGIN_S):
            await attempt.ended.wait()
        if attempt.error is not None:
            raise attempt.error

    # --- the loop ---

    async def _drive(self, uuid: str) -> None:
        driven = self._driven[uuid]
        async with trio.open_nursery() as probes:
            while (monitor := self._groups.get(uuid)) is not None:
                changed = self._groups.changed
                # A source that answers again before anything is final is left alone: see `has_failed`.
                assuming = monitor.phase is Phase.TAKING_OVER and driven.machine is not None
                if monitor.phase not in WATCHED and not assuming:
                    driven.machine, driven.asked, driven.reason = None, False, ""
                    await changed.wait()
                    continue
                now_s = trio.current_time()
                if driven.machine is None:
                    driven.machine = SourceMonitor(monitor.settings, now_s)
                for each in driven.machine.due(now_s):
                    probes.start_soon(self._probe_for, driven, monitor, driven.machine, each)
                changes = driven.machine.look(now_s)
                try:
                    if not assuming:
                        await self._note(monitor, changes)
                        await self._decide(monitor, driven)
                    driven.trouble = ""
                except NotFoundError:
                    pass  # it was removed just now
                except OUTSIDE as error:  # the state cannot be saved: looked at again
                    driven.trouble = self._trouble(monitor, reason_of(error), driven.trouble)
                self._get_ready(monitor, driven)
                with trio.move_on_after(driven.machine.pause_s):
                    await changed.wait()
            probes.cancel_scope.cancel()
        del self._driven[uuid]
        self._heartbeats.forget(uuid)

    def _get_ready(self, monitor: Monitor, driven: _Driven) -> None:
        """What takes time and does no harm is begun while the last answers may still come."""
        assert driven.machine is not None
        before, driven.is_ready = driven.is_ready, driven.machine.fails_within(limits.FAILOVER_READY_S)
        if driven.is_ready and not before and monitor.settings.automatic and monitor.phase is Phase.WATCHING:
            assert self._nursery is not None
            self._nursery.start_soon(self.get_ready, monitor)

    async def _probe_for(
        self, driven: _Driven, monitor: Monitor, machine: SourceMonitor, asked: Probe
    ) -> None:
        address = next((a for a in monitor.settings.addresses if a.address == asked.address), None)
        if address is None:
            return None  # it was removed just now
        timeout_s = min(address.timeout_s, limits.MONITOR_PROBE_MAX_S)
        if asked.check.kind is not CheckKind.COMMAND:
            return await self._probe(monitor, machine, asked, timeout_s)
        same = asked._replace(number=0)
        if same in driven.commands:
            return None  # it still runs: that is no answer either
        driven.commands.add(same)
        try:
            return await self._probe(monitor, machine, asked, address.timeout_s)
        finally:
            driven.commands.discard(same)

    async def _probe(self, monitor: Monitor, machine: SourceMonitor, asked: Probe, timeout_s: float) -> None:
        settings = monitor.settings
        address = next(a for a in settings.addresses if a.address == asked.address)
        try:
            if asked.check.kind is CheckKind.AGENT:
                await self._heartbeats.ask(monitor, address, timeout_s)
            else:
                told = {
                    "REPLICATOR_ADDRESS": ip_of(address.address),
                    "REPLICATOR_GROUP": monitor.name,
                    "REPLICATOR_SOURCE_HOST": settings.source_host,
                }
                await probe(asked.check, ip_of(address.address), told, timeout_s)
        except Silent as reason:
            machine.silent(asked, str(reason))
        except Unable as reason:
            machine.unable(asked, f"this host cannot ask: {reason}")
        except Exception as error:  # a bug: it must neither end the agent nor look like a dead source
            traceback.print_exc(file=sys.stderr)
            machine.unable(asked, f"this host cannot ask: a bug ({type(error).__name__}), see its log")
        else:
            machine.answered(asked)

    # --- what follows ---

    async def _note(self, monitor: Monitor, changes: list[Change]) -> None:
        for change in changes:
            fields = {"name": monitor.name, "address": change.address}
            if change.news is News.SILENT:
                text = self.tell(events.ADDRESS_SILENT, **fields, reason=change.reason or "no answer")
                await self._groups.note(monitor, "silent", text)
            elif change.news is News.ANSWERS:
                text = self.tell(events.ADDRESS_ANSWERS, **fields)
                await self._groups.note(monitor, "answers", text)

    async def _decide(self, monitor: Monitor, driven: _Driven) -> None:
        assert driven.machine is not None
        if driven.machine.is_alive and monitor.phase in (Phase.ASKING, Phase.DECLINED):
            await self._groups.step(monitor.uuid, GroupEvent.SOURCE_ANSWERS)
            text = self.tell(
                events.FAILOVER_WITHDRAWN, name=monitor.name, source=monitor.settings.source_host
            )
            await self._groups.note(monitor, "alive", text)
            driven.asked, driven.reason = False, ""
        elif driven.machine.failed and monitor.phase is Phase.WATCHING:
            if driven.attempt is None or driven.attempt.ended.is_set():
                await self._fail(monitor, driven)
        elif monitor.phase is Phase.ASKING and not driven.asked:
            await self._ask(monitor, driven)

    async def _fail(self, monitor: Monitor, driven: _Driven) -> None:
        """FO-16, FO-09."""
        assert driven.machine is not None
        silent = [view for view in driven.machine.views() if view.failed]
        driven.reason = "; ".join(f"{view.address}: {view.reason or 'no answer'}" for view in silent)
        source = monitor.settings.source_host
        if not monitor.settings.automatic:
            # Durable first: what is told twice does no harm, a question that nobody remembers does.
            monitor = await self._groups.step(monitor.uuid, GroupEvent.SOURCE_FAILED)
        text = self.tell(
            events.ADDRESSES_SILENT,
            name=monitor.name,
            source=source,
            addresses=", ".join(view.address for view in silent),
            reason=driven.reason,
        )
        await self._groups.note(monitor, "failed", text)
        self.tell(events.FAILOVER_CONDITION, name=monitor.name, source=source)
        if monitor.settings.automatic:
            reason = f"{source} has failed ({driven.reason})"
            assert self._nursery is not None
            driven.attempt = _Attempt()
            # Beside the watching: as long as nothing is final, the source may answer again.
            self._nursery.start_soon(
                self._take_over, monitor.uuid, reason, False, driven.attempt, Order.MONITOR
            )
        else:
            await self._ask(monitor, driven)

    async def _ask(self, monitor: Monitor, driven: _Driven) -> None:
        driven.asked = True
        text = self.tell(events.FAILOVER_ASKED, name=monitor.name, source=monitor.settings.source_host)
        await self._groups.note(monitor, "asked", text)
        assert self._nursery is not None
        self._nursery.start_soon(self._run_question_script, monitor, driven.reason)

    async def _run_question_script(self, monitor: Monitor, reason: str) -> None:
        try:
            await self.run_question_script(monitor, reason)
        except OUTSIDE as error:
            self.tell(events.ADVICE, text=f"monitor {monitor.name}: its question script: {reason_of(error)}")

    async def _take_over(
        self, uuid: str, reason: str, forced: bool, attempt: _Attempt, order: Order = Order.PERSON
    ) -> None:
        monitor = self._groups.get(uuid)
        try:
            if monitor is None:
                return
            source = monitor.settings.source_host
            if self.taking_over is None:
                raise ReplicatorError("this agent cannot take over")
            self.tell(events.FAILOVER_STARTED, name=monitor.name, source=source, reason=reason)
            assert self._nursery is not None
            self._nursery.start_soon(self.get_ready, monitor)
            await self._groups.note(monitor, "begun", f"failover of {source}: {reason}")
            await self._fail_over(monitor, self.taking_over, reason, forced, order)
        except OUTSIDE as error:
            known = error if isinstance(error, ReplicatorError) else ReplicatorError(reason_of(error))
            attempt.error = known
            await self._could_not(uuid, str(known))
        finally:
            attempt.ended.set()

    async def _fail_over(
        self, monitor: Monitor, taking_over: TakesOver, reason: str, forced: bool, order: Order
    ) -> None:
        """What begins by itself does so once the disk takes its notes: no person is asked about that."""
        said = ""
        while order is not Order.MONITOR or self.has_failed(monitor.uuid):
            try:
                await taking_over.fail_over(monitor.uuid, reason=reason, forced=forced, order=order)
                return
            except OSError as error:
                if order is not Order.MONITOR:
                    raise
                said = self._trouble(monitor, reason_of(error), said)
            await trio.sleep(limits.FAILOVER_AGAIN_S)

    def _trouble(self, monitor: Monitor, reason: str, said: str) -> str:
        """Tells what holds a decision up, once. Returns what is said now."""
        if reason != said:
            self.tell(events.FAILOVER_TASK_FAILED, what=f"monitor {monitor.name}", reason=reason)
        return reason

    async def _could_not(self, uuid: str, reason: str) -> None:
        """Not even begun: a person is asked."""
        monitor = self._groups.get(uuid)
        if monitor is None:
            return
        text = self.tell(events.FAILOVER_NOT_BEGUN, name=monitor.name, reason=reason)
        await self._groups.note(monitor, "not-begun", text)
        if monitor.phase is Phase.WATCHING and self.has_failed(uuid):
            with suppress(ReplicatorError):  # then the next look finds the same again
                await self._groups.step(uuid, GroupEvent.SOURCE_FAILED)
