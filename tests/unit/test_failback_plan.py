"""Going home ends at home or where it began, whatever fails, and wherever the owner's agent dies."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio.testing
from kit.disk import ProcessDied
from kit.two_sides import CONNECTION, TwoSides, monitor

from replicator.agent.failover import failback_steps as failback
from replicator.agent.failover.failback import Failback
from replicator.agent.failover.failback_steps import FailbackSteps
from replicator.agent.failover.procedures import Procedures
from replicator.failover.handback import Home, HomeCopy, Order, Then
from replicator.failover.plan import Outcome
from replicator.failover.plan_journal import PlanJournal
from replicator.failover.plan_runner import PlanRun, Step
from replicator.failovers import Monitor

PATH = "/home/failover/group.plan"
HOMEWARD = (Order.RESTORE_FIRST, Order.FAILBACK_FIRST)
HOWS = ("fail", "half", "die before", "die after")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.PLAN_UNDO_PAUSE_S", 0.0)


class Groups:
    def __init__(self, sides: TwoSides) -> None:
        self._sides = sides

    def get(self, uuid: str) -> object:
        return self._sides.monitor

    async def set_phase(self, uuid: str, phase: object) -> object:
        return self._sides.monitor


def failback_of(sides: TwoSides, **parts: Any) -> Failback:
    procedures = Procedures("/home/failover", Groups(sides), sides.world)  # type: ignore[arg-type]
    return Failback(procedures, lambda group: sides.monitor, "beta", sides.parts()._replace(**parts))


async def live(sides: TwoSides, order: Order, then: Then, retries: int = 6) -> Outcome | None:
    """One life of the owner's agent."""
    journal = PlanJournal(sides.disk, PATH)
    arguments = {"monitor": monitor(), "order": order, "then": then, "connections": (CONNECTION,)}
    run = PlanRun(failback_of(sides).plan(arguments), journal, sides.world)
    if not journal.notes:
        await run.open(uuid="uuid", subject="group", arguments={}, reason="test")
    elif run.outcome is None:
        await run.restart()
    outcome = await run.go_on()
    while outcome is None and retries:
        retries -= 1
        await run.retry()
        outcome = await run.go_on()
    return outcome


async def to_the_end(sides: TwoSides, order: Order, then: Then = Then.MONITOR) -> Outcome | None:
    for _ in range(12):
        try:
            return await live(sides, order, then)
        except ProcessDied:
            sides.disk.die()
    raise AssertionError("it does not come to an end")


def once(name: str, how: str, turn: int = 0) -> Callable[[str], str]:
    """It happens at one call of that name, and then all is well."""
    seen: Counter[str] = Counter()

    def act(called: str) -> str:
        seen[called] += 1
        return how if called == name and seen[called] == turn + 1 else ""

    return act


async def calls_of(order: Order, then: Then = Then.MONITOR) -> list[str]:
    sides = TwoSides()
    assert await to_the_end(sides, order, then) is Outcome.COMPLETED
    return sides.calls


async def test_restore_first() -> None:
    assert await calls_of(Order.RESTORE_FIRST) == [
        *("prepare", "catch up", "script pre-failback", "freeze", "drain", "hold", "vote", "promote"),
        *(
            "owner gives up",
            "home takes",
            "open",
            "follow",
            "resume",
            "script post-failback",
            "errand",
            "tell",
        ),
    ]


async def test_failback_first() -> None:
    assert await calls_of(Order.FAILBACK_FIRST) == [
        *("prepare", "script pre-failback", "freeze", "owner gives up", "home takes", "catch up", "drain"),
        *("hold", "vote", "promote", "open", "follow", "resume", "script post-failback", "errand", "tell"),
    ]


@pytest.mark.parametrize(
    ("then", "calls"),
    [
        (Then.MONITOR, ["prepare", "catch up", "adopt", "turn", "retire"]),
        (Then.STOP, ["prepare", "catch up", "turn", "retire"]),
    ],
)
async def test_stay(then: Then, calls: list[str]) -> None:
    sides = TwoSides()
    assert await to_the_end(sides, Order.STAY, then) is Outcome.COMPLETED
    assert sides.calls == calls
    assert sides.monitor is None
    assert (sides.home_monitor is not None) == (then is Then.MONITOR)
    assert sides.owner.writable and sides.owner.address


async def check_every_interruption(order: Order) -> set[Outcome | None]:
    outcomes: set[Outcome | None] = set()
    for name in await calls_of(order):
        for how in HOWS:
            sides = TwoSides(once(name, how))
            outcome = await to_the_end(sides, order)
            assert sides.problems() == [], (name, how, sides.calls)
            assert (outcome is Outcome.COMPLETED) == (sides.record is not None), (name, how)
            outcomes.add(outcome)
    return outcomes


@pytest.mark.parametrize("order", HOMEWARD)
async def test_interrupted_at_every_step_it_goes_on_or_is_taken_back(order: Order) -> None:
    assert await check_every_interruption(order) == {Outcome.COMPLETED, Outcome.TAKEN_BACK}


@pytest.mark.parametrize("order", HOMEWARD)
async def test_a_crash_at_every_call_of_the_disk(order: Order) -> None:
    undisturbed = TwoSides()
    await to_the_end(undisturbed, order)
    for call in range(1, undisturbed.disk.calls + 1):
        for when in ("before", "after", "torn"):
            sides = TwoSides()
            sides.disk.die_at(call, when)  # type: ignore[arg-type]
            try:
                await live(sides, order, Then.MONITOR)
            except ProcessDied:
                sides.disk.lose_power() if call % 2 else sides.disk.die()
            await to_the_end(sides, order)
            assert sides.problems() == [], (call, when, sides.calls)


@pytest.mark.parametrize("order", HOMEWARD)
async def test_interrupted_while_it_is_taken_back(order: Order) -> None:
    """First something fails late, then the agent dies at each call of the way back."""
    for undone in ("thaw", "release", "owner takes", "home gives up"):
        for how in HOWS:
            late, back = once("promote", "fail"), once(undone, how)
            sides = TwoSides(lambda name, late=late, back=back: late(name) or back(name))  # type: ignore[misc]
            assert await to_the_end(sides, order) is Outcome.TAKEN_BACK
            assert sides.problems() == [], (undone, how, sides.calls)


async def test_home_that_lacks_an_operation_is_not_opened() -> None:
    sides = TwoSides()
    sides.parts()

    def lost(name: str) -> str:
        if name == "hold":
            sides.arrived = sides.written - 1
        return ""

    sides.act = lost
    assert await to_the_end(sides, Order.RESTORE_FIRST) is Outcome.TAKEN_BACK
    assert sides.record is None
    assert sides.owner.writable and sides.owner.address and not sides.home.held


async def test_reversal_interrupted_at_every_step() -> None:
    for name in await calls_of(Order.STAY):
        for how in HOWS:
            sides = TwoSides(once(name, how))
            outcome = await to_the_end(sides, Order.STAY)
            assert sides.wrong == []
            watched = sides.home_monitor is not None
            assert (outcome is Outcome.COMPLETED) == (sides.monitor is None) == watched, (name, how)


# --- home is lost for good ---


async def lose_home(sides: TwoSides, order: Order, *, restarted: bool = False) -> Outcome | None:
    """It stands still until a person says that home is lost; then it ends. Raises ProcessDied."""
    arguments = {"monitor": monitor(), "order": order, "then": Then.MONITOR, "connections": (CONNECTION,)}
    found: list[Outcome | None] = []

    async def work(run: PlanRun) -> None:
        found.append(await run.go_on())

    run = PlanRun(failback_of(sides).plan(arguments), PlanJournal(sides.disk, PATH), sides.world)
    if not run.notes:
        await run.open(uuid="uuid", subject="group", arguments={}, reason="test")
    elif restarted:
        await run.restart()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, run)
        with trio.move_on_after(60):
            await trio.testing.wait_all_tasks_blocked()
        if run.outcome is None:
            assert await run.lose_other_side()
            if found == [None]:
                found.clear()
                nursery.start_soon(work, run)
    return found[0]


def from_then_on(sides: TwoSides, name: str, how: str) -> Callable[[str], str]:
    """At that call home is lost: `how` "fail": before it has done anything, "half": after."""

    def act(called: str) -> str:
        if called != name or sides.lost:
            return ""
        sides.lost = True
        return how

    return act


AT_HOME = {
    Order.RESTORE_FIRST: ("promote", "home takes", "open", "resume"),
    Order.FAILBACK_FIRST: ("promote", "open", "resume"),
}


@pytest.mark.parametrize("order", HOMEWARD)
@pytest.mark.parametrize("how", ["fail", "half"])
async def test_home_is_lost_where_nothing_can_be_taken_back_any_more(
    order: Order, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    for name in AT_HOME[order]:
        sides = TwoSides()
        sides.act = from_then_on(sides, name, how)
        assert await lose_home(sides, order) is Outcome.COMPLETED, name
        assert sides.problems_without_home() == [], name
        assert "tell" not in sides.calls and sides.errands == [], name


@pytest.mark.parametrize("order", HOMEWARD)
@pytest.mark.parametrize("how", ["fail", "half"])
async def test_home_is_lost_and_the_owner_dies_at_every_call_of_the_disk(
    order: Order, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    sides = TwoSides()
    sides.act = from_then_on(sides, "promote", how)
    assert await lose_home(sides, order) is Outcome.COMPLETED
    for call in range(1, sides.disk.calls + 1):
        for when in ("before", "after", "torn"):
            other = TwoSides()
            other.act = from_then_on(other, "promote", how)
            other.disk.die_at(call, when)  # type: ignore[arg-type]
            outcome: Outcome | None = None
            try:
                outcome = await lose_home(other, order)
            except (ProcessDied, BaseExceptionGroup):
                other.disk.die()
            for _ in range(3):
                outcome = outcome or await lose_home(other, order, restarted=True)
            if outcome is Outcome.COMPLETED:
                assert other.problems_without_home() == [], (call, when)
            else:  # it died earlier, and all was taken back
                assert not other.lost and other.problems() == [], (call, when)


@pytest.mark.parametrize("name", ["prepare", "catch up", "freeze", "drain", "hold", "vote"])
async def test_as_long_as_all_can_be_taken_back_that_is_the_way(name: str) -> None:
    sides = TwoSides()
    arguments = {
        "monitor": monitor(),
        "order": Order.RESTORE_FIRST,
        "then": Then.MONITOR,
        "connections": (CONNECTION,),
    }
    run = PlanRun(failback_of(sides).plan(arguments), PlanJournal(sides.disk, PATH), sides.world)
    asked: list[bool] = []

    async def act() -> None:
        asked.append(await run.lose_other_side())

    async with trio.open_nursery() as nursery:

        def begin(called: str) -> str:
            if called == name:
                nursery.start_soon(act)
                return "fail"
            return ""

        sides.act = begin
        await run.open(uuid="uuid", subject="group", arguments={}, reason="test")
        assert await run.go_on() is Outcome.TAKEN_BACK
    assert asked == [False] and sides.problems() == []


# --- looking ---


class StartingHome:
    """Its copies answer after so many looks."""

    def __init__(self, silent_for: int) -> None:
        self.silent_for = silent_for

    async def look(self, monitor: Monitor) -> Home:
        self.silent_for -= 1
        silent = self.silent_for >= 0
        copy = HomeCopy(
            connection=CONNECTION, repset="web", problem="it does not run" * silent, silent=silent
        )
        return Home(agent="agent-alpha", name="alpha", epoch=3, follows=True, copies=(copy,))


async def test_a_copy_that_just_starts_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    found = failback_of(TwoSides(), home=StartingHome(5))
    assert (await found.look("group", Order.RESTORE_FIRST, Then.MONITOR)).refused == ()
    began_s = trio.current_time()
    found = failback_of(TwoSides(), home=StartingHome(10**6))
    refused = (await found.look("group", Order.RESTORE_FIRST, Then.MONITOR)).refused
    assert "does not answer yet: it does not run" in " ".join(refused)
    assert 30 <= trio.current_time() - began_s < 32


# --- planted mistakes ---


def _without_undo(name: str) -> Callable[[list[Step]], list[Step]]:
    def change(steps: list[Step]) -> list[Step]:
        return [
            Step(
                s.name, s.do, undo=None if s.name == name else s.undo, commits=s.commits, was_done=s.was_done
            )
            for s in steps
        ]

    return change


def _swapped(one: str, other: str) -> Callable[[list[Step]], list[Step]]:
    def change(steps: list[Step]) -> list[Step]:
        places = {step.name: number for number, step in enumerate(steps)}
        steps[places[one]], steps[places[other]] = steps[places[other]], steps[places[one]]
        return steps

    return change


def _missing(name: str) -> Callable[[list[Step]], list[Step]]:
    return lambda steps: [step for step in steps if step.name != name]


PLANTED: list[tuple[Order, str, Callable[[list[Step]], list[Step]]]] = [
    (Order.RESTORE_FIRST, "nobody thaws", _without_undo(failback.FREEZE)),
    (Order.RESTORE_FIRST, "home stays held", _without_undo(failback.HOLD)),
    (Order.FAILBACK_FIRST, "addresses do not come back", _without_undo(failback.GIVE_UP)),
    (Order.FAILBACK_FIRST, "home keeps addresses", _without_undo(failback.TAKE)),
    (Order.RESTORE_FIRST, "addresses at both", _swapped(failback.GIVE_UP, failback.TAKE)),
    (Order.RESTORE_FIRST, "drained before it is frozen", _swapped(failback.FREEZE, failback.DRAIN)),
    (Order.RESTORE_FIRST, "the owner lets go first", _swapped(failback.OPEN, failback.FOLLOW)),
    (Order.RESTORE_FIRST, "it sends before there is a copy", _swapped(failback.FOLLOW, failback.RESUME)),
    (Order.RESTORE_FIRST, "not frozen", _missing(failback.FREEZE)),
    (Order.RESTORE_FIRST, "not opened", _missing(failback.OPEN)),
]


@pytest.mark.parametrize(("order", "wrong"), [(o, w) for o, _, w in PLANTED], ids=[p[1] for p in PLANTED])
async def test_planted_mistakes_are_found(
    order: Order, wrong: Callable[[list[Step]], list[Step]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "restore_first" if order is Order.RESTORE_FIRST else "failback_first"
    right = getattr(FailbackSteps, name)
    monkeypatch.setattr(FailbackSteps, name, lambda self: wrong(right(self)))
    with pytest.raises((AssertionError, KeyError)):
        sides = TwoSides()
        await to_the_end(sides, order)
        assert sides.problems() == []
        await check_every_interruption(order)
