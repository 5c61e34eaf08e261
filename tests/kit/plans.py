"""Plans whose steps act on a small world, with a host that dies anywhere, and a checker of what may be left.

The world has what steps have brought about (`there`). It survives every crash, and complains at once when a
step is done too early, or taken back though the plan is committed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import trio

from kit.disk import MemoryDisk, ProcessDied, SteppingClock
from replicator.errors import ReplicatorError
from replicator.failover.plan import Outcome, Shape, Undone
from replicator.failover.plan_journal import PlanJournal
from replicator.failover.plan_runner import Plan, PlanRun, Run, Step
from replicator.world import World

T = TypeVar("T")
_CALLS_MAX = 500  # looks at the clock
PATH = "/home/failover/group.plan"


class InlineWorld(World):
    """No threads. What goes round in circles is stopped."""

    async def in_thread(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.clock.monotonic_ns() > _CALLS_MAX * 1000 + 10**9:
            raise RuntimeError("it goes round in circles")
        return function()


@dataclass
class Script:
    """What happens at the calls of one step. Each list is used up, one entry a call; then all is well.

    `do`, `undo`: "" works, "fail" does nothing and fails, "half" takes effect and fails, "die before" and
    "die after" end the process.
    """

    shape: Shape
    do: list[str] = field(default_factory=list)
    undo: list[str] = field(default_factory=list)


@dataclass
class Stage:
    """The world of one plan, and the plan on it."""

    scripts: Sequence[Script]
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    there: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)  # what was called
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = InlineWorld(disk=self.disk, clock=SteppingClock())
        self.scripts = [replace(s, do=list(s.do), undo=list(s.undo)) for s in self.scripts]

    @property
    def committed(self) -> str:
        """The step that commits, once it took effect; "" before."""
        return next(
            (s.shape.name for s in self.scripts if s.shape.commits and s.shape.name in self.there), ""
        )

    def plan(self) -> Plan:
        return Plan("test", [self._step(number) for number in range(len(self.scripts))])

    def _step(self, number: int) -> Step:
        script = self.scripts[number]
        name, has_undo, commits, optional = script.shape

        async def do(run: Run) -> dict[str, Any]:
            self.order.append(f"do {name}")
            for before in self.scripts[:number]:
                if before.shape.name not in self.there and not before.shape.optional:
                    self.wrong.append(f"{name} is done before {before.shape.name}")
            await self._act(script.do, lambda: self.there.add(name))
            return {"by": name}

        async def undo(run: Run) -> None:
            self.order.append(f"undo {name}")
            if self.committed:
                self.wrong.append(f"{name} is taken back though {self.committed} is final")
            await self._act(script.undo, lambda: self.there.discard(name))

        async def was_done(run: Run) -> dict[str, Any] | None:
            await trio.lowlevel.checkpoint()
            return {"by": name} if name in self.there else None

        return Step(
            name,
            do,
            undo=undo if has_undo else None,
            commits=commits,
            was_done=was_done if commits else None,
            optional=optional,
        )

    async def _act(self, script: list[str], effect: Callable[[], object]) -> None:
        await trio.lowlevel.checkpoint()
        how = script.pop(0) if script else ""
        if how not in ("fail", "die before"):
            effect()
        if how.startswith("die"):
            raise ProcessDied
        if how:
            raise ReplicatorError(f"planned: {how}")

    # --- lives ---

    async def live(self, *, retries: int = 0) -> tuple[PlanRun | None, Outcome | None]:
        """One life of the process: begin, or go on. Raises ProcessDied."""
        journal = PlanJournal(self.disk, PATH)
        run = PlanRun(self.plan(), journal, self.world)
        if not journal.notes:
            await run.open(uuid="uuid", subject="group", arguments={})
        elif run.outcome is None:
            await run.restart()
        outcome = await run.go_on()
        while outcome is None and retries:
            retries -= 1
            await run.retry()
            outcome = await run.go_on()
        return run, outcome

    def problems(self, run: PlanRun, outcome: Outcome | None) -> list[str]:
        """What is left that may not be, or is missing."""
        found = list(self.wrong)
        unfinished = {n.step for n in run.journal.notes if isinstance(n, Undone) and n.problem}
        for script in self.scripts:
            name = script.shape.name
            if outcome is Outcome.COMPLETED and name not in self.there and not script.shape.optional:
                found.append(f"completed without {name}")
            if outcome is Outcome.TAKEN_BACK and name in self.there:
                if script.shape.commits:
                    found.append(f"taken back though {name} is final")
                elif script.shape.has_undo and name not in unfinished:
                    found.append(f"taken back, and {name} is still there")
        if outcome is None and not self.committed:
            found.append("halts before anything is final")
        return found
