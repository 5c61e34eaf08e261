"""Failover of a group, on its target, as a plan: which steps, in which order (docs/developers/failover.md).

What a step does is the affair of others, each behind a small protocol (`procedure.py`). All of it may be
called again after a crash in the middle.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from replicator import limits
from replicator.agent.failover.procedure import (
    ADDRESSES,
    CHECK,
    DRAIN,
    FAILOVER,
    FENCE,
    HOST_NAME,
    OPEN,
    POST_SCRIPT,
    PRE_SCRIPT,
    PROBE,
    PROMOTE,
    TELL,
    VOTE,
    Checked,
    Drained,
    Facts,
    Fenced,
    Parts,
    Question,
    Taken,
    Voted,
)
from replicator.agent.failover.procedures import Kind, Procedures
from replicator.errors import ReplicatorError
from replicator.failover.candidate import Order
from replicator.failover.phases import GroupEvent
from replicator.failover.plan_runner import Plan, Run, Step
from replicator.failover_reports import Report
from replicator.failovers import Monitor, Promotion, ScriptKind, TakeOver


class Failover:
    """`Service.failover.procedure`. `agent`: the uuid of this one."""

    def __init__(self, procedures: Procedures, agent: str, parts: Parts) -> None:
        self._procedures = procedures
        self._agent = agent
        self._parts = parts
        procedures.register(
            Kind(FAILOVER, self.plan, GroupEvent.BEGIN, GroupEvent.COMPLETED, GroupEvent.TAKEN_BACK)
        )

    async def fail_over(self, group: str, *, reason: str, forced: bool, order: Order | None = None) -> Report:
        """Take over, or go on with a failover that waits for a person. Returns when it has ended or waits
        again: the report says which. Cancelled, the failover goes on. Raises ReplicatorError if there is no
        such group, or something else is under way.

        `order`: who wants it; None: a person. `forced`: a person wants it in spite of a fence command that
        fails, a witness that is not there, or addresses that somebody else still has.
        """
        monitor = self._parts.groups.get(group)
        if monitor is None:
            raise ReplicatorError(f"there is no monitor {group}")
        order = Order.FORCE if forced and order is not Order.OFF else order or Order.PERSON
        arguments = {"monitor": monitor, "order": order}
        return await self._procedures.start(FAILOVER, group, arguments, reason=reason, forced=forced)

    async def abandon(self, group: str) -> None:
        """Take back what is under way. Raises ReplicatorError: nothing is, or it is final already."""
        report = self._procedures.report(group)
        if report is None or report.kind != FAILOVER:
            raise ReplicatorError("no failover of this group is under way")
        if not await self._procedures.abandon(group, "a person has given it up"):
            raise ReplicatorError(
                "this host owns the group already: it can be completed (dtctl failover now), or led home"
                " afterwards (dtctl failback)"
            )

    def plan(self, arguments: Mapping[str, Any]) -> Plan:
        """The steps for a monitor as it was when the failover began."""
        monitor = msgspec.convert(msgspec.to_builtins(arguments["monitor"]), Monitor)
        steps = FailoverSteps(monitor, Order(arguments["order"]), self._agent, self._parts)
        return Plan(FAILOVER, steps.all())


class FailoverSteps:
    """Of one failover."""

    def __init__(self, monitor: Monitor, order: Order, agent: str, parts: Parts) -> None:
        self._monitor = monitor
        self._order = order
        self._agent = agent
        self._parts = parts

    def all(self) -> list[Step]:
        settings = self._monitor.settings
        scripts, takes = settings.scripts, bool(settings.taken)
        steps: list[Step | None] = [
            Step(CHECK, self._check),
            Step(FENCE, self._fence, undo=self._withdraw) if settings.fence_command else None,
            Step(VOTE, self._vote, undo=self._withdraw),
            self._script(PRE_SCRIPT, ScriptKind.PRE_FAILOVER) if ScriptKind.PRE_FAILOVER in scripts else None,
            Step(PROBE, self._probe) if takes else None,
            Step(DRAIN, self._drain, undo=self._release),
            Step(PROMOTE, self._promote, commits=True, was_done=self._was_promoted),
            Step(OPEN, self._open, tries=limits.PLAN_TRIES),
            Step(ADDRESSES, self._take) if takes else None,
            Step(HOST_NAME, self._name, optional=True) if settings.host_name else None,
            self._script(POST_SCRIPT, ScriptKind.POST_FAILOVER)
            if ScriptKind.POST_FAILOVER in scripts
            else None,
            Step(TELL, self._tell, optional=True),
        ]
        return [step for step in steps if step is not None]

    # --- before anything is final ---

    async def _check(self, run: Run) -> Checked:
        settings = self._monitor.settings
        await self._end_drills()
        copies = settings.copies or tuple(c.connection for c in await self._parts.copies.of(self._monitor))
        order = TakeOver(group=self._monitor.uuid, copies=copies, parent_epoch=self._monitor.epoch)
        report = await self._parts.data.look(order)
        flaws = {copy.repset or copy.connection: copy.problem for copy in report.copies if copy.problem}
        checked = Checked(epoch=report.epoch, copies=copies)
        await self._parts.arbiter.check(self._question(run, checked, flaws))
        return checked

    async def _end_drills(self) -> None:
        if self._parts.drills is not None:
            await self._parts.drills.give_way(self._monitor.uuid)

    async def _fence(self, run: Run) -> Fenced:
        if self._order is Order.OFF:
            run.say("not run: the source is off, somebody says")
            return Fenced(fenced=False)
        await self._parts.arbiter.before_fence(self._question(run), run.say)
        try:
            await self._parts.fence.fence(
                self._monitor,
                epoch=run.result(CHECK, Checked).epoch,
                reason=run.reason,
                attempt=self._attempt(run, FENCE),
                say=run.say,
            )
        except ReplicatorError as error:
            if not run.forced:
                raise
            run.say(f"forced in spite of: {error}")
            return Fenced(fenced=False)
        return Fenced(fenced=True)

    async def _vote(self, run: Run) -> Voted:
        return Voted(vote=await self._parts.arbiter.agree(self._question(run), run.say))

    async def _withdraw(self, run: Run) -> None:
        await self._parts.arbiter.withdraw(self._question(run))

    async def _probe(self, run: Run) -> None:
        await self._parts.addresses.probe(self._monitor, forced=run.forced, say=run.say)

    async def _drain(self, run: Run) -> Drained:
        await self._end_drills()  # of an agent that was killed in the middle
        report = await self._parts.data.drain(self._take_over(run))
        for copy in report.copies:
            if copy.left_operations:
                run.say(f"{copy.repset}: {copy.left_operations} operations had arrived and are not applied")
        return Drained(drained=report.copies)

    async def _release(self, run: Run) -> None:
        await self._parts.data.release(self._take_over(run))

    async def _promote(self, run: Run) -> Promotion:
        return await self._parts.data.promote(self._take_over(run))

    async def _was_promoted(self, run: Run) -> Promotion | None:
        """A record of somebody else's means that it was not this one."""
        record = self._parts.data.record(self._monitor.uuid)
        epoch = run.result(CHECK, Checked).epoch
        return record if record and (record.epoch, record.owner) == (epoch, self._agent) else None

    # --- afterwards ---

    async def _open(self, run: Run) -> None:
        await self._parts.groups.change(self._monitor.uuid, epoch=self._promotion(run).epoch)
        await self._parts.data.open(self._monitor.uuid)

    async def _take(self, run: Run) -> Taken:
        return await self._parts.addresses.take(self._monitor, forced=run.forced, say=run.say)

    async def _name(self, run: Run) -> None:
        await self._parts.addresses.set_host_name(self._monitor)

    async def _tell(self, run: Run) -> None:
        await self._parts.telling.tell(self._monitor, self._promotion(run), run.say)

    # --- what they need ---

    def _question(
        self, run: Run, checked: Checked | None = None, flaws: dict[str, str] | None = None
    ) -> Question:
        checked = checked or run.result(CHECK, Checked)
        return Question(
            monitor=self._monitor,
            order=Order.FORCE if run.forced and self._order is not Order.OFF else self._order,
            attempt=run.uuid,
            epoch=checked.epoch,
            copies=checked.copies,
            flaws=flaws or {},
            fenced=run.result(FENCE, Fenced).fenced if run.has_done(FENCE) else None,
        )

    def _take_over(self, run: Run) -> TakeOver:
        checked = run.result(CHECK, Checked)
        return TakeOver(
            group=self._monitor.uuid,
            copies=checked.copies,
            parent_epoch=self._monitor.epoch,
            epoch=checked.epoch,
            drain_s=self._monitor.settings.drain_s,
            forced=run.forced,
            reason=run.reason,
            vote=run.result(VOTE, Voted).vote if run.has_done(VOTE) else "",
        )

    def _promotion(self, run: Run) -> Promotion:
        return run.result(PROMOTE, Promotion)

    def _attempt(self, run: Run, step: str) -> str:
        return f"{run.uuid}-{step.replace(' ', '-')}-{run.failures(step)}"

    def _facts(self, run: Run, kind: ScriptKind) -> Facts:
        return Facts(
            monitor=self._monitor,
            kind=kind,
            epoch=run.result(CHECK, Checked).epoch,
            reason=run.reason,
            forced=run.forced,
            promotion=self._promotion(run) if run.has_done(PROMOTE) else None,
            copies=run.result(DRAIN, Drained).drained if run.has_done(DRAIN) else (),
        )

    def _script(self, name: str, kind: ScriptKind) -> Step:
        async def run_script(run: Run) -> None:
            await self._parts.scripts.run(self._facts(run, kind), self._attempt(run, name), run.say)

        return Step(name, run_script)
