"""The failover of a group: its steps in order, what stops it, and a kill after every write of its notes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from kit.disk import MemoryDisk, ProcessDied, SteppingClock
from kit.plans import InlineWorld

from replicator import limits
from replicator.agent.failover.failover_plan import Failover, FailoverSteps
from replicator.agent.failover.group_copies import GroupCopy
from replicator.agent.failover.procedure import (
    ADDRESSES,
    DRAIN,
    FENCE,
    OPEN,
    PROBE,
    PROMOTE,
    Facts,
    Parts,
    Question,
    Say,
    Taken,
)
from replicator.agent.failover.procedures import Procedures
from replicator.cli import render
from replicator.cli.render_failover_reports import failover_reports
from replicator.errors import ReplicatorError
from replicator.failover.candidate import Order
from replicator.failover.plan_runner import Step
from replicator.failover_reports import Report, ReportOutcome, StepOutcome
from replicator.failovers import (
    CopyReport,
    Monitor,
    MonitorSettings,
    Phase,
    Promotion,
    Script,
    ScriptKind,
    Take,
    TakeOver,
    WatchedAddress,
)
from replicator.failovers import Report as TakeOverReport

SETTINGS = MonitorSettings(
    source_host="alpha",
    addresses=(WatchedAddress(address="10.0.0.5/24"),),
    fence_command="power off",
    host_name="alpha",
    scripts={kind: Script(path=f"/{kind}") for kind in (ScriptKind.PRE_FAILOVER, ScriptKind.POST_FAILOVER)},
)
MONITOR = Monitor(uuid="group", name="web", settings=SETTINGS, epoch=4)
ORDER = [
    "check", "fence", "vote", "pre-failover", "probe", "drain", "promote", "open", "take", "host name",
    "post-failover", "tell",
]  # fmt: skip


@dataclass
class Outside:
    """All that the steps do, surviving every crash. `fails`: how often a step does so from now on."""

    disk: MemoryDisk = field(default_factory=MemoryDisk)
    monitor: Monitor = MONITOR
    done: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    forced: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    voted: int = 0
    noted: str = ""
    stands_still: bool = False
    epoch: int = 4
    promotion: Promotion | None = None
    orders: list[Order] = field(default_factory=list)
    fenced: list[bool | None] = field(default_factory=list)
    opened: bool = False
    has: bool = False
    waits_in: str = ""
    reports: list[Report] = field(default_factory=list)

    async def _do(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append(what)
        if self.waits_in == what:
            await trio.sleep_forever()
        if self.fails.get(what, 0):
            self.fails[what] -= 1
            raise ReplicatorError(f"{what} does not work")

    # Groups
    def get(self, uuid: str) -> Monitor | None:
        return self.monitor if uuid == self.monitor.uuid else None

    async def set_phase(self, uuid: str, phase: Phase) -> Monitor:
        await trio.lowlevel.checkpoint()
        self.monitor = msgspec.structs.replace(self.monitor, phase=phase)
        return self.monitor

    async def change(self, uuid: str, **fields: Any) -> Monitor:
        await trio.lowlevel.checkpoint()
        self.monitor = msgspec.structs.replace(self.monitor, **fields)
        return self.monitor

    # Fence
    async def fence(self, monitor: Monitor, *, epoch: int, reason: str, attempt: str, say: Say) -> None:
        assert epoch == self.epoch + 1 and self.noted
        say("switched off")
        await self._do("fence")

    # Arbiter
    async def check(self, question: Question) -> None:
        self.orders.append(question.order)
        await self._do("check")

    async def before_fence(self, question: Question, say: Say) -> None:
        assert question.fenced is None
        self.noted = question.attempt

    async def agree(self, question: Question, say: Say) -> str:
        assert question.epoch == self.epoch + 1 and question.copies == ("c",)
        self.fenced.append(question.fenced)
        self.voted = question.epoch
        await self._do("vote")
        return "witness"

    async def withdraw(self, question: Question) -> None:
        await self._do("withdraw")
        self.voted = 0

    # Copies
    async def of(self, monitor: Monitor) -> list[GroupCopy]:
        await trio.lowlevel.checkpoint()
        return [GroupCopy(connection="c", repset="data", roots=())]

    # Data
    def record(self, group: str) -> Promotion | None:
        return self.promotion

    async def look(self, order: TakeOver) -> TakeOverReport:
        await trio.lowlevel.checkpoint()
        return TakeOverReport(group="group", epoch=self.epoch + 1)

    async def drain(self, order: TakeOver) -> TakeOverReport:
        assert order.epoch == self.epoch + 1 and order.copies == ("c",)
        self.stands_still = True
        await self._do("drain")
        copy = CopyReport(connection="c", received={"j": 9}, applied={"j": 9}, applied_until=123.0)
        return TakeOverReport(group="group", epoch=order.epoch, copies=(copy,))

    async def release(self, order: TakeOver) -> None:
        await self._do("release")
        assert self.promotion is None, "the source may not go on once somebody else owns the group"
        self.stands_still = False

    async def promote(self, order: TakeOver) -> Promotion:
        await self._do("promote")
        assert self.stands_still and self.voted == order.epoch and order.vote == "witness"
        made = Promotion(group="group", epoch=order.epoch, parent_epoch=4, owner="me", owner_name="beta")
        self.epoch, self.promotion = order.epoch, made
        return made

    async def open(self, group: str) -> TakeOverReport:
        await self._do("open")
        assert self.monitor.epoch == self.epoch
        self.opened = True
        return TakeOverReport(group="group", epoch=self.epoch)

    async def tell(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        await self._do("tell")

    # Scripts
    async def run(self, facts: Facts, attempt: str, say: Say) -> None:
        self.attempts.append(attempt)
        assert (facts.promotion is not None) == (facts.kind is ScriptKind.POST_FAILOVER)
        await self._do(facts.kind)

    # Addresses
    async def probe(self, monitor: Monitor, *, forced: bool, say: Say) -> None:
        await self._do("probe")

    async def take(self, monitor: Monitor, *, forced: bool, say: Say) -> Taken:
        assert self.opened and self.promotion is not None
        self.forced += [ADDRESSES] if forced else []
        await self._do("take")
        self.has = True
        return Taken(taken=("10.0.0.5/24 on eth0",))

    async def give_up(self, monitor: Monitor, say: Say) -> None:
        raise NotImplementedError

    async def set_host_name(self, monitor: Monitor) -> None:
        await self._do("host name")

    # --- one life of the agent ---

    def agent(self) -> tuple[Procedures, Failover]:
        world = InlineWorld(disk=self.disk, clock=SteppingClock())
        procedures = Procedures("/home/failover", self, world, self.hears)
        return procedures, Failover(procedures, "me", self.parts())

    def parts(self) -> Parts:
        return Parts(self, self, self, self, self, self, self, self)

    async def hears(self, report: Report) -> None:
        await trio.lowlevel.checkpoint()
        self.reports.append(report)

    async def fail_over(self, *, forced: bool = False) -> Report:
        procedures, failover = self.agent()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(procedures.run)
            report = await failover.fail_over("group", reason="it is silent", forced=forced)
            nursery.cancel_scope.cancel()
        return report

    async def start_again(self) -> Report:
        """Wait until what was under way has ended, or halted. Returns the last report."""
        procedures, _ = self.agent()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(procedures.run)
            await procedures.ready()
            await trio.testing.wait_all_tasks_blocked()
            reports = await procedures.reports("group")
            nursery.cancel_scope.cancel()
        return reports[-1]


async def test_the_order() -> None:
    outside = Outside()
    report = await outside.fail_over()
    assert outside.done == ORDER
    assert outside.monitor.phase is Phase.ACTIVE
    assert report.outcome is ReportOutcome.COMPLETED
    assert report.epoch == 5 and report.recovery_point == 123.0
    assert report.addresses == ("10.0.0.5/24 on eth0",)
    assert report.steps[1].said == ("switched off",)
    assert all(step.outcome is StepOutcome.DONE for step in report.steps)
    assert outside.reports == [report]
    assert outside.orders == [Order.PERSON] and outside.fenced == [True]
    assert await outside.start_again() == report


@pytest.mark.parametrize("step", ["check", "fence", "vote", "pre-failover", "probe", "drain", "promote"])
async def test_what_fails_before_the_promotion_takes_everything_back(step: str) -> None:
    outside = Outside(fails={step: 1})
    report = await outside.fail_over()
    assert report.outcome is ReportOutcome.TAKEN_BACK and f"{step} does not work" in report.text
    assert (outside.voted, outside.stands_still, outside.epoch, outside.has) == (0, False, 4, False)
    assert outside.monitor.phase is Phase.ASKING
    assert (await outside.fail_over()).outcome is ReportOutcome.COMPLETED


async def test_copies_that_cannot_be_opened_yet_are_tried_again(autojump_clock: object) -> None:
    outside = Outside(fails={"open": 3})
    report = await outside.fail_over()
    assert report.outcome is ReportOutcome.COMPLETED
    assert outside.done.count("open") == 4
    said = next(step.said for step in report.steps if step.name == OPEN)
    assert said == ("tried again: open does not work",) * 3


@pytest.mark.parametrize("step", ["open", "take", "post-failover"])
async def test_what_fails_afterwards_waits_for_a_person(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLAN_TRIES", 1)
    outside = Outside(fails={step: 1})
    report = await outside.fail_over()
    assert report.outcome is ReportOutcome.HALTED and f"{step} does not work" in report.text
    assert outside.monitor.phase is Phase.TAKING_OVER
    assert outside.epoch == 5
    # A restart of the agent tries it once more by itself.
    report = await outside.start_again()
    assert report.outcome is ReportOutcome.COMPLETED and report.interruptions == 1
    assert outside.monitor.phase is Phase.ACTIVE
    assert len(outside.attempts) == len(set(outside.attempts))  # what has failed is run again


async def test_what_is_final_is_not_abandoned() -> None:
    outside = Outside(fails={"take": 1})
    procedures, failover = outside.agent()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(procedures.run)
        await failover.fail_over("group", reason="", forced=False)
        with pytest.raises(ReplicatorError, match="owns the group already"):
            await failover.abandon("group")
        nursery.cancel_scope.cancel()


async def test_a_person_forces_what_waits() -> None:
    outside = Outside(fails={"take": 1})
    procedures, failover = outside.agent()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(procedures.run)
        report = await failover.fail_over("group", reason="silent", forced=False)
        assert report.outcome is ReportOutcome.HALTED and outside.forced == []
        report = await failover.fail_over("group", reason="a person", forced=True)
        nursery.cancel_scope.cancel()
    assert report.outcome is ReportOutcome.COMPLETED and report.forced
    assert outside.forced == [ADDRESSES]


async def test_a_fence_command_that_fails_stops_everybody_but_a_person() -> None:
    outside = Outside(fails={"fence": 1})
    report = await outside.fail_over()
    assert report.text == f"{FENCE}: fence does not work"
    outside.fails["fence"] = 1
    report = await outside.fail_over(forced=True)
    assert report.outcome is ReportOutcome.COMPLETED
    assert report.steps[1].said == ("switched off", "forced in spite of: fence does not work")
    assert outside.orders[-1] is Order.FORCE and outside.fenced == [False]


async def test_who_has_taken_over_does_not_do_so_again() -> None:
    outside = Outside()
    await outside.fail_over()
    with pytest.raises(ExceptionGroup) as caught:
        await outside.fail_over()
    assert caught.group_contains(ReplicatorError, match="no failover can begin: it is failed over")
    assert outside.done.count("promote") == 1 and outside.monitor.phase is Phase.ACTIVE


async def test_what_is_optional_halts_nothing() -> None:
    outside = Outside(fails={"tell": 1, "host name": 1})
    report = await outside.fail_over()
    assert report.outcome is ReportOutcome.COMPLETED
    failed = [step.name for step in report.steps if step.outcome is StepOutcome.FAILED]
    assert failed == ["host name", "tell"]


async def test_only_what_is_configured_is_done() -> None:
    monitor = msgspec.structs.replace(MONITOR, settings=MonitorSettings(source_host="alpha"))
    outside = Outside(monitor=monitor)
    await outside.fail_over()
    assert outside.done == ["check", "vote", "drain", "promote", "open", "tell"]


async def test_addresses_that_others_move_are_left_alone() -> None:
    settings = MonitorSettings(
        source_host="alpha", addresses=(WatchedAddress(address="10.0.0.5/24"),), take=Take.NONE
    )
    outside = Outside(monitor=msgspec.structs.replace(MONITOR, settings=settings))
    await outside.fail_over()
    assert outside.done == ["check", "vote", "drain", "promote", "open", "tell"]


async def test_whoever_asked_may_go_away() -> None:
    outside = Outside(waits_in="drain")
    procedures, failover = outside.agent()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(procedures.run)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when, lambda: "drain" in outside.done, scope)
            await failover.fail_over("group", reason="", forced=False)
        assert scope.cancelled_caught
        report = procedures.report("group")
        assert report is not None and report.outcome is ReportOutcome.RUNNING
        with pytest.raises(ReplicatorError, match="a failover of this group is under way"):
            await failover.fail_over("group", reason="", forced=False)
        await failover.abandon("group")
        await trio.testing.wait_all_tasks_blocked()
        assert procedures.report("group") is None
        assert (await procedures.reports("group"))[-1].text == "a person has given it up"
        with pytest.raises(ReplicatorError, match="no failover of this group is under way"):
            await failover.abandon("group")
        nursery.cancel_scope.cancel()
    assert not outside.stands_still and outside.monitor.phase is Phase.ASKING


async def _cancel_when(true: Callable[[], bool], scope: trio.CancelScope) -> None:
    while not true():
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("when", ["before", "after", "torn"])
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power loss"])
async def test_a_kill_at_every_call_of_the_disk(when: str, power: bool) -> None:
    undisturbed = Outside()
    await undisturbed.fail_over()
    seen = set()
    for call in range(1, undisturbed.disk.calls + 1):
        outside = Outside()
        outside.disk.die_at(call, when)  # type: ignore[arg-type]
        try:
            await outside.fail_over()
        except* ProcessDied:
            pass
        outside.disk.lose_power() if power else outside.disk.die()
        assert (outside.promotion is None) == (outside.epoch == 4)
        procedures, _ = outside.agent()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(procedures.run)
            await procedures.ready()
            await trio.testing.wait_all_tasks_blocked()
            reports = await procedures.reports("group")
            nursery.cancel_scope.cancel()
        if not reports:  # it was killed before anything was noted
            assert outside.done == [] and outside.monitor.phase is Phase.WATCHING
            continue
        outcome = reports[-1].outcome
        seen.add(outcome)
        assert len(reports) == 1
        if outcome is ReportOutcome.COMPLETED:
            assert outside.epoch == 5 and outside.opened and outside.has
            assert outside.monitor.phase is Phase.ACTIVE
        else:
            assert outcome is ReportOutcome.TAKEN_BACK
            assert (outside.voted, outside.stands_still, outside.epoch) == (0, False, 4)
            assert outside.monitor.phase in (Phase.ASKING, Phase.WATCHING)
        assert outside.disk.listdir("/home/failover") == ["group.reports"]
    assert seen == {ReportOutcome.COMPLETED, ReportOutcome.TAKEN_BACK}


async def test_notes_that_are_damaged_stop_failovers_of_that_group_and_nothing_else() -> None:
    outside = Outside(fails={"take": 1})
    await outside.fail_over()
    handle = outside.disk.open_append("/home/failover/group.plan")
    outside.disk.append(handle, [b"XX"], 60)
    warned: list[str] = []
    world = InlineWorld(disk=outside.disk, clock=SteppingClock())
    procedures = Procedures("/home/failover", outside, world, warn=warned.append)
    failover = Failover(procedures, "me", outside.parts())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(procedures.run)
        with pytest.raises(ReplicatorError, match="has to be looked at first"):
            await failover.fail_over("group", reason="", forced=False)
        nursery.cancel_scope.cancel()
    assert "is damaged" in warned[0]


async def test_reports_as_people_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [await Outside().fail_over(), await Outside(fails={"drain": 1}).fail_over()]
    render.show(failover_reports(msgspec.to_builtins(reports)))
    text = capsys.readouterr().out
    assert "failover of web" in text and "completed" in text and "taken back" in text
    assert "because: it is silent" in text and "drain does not work" in text and "switched off" in text


# --- planted mistakes are found ---


def _does_not_look_for_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outside, "record", lambda self, group: None)


def _notes_are_not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryDisk, "fsync", lambda self, handle: None)


def _promotes_before_the_copies_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FailoverSteps.all

    def all_(self: FailoverSteps) -> list[Step]:
        steps = list(real(self))
        at = [step.name for step in steps].index(DRAIN)
        steps[at], steps[at + 1] = steps[at + 1], steps[at]
        return steps

    monkeypatch.setattr(FailoverSteps, "all", all_)


@pytest.mark.parametrize(
    "plant",
    [_does_not_look_for_the_record, _notes_are_not_synced, _promotes_before_the_copies_stand_still],
)
async def test_a_planted_mistake_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ReplicatorError, ExceptionGroup)):
        await test_a_kill_at_every_call_of_the_disk("after", True)


async def test_names_of_steps_are_kept() -> None:
    """Notes and reports of earlier releases have them."""
    assert (FENCE, PROBE, DRAIN, PROMOTE) == ("fence command", "address conflicts", "drain", "promote")
