"""Failback of a group, on the agent that owns it: looked at, begun, given up (docs/developers/failover.md).

The counterpart of `failover_plan.py`. Which steps, in which order: `failback_steps.py`; what does them:
`failback_parts.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from replicator import limits
from replicator.agent.failover.failback_parts import Parts
from replicator.agent.failover.failback_steps import FailbackSteps
from replicator.agent.failover.procedures import Kind, Procedures
from replicator.errors import ReplicatorError
from replicator.failover.handback import Home, Order, Preview, Situation, Then, preview
from replicator.failover.phases import GroupEvent
from replicator.failover.plan_runner import Plan
from replicator.failover_reports import Report, ReportOutcome
from replicator.failovers import Monitor

FAILBACK, FAILBACK_AND_STOP, STAY = "failback", "failback without monitoring", "reversal"
"""Kinds of procedures."""
KINDS = (FAILBACK, FAILBACK_AND_STOP, STAY)


@dataclass
class _Beginning:
    ended: trio.Event = field(default_factory=trio.Event)
    error: ReplicatorError | None = None


class Failback:
    """`Service.failover.failback`."""

    def __init__(
        self, procedures: Procedures, get: Callable[[str], Monitor | None], owner: str, parts: Parts
    ) -> None:
        """`get`: the monitor of a group. `owner`: the name of this agent."""
        self._procedures = procedures
        self._get = get
        self._owner = owner
        self._parts = parts
        self._nursery: trio.Nursery | None = None
        begins, undone = GroupEvent.HAND_BACK, GroupEvent.HAND_BACK_UNDONE
        for name, completed in (
            (FAILBACK, GroupEvent.HANDED_BACK),
            (FAILBACK_AND_STOP, GroupEvent.HANDED_BACK_FOR_GOOD),
            (STAY, GroupEvent.HANDED_BACK_FOR_GOOD),  # there is no group any more by then
        ):
            procedures.register(Kind(name, self.plan, begins, completed, undone))

    async def run(self) -> None:
        """Until cancelled: what is asked for by `begin` goes on in here."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    async def look(self, group: str, order: Order, then: Then) -> Preview:
        """The state of both sides, and what a failback would do. Changes nothing. Raises ReplicatorError:
        there is no such group.
        """
        monitor = self._monitor(group)
        return preview(
            Situation(
                monitor=monitor,
                owner=self._owner,
                order=order,
                then=then,
                home=await self._look_home(monitor),
                behind=tuple(await self._parts.own.behind(monitor)),
                connections=self._parts.own.connections(monitor),
            )
        )

    async def _look_home(self, monitor: Monitor) -> Home:
        """A copy whose receiver does not answer is given time: it starts when its agent does, and when home
        has just become a copy.
        """
        deadline_s = trio.current_time() + limits.FAILBACK_PREPARE_S
        while (home := await self._parts.home.look(monitor)).is_silent:
            if trio.current_time() > deadline_s:
                break
            await trio.sleep(limits.FAILBACK_LOOK_S / 4)
        return home

    async def fail_back(
        self, group: str, *, order: Order, then: Then, reason: str, forced: bool = False
    ) -> Report:
        """Go home, or go on with a failback that waits for a person. Returns when it has ended or waits: the
        report says which. Cancelled, it goes on. Raises ReplicatorError: it cannot begin.
        """
        monitor = self._monitor(group)
        if self._procedures.report(group) is None:
            found = await self.look(group, order, then)
            if found.refused:
                raise ReplicatorError("; ".join(found.refused))
        kind = STAY if order is Order.STAY else FAILBACK if then is Then.MONITOR else FAILBACK_AND_STOP
        arguments = {
            "monitor": monitor,
            "order": order,
            "then": then,
            "connections": self._parts.own.connections(monitor),
        }
        return await self._procedures.start(kind, group, arguments, reason=reason, forced=forced)

    async def begin(self, group: str, *, order: Order, then: Then, reason: str, forced: bool = False) -> None:
        """The same; it goes on after this returns. Raises ReplicatorError if it cannot begin."""
        assert self._nursery is not None
        began = _Beginning()

        async def work() -> None:
            try:
                await self.fail_back(group, order=order, then=then, reason=reason, forced=forced)
            except ReplicatorError as error:
                began.error = error
            began.ended.set()

        self._nursery.start_soon(work)
        while not began.ended.is_set() and self._procedures.report(group) is None:
            with trio.move_on_after(limits.FAILBACK_POLL_S):
                await began.ended.wait()
        if began.error is not None:
            raise began.error

    async def abandon(self, group: str) -> None:
        """Raises ReplicatorError: there is none, or it is final."""
        if not await self._procedures.abandon(group, "a person has given it up"):
            raise ReplicatorError("nothing is under way that could be taken back")

    async def without_home(self, group: str) -> None:
        """A person says that home is lost for good: this host becomes a copy of what home may own, and can
        take over from it. Nothing, if no failback of the group is under way. Raises ReplicatorError: it can
        still be taken back, or halts all the same.
        """
        present = self._procedures.report(group)
        if present is None or present.kind not in KINDS:
            return
        name = self._monitor(group).name
        report = await self._procedures.lose_other_side(group)
        if report is None:
            raise ReplicatorError(
                f"{name}: the failback that is under way can be taken back, this host owns the group still:"
                f" dtctl failback {name} --abandon"
            )
        if report.outcome is not ReportOutcome.COMPLETED:
            raise ReplicatorError(f"{name}: the failback without home halts: {report.text}")

    async def last(self, group: str) -> Report | None:
        """The one under way, or the last that has ended."""
        reports = [r for r in await self._procedures.reports(group) if r.kind in KINDS]
        return reports[-1] if reports else None

    def _monitor(self, group: str) -> Monitor:
        monitor = self._get(group)
        if monitor is None:
            raise ReplicatorError(f"there is no monitor {group}")
        return monitor

    def plan(self, arguments: Mapping[str, Any]) -> Plan:
        """The steps for a monitor as it was when the failback began."""
        plain = msgspec.to_builtins(dict(arguments))
        monitor = msgspec.convert(plain["monitor"], Monitor)
        steps = FailbackSteps(monitor, self._parts, msgspec.convert(plain["connections"], tuple[str, ...]))
        match msgspec.convert(plain["order"], Order):
            case Order.RESTORE_FIRST:
                return Plan(FAILBACK, steps.restore_first())
            case Order.FAILBACK_FIRST:
                return Plan(FAILBACK, steps.failback_first())
            case Order.STAY:
                return Plan(STAY, steps.stay(msgspec.convert(plain["then"], Then)))
