"""Procedures of groups: runs them, goes on with them after a crash, keeps what became of them.

A procedure is a plan (`replicator/failover/plan.py`) of one **kind**: failover, failback. At most one is
under way for a group. It goes on when whoever asked for it has gone, and when its agent starts again.
"""

import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import trio

from replicator import limits
from replicator.agent.state import StateError, new_uuid
from replicator.errors import ReplicatorError
from replicator.failover.phases import GROUP, GroupEvent
from replicator.failover.plan import Opened, Outcome
from replicator.failover.plan_journal import PlanJournal
from replicator.failover.plan_runner import Plan, PlanRun
from replicator.failover.report_file import ReportFile
from replicator.failover.reporting import report_of
from replicator.failover_reports import Report, StepOutcome
from replicator.failovers import Monitor, Phase
from replicator.states import step as next_state
from replicator.world import World


class Groups(Protocol):
    """`agent/failover/groups.py`."""

    def get(self, uuid: str) -> Monitor | None: ...
    async def set_phase(self, uuid: str, phase: Phase) -> Monitor: ...


class Kind(NamedTuple):
    """`build`: the steps, of the arguments that the plan was opened with: the same ones after a restart.
    The events move the phase of the group.
    """

    name: str
    build: Callable[[Mapping[str, Any]], Plan]
    begins: GroupEvent
    completed: GroupEvent
    taken_back: GroupEvent


class _UnderWay:
    """One procedure. `ended` is set when it has ended or halted; then replaced if it goes on."""

    def __init__(self, kind: Kind, run: PlanRun) -> None:
        self.kind = kind
        self.run = run
        self.ended = trio.Event()
        self.report: Report | None = None
        self.error: Exception | None = None


async def _nobody(report: Report) -> None:
    pass


class Procedures:
    """Of one agent. `directory`: where their notes and reports are. `ended(report)` hears how they end, or
    that they wait for a person; `warn(text)` of what a person has to look at; neither may raise.
    """

    def __init__(
        self,
        directory: str,
        groups: Groups,
        world: World,
        ended: Callable[[Report], Awaitable[None]] = _nobody,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._directory = directory
        self._groups = groups
        self._world = world
        self._ended = ended
        self._warn = warn
        self._kinds: dict[str, Kind] = {}
        self._under_way: dict[str, _UnderWay] = {}
        self._unclear: dict[str, str] = {}  # why a procedure of that group cannot go on
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()

    def register(self, kind: Kind) -> None:
        """Before `run`."""
        assert kind.name not in self._kinds
        self._kinds[kind.name] = kind

    async def run(self) -> None:
        """Go on with what was under way, then with what is asked for. Until cancelled: what is under way then
        is as after a crash. Await `ready` before anything else is decided about groups.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for group in await self._world.in_thread(self._groups_with_notes):
                await self._resume(group)
            self._running.set()
            await trio.sleep_forever()

    async def ready(self) -> None:
        """Until all that was under way is so again."""
        await self._running.wait()

    # --- asked for ---

    async def start(
        self, kind: str, group: str, arguments: dict[str, Any], *, reason: str, forced: bool = False
    ) -> Report:
        """Do a procedure, or try again one that has halted. Returns how it ended, or halted. Cancelled, it
        goes on all the same. Raises ReplicatorError: another one is under way.
        """
        await self.ready()
        if group in self._unclear:
            raise ReplicatorError(f"an earlier procedure has to be looked at first: {self._unclear[group]}")
        present = self._under_way.get(group)
        if present is not None:
            return await self._try_again(present, kind, forced)
        monitor = self._groups.get(group)
        if monitor is not None and (monitor.phase, self._kinds[kind].begins) not in GROUP:
            raise ReplicatorError(f"monitor {monitor.name}: no {kind} can begin: it is {monitor.phase}")
        journal = PlanJournal(self._world.disk, self._path(group))
        run = PlanRun(self._kinds[kind].build(arguments), journal, self._world)
        under_way = self._under_way[group] = _UnderWay(self._kinds[kind], run)
        try:
            await run.open(uuid=new_uuid(), subject=group, arguments=arguments, reason=reason, forced=forced)
        except BaseException:
            del self._under_way[group]
            raise
        self._begin(under_way)
        return await self._end_of(under_way)

    async def abandon(self, group: str, reason: str) -> bool:
        """Take back what is under way, if nothing of it is final yet. Returns whether that is so."""
        present = self._under_way.get(group)
        return present is not None and await present.run.abandon(reason)

    async def lose_other_side(self, group: str) -> Report | None:
        """A person says that the other side of what is under way is gone for good: it is done without it.
        Returns how that has ended, or halted; None: nothing is under way that needs it, or it can still be
        taken back.
        """
        present = self._under_way.get(group)
        if present is None or not await present.run.lose_other_side():
            return None
        if present.ended.is_set():
            present.ended = trio.Event()
            self._begin(present)
        return await self._end_of(present)

    def report(self, group: str) -> Report | None:
        """Of the procedure under way, as far as it is; None: there is none."""
        present = self._under_way.get(group)
        if present is None or not present.run.notes:
            return None
        return self._report_of(present)

    async def reports(self, group: str) -> list[Report]:
        """Of a group, oldest first, the one under way last."""
        kept = await self._world.in_thread(self._file(group).read)
        present = self.report(group)
        return kept if present is None else [r for r in kept if r.uuid != present.uuid] + [present]

    # --- doing it ---

    async def _try_again(self, present: _UnderWay, kind: str, forced: bool) -> Report:
        if present.kind.name != kind or not present.ended.is_set():
            raise ReplicatorError(f"a {present.kind.name} of this group is under way")
        present.ended = trio.Event()
        if present.run.outcome is None:
            await present.run.retry(forced=forced)
        self._begin(present)
        return await self._end_of(present)

    async def _resume(self, group: str) -> None:
        """What cannot be gone on with is a person's affair, and no reason to stop an agent."""
        try:
            journal = await self._world.in_thread(lambda: PlanJournal(self._world.disk, self._path(group)))
            if not journal.notes:
                return
            opened = journal.notes[0]
            assert isinstance(opened, Opened)
            if opened.kind not in self._kinds:
                raise ReplicatorError(f"{journal.path}: this software knows no procedure {opened.kind!r}")
            kind = self._kinds[opened.kind]
            plan = kind.build(opened.arguments)
            run = PlanRun(plan, journal, self._world)
            if unknown := set(opened.steps) - {step.name for step in plan.steps}:
                self._warn(f"{journal.path}: steps of other software are passed over: {', '.join(unknown)}")
            if run.outcome is None:
                await run.restart()
        except (ReplicatorError, OSError, ValueError, KeyError, TypeError) as error:
            self._unclear[group] = str(error)
            self._warn(f"a procedure of group {group} cannot go on: {error}")
            return
        under_way = self._under_way[group] = _UnderWay(kind, run)
        self._begin(under_way)

    def _begin(self, under_way: _UnderWay) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._go_on, under_way)

    async def _end_of(self, under_way: _UnderWay) -> Report:
        await under_way.ended.wait()
        if under_way.error is not None:
            raise ReplicatorError(f"{under_way.kind.name}: {under_way.error}") from under_way.error
        assert under_way.report is not None
        return under_way.report

    async def _go_on(self, under_way: _UnderWay) -> None:
        run, kind = under_way.run, under_way.kind
        opened = run.notes[0]
        assert isinstance(opened, Opened)
        group = opened.subject
        under_way.error = None
        try:
            if run.outcome is None:
                await self._insist(group, partial(self._happen, group, kind.begins))
            outcome = await self._whatever_the_disk_does(run)
            under_way.report = self._report_of(under_way)
            if outcome is None:
                await self._insist(group, partial(self._happen, group, GroupEvent.HALTED))
                await self._ended(under_way.report)
            else:
                event = kind.completed if outcome is Outcome.COMPLETED else kind.taken_back
                await self._insist(group, partial(self._happen, group, event))
                await self._ended(under_way.report)
                await self._insist(group, partial(self._world.in_thread, partial(self._keep, under_way)))
                del self._under_way[group]
        except Exception as error:  # tried again with the agent's next start, or when somebody asks
            if not isinstance(error, ReplicatorError | OSError):
                traceback.print_exception(error)
            self._warn(f"{kind.name} of group {group} stands still: {error!r}")
            under_way.error = error
        under_way.ended.set()

    async def _whatever_the_disk_does(self, run: PlanRun) -> Outcome | None:
        """A disk that is full for a while holds a procedure up, and does not end it."""
        while True:
            try:
                return await run.go_on()
            except OSError as error:
                if not run.halted:
                    self._warn(
                        f"{run.plan.kind}: its notes cannot be kept: {error.strerror}; it waits for that"
                    )
                run.halted = f"its notes cannot be kept: {error.strerror}"
                await trio.sleep(limits.PLAN_UNDO_PAUSE_S)
                try:
                    await run.restart()
                except OSError:
                    continue

    async def _insist(self, group: str, work: Callable[[], Awaitable[None]]) -> None:
        """The same, of what is kept of a group elsewhere."""
        said = ""
        while True:
            try:
                return await work()
            except (StateError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self._warn(f"a procedure of group {group} waits: {said}")
            await trio.sleep(limits.PLAN_UNDO_PAUSE_S)

    async def _happen(self, group: str, event: GroupEvent) -> None:
        """A group that nobody knows any more has no phase."""
        monitor = self._groups.get(group)
        if monitor is None:
            return
        if event in _ENDS and monitor.phase not in _DURING:
            return  # the agent had ended between the phase and the notes
        phase = next_state(GROUP, monitor.phase, event)
        if phase is not monitor.phase:
            await self._groups.set_phase(group, phase)

    def _report_of(self, under_way: _UnderWay) -> Report:
        notes = under_way.run.notes
        opened = notes[0]
        assert isinstance(opened, Opened)
        monitor = self._groups.get(opened.subject)
        report = report_of(under_way.run.plan.shapes, notes, name=monitor.name if monitor else "")
        steps = tuple(
            msgspec.structs.replace(step, said=under_way.run.said)
            if step.outcome is StepOutcome.RUNNING
            else step
            for step in report.steps
        )
        return msgspec.structs.replace(report, steps=steps)

    def _keep(self, under_way: _UnderWay) -> None:
        assert under_way.report is not None
        self._file(under_way.report.group).add(under_way.report)
        under_way.run.journal.remove()

    def _groups_with_notes(self) -> list[str]:
        if not self._world.disk.exists(self._directory):
            return []
        names = sorted(self._world.disk.listdir(self._directory))
        return [name.removesuffix(_PLAN) for name in names if name.endswith(_PLAN)]

    def _path(self, group: str) -> str:
        return f"{self._directory}/{group}{_PLAN}"

    def _file(self, group: str) -> ReportFile:
        return ReportFile(self._world.disk, f"{self._directory}/{group}.reports")


_PLAN = ".plan"
_ENDS = frozenset(
    {
        GroupEvent.COMPLETED,
        GroupEvent.TAKEN_BACK,
        GroupEvent.HANDED_BACK,
        GroupEvent.HANDED_BACK_FOR_GOOD,
        GroupEvent.HAND_BACK_UNDONE,
        GroupEvent.HALTED,
    }
)
_DURING = frozenset({Phase.TAKING_OVER, Phase.HANDING_BACK})
