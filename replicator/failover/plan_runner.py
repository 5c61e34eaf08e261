"""Does the steps of a plan, and notes them (`plan.py` decides which, `plan_journal.py` keeps the notes).

plan = Plan("failover", [Step("fence", fence), Step("drain", drain, undo=accept), Step("promote", ...)])
run = PlanRun(plan, journal, world)
run.open(subject=group, arguments={...}, reason="…")       # or, after a crash: run.restart()
outcome = await run.go_on()                                # None: halted, see `run.halted`
"""

import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import trio

from replicator import limits
from replicator.bounds import one_line
from replicator.errors import ReplicatorError
from replicator.failover import plan as plans
from replicator.failover.plan import Action, Next, Note, Opened, Outcome, Shape, decide
from replicator.failover.plan_journal import PlanJournal
from replicator.world import World

T = TypeVar("T")


class Run:
    """What a step gets to know of the plan it belongs to.

    `arguments`: of the plan. `forced`: go on in spite of what would otherwise stop for a person.
    """

    def __init__(self, notes: Sequence[Note]) -> None:
        opened = notes[0]
        assert isinstance(opened, Opened)
        self.uuid = opened.uuid
        self.subject = opened.subject
        self.reason = opened.reason
        self.arguments: Mapping[str, Any] = opened.arguments
        self.forced = opened.forced or any(isinstance(note, plans.Retried) and note.forced for note in notes)
        self._results = {note.step: note.result for note in notes if isinstance(note, plans.Done)}
        self._about = {note.step: note.about for note in notes if isinstance(note, plans.Doing)}
        self._failures = [note.step for note in notes if isinstance(note, plans.Failed)]
        self._said: list[str] = []

    def argument(self, name: str, type_: type[T]) -> T:
        return msgspec.convert(self.arguments[name], type_)

    def has_done(self, step: str) -> bool:
        return step in self._results

    def result(self, step: str, type_: type[T]) -> T:
        """What that step returned. KeyError: it is not done."""
        return msgspec.convert(self._results[step], type_)

    def about(self, step: str, type_: type[T]) -> T:
        """What that step was about to do. KeyError: it was not begun."""
        return msgspec.convert(self._about[step], type_)

    def failures(self, step: str) -> int:
        """How often it has failed. A try after that is a new one; after a crash it is the same."""
        return self._failures.count(step)

    def say(self, text: str) -> None:
        """A line for the report, such as what a script has printed. Bounded."""
        if len(self._said) < limits.PLAN_LINES:
            self._said.append(one_line(text, limits.PLAN_LINE_CHARS))

    @property
    def said(self) -> tuple[str, ...]:
        """So far."""
        return tuple(self._said)

    def take_said(self) -> tuple[str, ...]:
        said, self._said = tuple(self._said), []
        return said


@dataclass(frozen=True)
class Step:
    """One step. What it returns, and what `about` does, is kept as JSON, and is there for later steps.

    `do` raises ReplicatorError or OSError (one line for a person) if it fails; both it and `undo` may be
    called again after a crash in the middle of them. `about`: what `undo` needs, noted before `do`.
    `commits`: its `do` is one durable write, and `was_done` says afterwards whether it took effect (its
    result, or None). `if_lost`: the result with which it counts as done when the other side is lost for good.
    Cancellation: the agent ends, or nobody wants it any more; nothing is noted.
    """

    name: str
    do: Callable[[Run], Awaitable[Any]]
    undo: Callable[[Run], Awaitable[None]] | None = None
    about: Callable[[Run], Any] | None = None
    commits: bool = False
    was_done: Callable[[Run], Awaitable[Any]] | None = None
    if_lost: Callable[[Run], Any] | None = None
    optional: bool = False
    tries: int = 1  # until its failure counts

    @property
    def shape(self) -> Shape:
        return Shape(self.name, self.undo is not None, self.commits, self.optional)


@dataclass(frozen=True)
class Plan:
    """Steps in order. At most one commits; without any, everything may be taken back until the end."""

    kind: str
    steps: Sequence[Step]

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        assert len(set(names)) == len(names), "names of steps are unique"
        committing = [step for step in self.steps if step.commits]
        assert len(committing) <= 1 and all(step.was_done for step in committing)

    @property
    def shapes(self) -> list[Shape]:
        return [step.shape for step in self.steps]

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


@dataclass
class PlanRun:
    """A plan under way.

    What a step has done is noted together with what is begun next: one write of the disk instead of two,
    while clients wait. If that is lost in a crash, the step counts as begun, as if the crash had come a
    moment earlier.
    """

    plan: Plan
    journal: PlanJournal
    world: World
    halted: str = ""  # why it waits for a person
    _running: Run | None = None  # of the step that is being done
    _unwritten: list[Note] = field(default_factory=list)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _decided: trio.Lock = field(default_factory=trio.Lock)

    async def open(
        self, *, uuid: str, subject: str, arguments: dict[str, Any], reason: str = "", forced: bool = False
    ) -> None:
        """Begin. OSError: the disk takes no note, so nothing was begun."""
        assert not self.notes
        note = Opened(
            uuid=uuid,
            kind=self.plan.kind,
            subject=subject,
            arguments=msgspec.to_builtins(arguments),
            steps=tuple(step.name for step in self.plan.steps),
            reason=reason,
            forced=forced,
            time=self._now(),
        )
        await self._note(note)

    @property
    def said(self) -> tuple[str, ...]:
        """What the step that is being done has printed so far."""
        return self._running.said if self._running is not None else ()

    async def restart(self) -> None:
        """After a crash: what was begun is completed or taken back by the next `go_on`."""
        await self._note(plans.Restarted(time=self._now()))

    async def retry(self, *, forced: bool = False) -> None:
        """After it has halted: the next `go_on` tries again what failed."""
        self.halted = ""
        await self._note(plans.Retried(forced=forced, time=self._now()))

    async def abandon(self, reason: str) -> bool:
        """Take everything back, if it is not committed. Returns whether that is so."""
        async with self._decided:
            if self.is_committed or self.outcome is not None:
                return False
            await self._note(plans.Abandoned(reason=reason, time=self._now()))
        self._scope.cancel()
        return True

    async def lose_other_side(self) -> bool:
        """A person says that it is gone for good: the next `go_on`, or the one that runs, does without it.
        Returns False, with nothing noted, if all can be taken back without it, or is over.
        """
        async with self._decided:
            doubt = plans.is_in_doubt(self.plan.shapes, self.notes)
            if self.outcome is not None or not (doubt or self.is_committed):
                return False
            await self._note(plans.Lost(time=self._now()))
        self.halted = ""
        if self._waits_for_other_side():
            self._scope.cancel()
        return True

    def _waits_for_other_side(self) -> bool:
        begun = next(note.step for note in reversed(self.notes) if isinstance(note, plans.Doing))
        return self.plan.step(begun).if_lost is not None

    @property
    def notes(self) -> list[Note]:
        """All so far."""
        return self.journal.notes + self._unwritten

    @property
    def is_committed(self) -> bool:
        return plans.is_committed(self.plan.shapes, self.notes)

    @property
    def outcome(self) -> Outcome | None:
        last = self.notes[-1]
        return last.outcome if isinstance(last, plans.Ended) else None

    async def go_on(self) -> Outcome | None:
        """Do what there is to do, until it has ended, or halts (None). OSError: a note could not be kept; as
        after a crash, `restart` and `go_on` go on.
        """
        while True:
            what = decide(self.plan.shapes, self.notes)
            match what.action:
                case Action.DO:
                    await self._do(self.plan.step(what.step))
                case Action.LOOK:
                    await self._look(self.plan.step(what.step), "it was interrupted before it was final", 0.0)
                case Action.UNDO:
                    await self._undo(self.plan.step(what.step))
                case Action.HALT:
                    await self._note()
                    self.halted = what.reason
                    return None
                case Action.END:
                    return await self._end(what)

    async def _do(self, step: Step) -> None:
        run = Run(self.notes)
        about = step.about(run) if step.about is not None else None
        async with self._decided:  # nobody abandons it between the decision and the note
            if decide(self.plan.shapes, self.notes) != Next(Action.DO, step.name):
                return
            await self._note(plans.Doing(step=step.name, about=msgspec.to_builtins(about), time=self._now()))
            if self._note_lost(step):
                return
            self._scope = trio.CancelScope()
        began_ns = self.world.clock.monotonic_ns()
        self._running = run = Run(self.notes)
        with self._scope:
            for left in reversed(range(step.tries)):
                try:
                    result = await step.do(run)
                except Exception as error:
                    reason = _reason(error)
                else:
                    self._note_done(step, result, self._since(began_ns), run.take_said())
                    return
                if left:
                    run.say(f"tried again: {reason}")
                    await trio.sleep(limits.PLAN_TRY_PAUSE_S)
        if self._scope.cancelled_caught:  # abandoned, or the other side is lost: the note says so
            return
        if step.commits:
            await self._look(step, reason, self._since(began_ns), run.take_said())
        else:
            self._unwritten.append(
                plans.Failed(
                    step=step.name,
                    reason=reason,
                    duration_s=self._since(began_ns),
                    said=run.take_said(),
                )
            )

    async def _look(self, step: Step, reason: str, duration_s: float, said: tuple[str, ...] = ()) -> None:
        """Whether a step that commits took effect, though it did not come to its end."""
        assert step.was_done is not None
        async with self._decided:
            if self._note_lost(step):
                return
            self._scope = trio.CancelScope()
        self._running = run = Run(self.notes)
        with self._scope:
            result = await step.was_done(run)
        if self._scope.cancelled_caught:  # to be looked at again, or the other side is lost
            return
        if result is None:
            failed = plans.Failed(step=step.name, reason=reason, duration_s=duration_s, said=said)
            self._unwritten.append(failed)
        else:
            self._note_done(step, result, duration_s, said, found=True)

    def _note_lost(self, step: Step) -> bool:
        """Whether it counts as done because the other side is lost."""
        if step.if_lost is None or not plans.is_lost(self.notes):
            return False
        self._note_done(step, step.if_lost(Run(self.notes)), 0.0, ("passed over: the other side is lost",))
        return True

    def _note_done(
        self, step: Step, result: Any, duration_s: float, said: tuple[str, ...], *, found: bool = False
    ) -> None:
        self._unwritten.append(
            plans.Done(
                step=step.name,
                result=msgspec.to_builtins(result),
                duration_s=duration_s,
                said=said,
                found=found,
            )
        )

    async def _undo(self, step: Step) -> None:
        """What cannot be taken back, after some tries, is a problem of the report."""
        assert step.undo is not None
        await self._note(plans.Undoing(step=step.name, time=self._now()))
        began_ns = self.world.clock.monotonic_ns()
        problem = ""
        for left in reversed(range(limits.PLAN_UNDO_TRIES)):
            try:
                await step.undo(Run(self.notes))
                problem = ""
                break
            except Exception as error:
                problem = _reason(error)
            if left:
                await trio.sleep(limits.PLAN_UNDO_PAUSE_S)
        undone = plans.Undone(step=step.name, problem=problem, duration_s=self._since(began_ns))
        self._unwritten.append(undone)

    async def _end(self, what: Next) -> Outcome:
        assert what.outcome is not None
        if self.outcome is None:
            await self._note(plans.Ended(outcome=what.outcome, time=self._now()))
        return what.outcome

    async def _note(self, *more: Note) -> None:
        """Durable, with all that was done before. OSError: it was not noted, what was done before is kept."""
        if written := [*self._unwritten, *more]:
            with trio.CancelScope(shield=True):
                await self.world.in_thread(lambda: self.journal.append(*written))
            self._unwritten.clear()

    def _now(self) -> float:
        return self.world.clock.wall_ns() / 1e9

    def _since(self, began_ns: int) -> float:
        return math.ceil((self.world.clock.monotonic_ns() - began_ns) / 1e3) / 1e6


def _reason(error: Exception) -> str:
    """One line. Any other error is a bug, but a plan that stands still for one would be worse."""
    if isinstance(error, ReplicatorError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    traceback.print_exception(error)
    return one_line(f"internal error: {error!r}")
