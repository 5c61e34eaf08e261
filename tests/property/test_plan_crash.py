"""A plan ends well: whatever fails, wherever its process dies, whatever the disk had of it."""

from collections.abc import Callable

import pytest
import trio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from kit.disk import Fault, MemoryDisk, ProcessDied
from kit.plans import PATH, Script, Stage

from replicator.errors import ReplicatorError
from replicator.failover import plan as plans
from replicator.failover import plan_runner
from replicator.failover.plan import Outcome, Shape
from replicator.failover.plan_journal import PlanJournal
from replicator.failover.plan_runner import PlanRun

FAILOVER = [
    Script(Shape("vote", has_undo=True)),
    Script(Shape("script")),
    Script(Shape("drain", has_undo=True)),
    Script(Shape("promote", commits=True)),
    Script(Shape("open")),
    Script(Shape("addresses")),
    Script(Shape("tell", optional=True)),
]
"""Of the shape that a failover has."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.PLAN_UNDO_PAUSE_S", 0.0)


async def to_the_end(stage: Stage, lives: int = 12) -> tuple[PlanRun, Outcome | None]:
    for _ in range(lives):
        try:
            run, outcome = await stage.live(retries=6)
        except ProcessDied:
            stage.disk.die()
            continue
        assert run is not None
        return run, outcome
    raise AssertionError("it does not come to an end")


@pytest.mark.parametrize("when", ["before", "after", "torn"])
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power loss"])
async def test_a_crash_at_any_call_of_the_disk_is_completed_or_taken_back(when: str, power: bool) -> None:
    undisturbed = Stage(FAILOVER)
    await to_the_end(undisturbed)
    outcomes = set()
    for call in range(1, undisturbed.disk.calls + 1):
        stage = Stage(FAILOVER)
        stage.disk.die_at(call, when)  # type: ignore[arg-type]
        try:
            await stage.live()
        except ProcessDied:
            stage.disk.lose_power() if power else stage.disk.die()
        run, outcome = await to_the_end(stage)
        assert stage.problems(run, outcome) == [], (call, stage.order)
        outcomes.add(outcome)
    assert outcomes == {Outcome.COMPLETED, Outcome.TAKEN_BACK}


def expected(script: Script, how: str) -> Outcome:
    """Of a failover in which this happens once."""
    name = script.shape.name
    early = name in ("vote", "script", "drain") or (name == "promote" and how in ("die before", "fail"))
    return Outcome.TAKEN_BACK if early else Outcome.COMPLETED


@pytest.mark.parametrize("script", FAILOVER, ids=lambda s: s.shape.name)
@pytest.mark.parametrize("how", ["die before", "die after", "fail", "half"])
async def test_a_step_that_dies_or_fails(script: Script, how: str) -> None:
    scripts = [Script(s.shape, do=[how] if s is script else []) for s in FAILOVER]
    stage = Stage(scripts)
    run, outcome = await to_the_end(stage)
    assert stage.problems(run, outcome) == []
    assert outcome is expected(script, how)


_HOW = st.sampled_from(["", "fail", "half", "die before", "die after"])


@st.composite
def scripts(draw: st.DrawFn) -> list[Script]:
    count = draw(st.integers(1, 6))
    commits = draw(st.integers(-1, count - 1))
    return [
        Script(
            Shape(
                f"step{number}",
                has_undo=draw(st.booleans()),
                commits=number == commits,
                optional=number > commits >= 0 and draw(st.booleans()),
            ),
            do=draw(st.lists(_HOW, max_size=3)),
            undo=draw(st.lists(_HOW, max_size=4)),
        )
        for number in range(count)
    ]


@given(
    scripts=scripts(),
    deaths=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["before", "after", "torn"])), max_size=3),
    power=st.booleans(),
    errors=st.lists(st.integers(1, 80), max_size=2),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_plan(
    scripts: list[Script], deaths: list[tuple[int, str]], power: bool, errors: list[int]
) -> None:
    stage = Stage(scripts)

    def fault(number: int, name: str, path: str) -> Fault | None:
        if number in errors and name in ("append", "fsync"):
            return Fault(error=28)
        return None

    async def lives() -> None:
        for call, when in deaths:
            at = stage.disk.calls + call
            stage.disk.fault = lambda n, name, path, at=at, when=when: (
                Fault(die=when) if n == at else fault(n, name, path)
            )
            try:
                await stage.live()
            except ProcessDied:
                stage.disk.lose_power() if power else stage.disk.die()
            except OSError:  # no note: as after a crash
                stage.disk.die()
            assert stage.wrong == []
        stage.disk.heal()
        run, outcome = await to_the_end(stage, lives=40)
        event(f"{outcome}")
        assert stage.problems(run, outcome) == [], stage.order
        reread = PlanJournal(stage.disk, PATH)
        assert reread.notes == run.journal.notes

    trio.run(lives)


# --- nobody wants it any more ---


async def test_abandoned_in_the_middle_of_a_step_it_is_taken_back() -> None:
    stage = Stage(FAILOVER[:3] + FAILOVER[3:])
    run = PlanRun(stage.plan(), PlanJournal(stage.disk, PATH), stage.world)
    entered = trio.Event()

    async def waits(_: object) -> None:
        entered.set()
        await trio.sleep_forever()

    steps = list(run.plan.steps)
    steps[2] = plan_runner.Step("drain", waits, undo=steps[2].undo)
    run.plan = plan_runner.Plan("test", steps)
    await run.open(uuid="u", subject="g", arguments={})
    async with trio.open_nursery() as nursery:

        async def abandon() -> None:
            await entered.wait()
            assert await run.abandon("the source is back")

        nursery.start_soon(abandon)
        assert await run.go_on() is Outcome.TAKEN_BACK
    assert stage.there == {"script"}
    assert plans.decide(run.plan.shapes, run.journal.notes[:-1]).reason == "the source is back"
    assert not await run.abandon("too late")


async def test_once_final_it_is_not_abandoned() -> None:
    stage = Stage([*FAILOVER[:4], Script(Shape("open"), do=["fail"]), *FAILOVER[5:]])
    run = PlanRun(stage.plan(), PlanJournal(stage.disk, PATH), stage.world)
    await run.open(uuid="u", subject="g", arguments={})
    assert await run.go_on() is None
    assert run.halted == "planned: fail"
    assert not await run.abandon("too late")
    await run.retry(forced=True)
    assert await run.go_on() is Outcome.COMPLETED


async def test_what_cannot_be_taken_back_is_said_and_the_rest_is_taken_back() -> None:
    scripts = [
        Script(Shape("first", has_undo=True)),
        Script(Shape("second", has_undo=True), undo=["fail"] * 9),
        Script(Shape("third"), do=["fail"]),
    ]
    stage = Stage(scripts)
    run, outcome = await to_the_end(stage)
    assert outcome is Outcome.TAKEN_BACK
    assert stage.there == {"second"}
    assert [n.problem for n in run.journal.notes if isinstance(n, plans.Undone)] == ["planned: fail", ""]


async def test_a_bug_in_a_step_is_a_step_that_fails() -> None:
    stage = Stage(FAILOVER[:2])

    async def bug(_: object) -> None:
        raise KeyError("x")

    run = PlanRun(stage.plan(), PlanJournal(stage.disk, PATH), stage.world)
    run.plan = plan_runner.Plan("test", [run.plan.steps[0], plan_runner.Step("script", bug)])
    await run.open(uuid="u", subject="g", arguments={})
    assert await run.go_on() is Outcome.TAKEN_BACK
    assert stage.there == set()


# --- the file ---


async def written() -> tuple[MemoryDisk, bytes]:
    stage = Stage(FAILOVER)
    await to_the_end(stage)
    handle = stage.disk.open_read(PATH)
    return stage.disk, stage.disk.read(handle, 10**6, 0)


async def test_only_the_last_note_may_be_torn() -> None:
    disk, data = await written()
    notes = PlanJournal(disk, PATH).notes
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(last, len(data)):
        disk.truncate(PATH, size)
        assert PlanJournal(disk, PATH).notes == notes[:-1]
        handle = disk.open_append(PATH)
        disk.append(handle, [data[last:]], last)
        disk.close(handle)


async def test_damage_in_the_middle_is_said() -> None:
    disk, data = await written()
    middle = data.find(b"drain")
    handle = disk.open_append(PATH)
    disk.append(handle, [b"X"], middle)
    with pytest.raises(ReplicatorError, match="is damaged"):
        PlanJournal(disk, PATH)


@given(st.binary(max_size=400), st.integers(0, 2000))
def test_any_file_is_notes_or_damage(data: bytes, at: int) -> None:
    disk, whole = trio.run(written)
    disk.truncate(PATH, min(at, len(whole)))
    handle = disk.open_append(PATH)
    disk.append(handle, [data], min(at, len(whole)))
    try:
        notes = PlanJournal(disk, PATH).notes
    except ReplicatorError:
        return
    stage = Stage(FAILOVER)
    if notes:
        plans.decide(stage.plan().shapes, notes)


# --- planted mistakes are found ---


def _forgets_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_look(self: PlanRun, step: object, reason: str, duration_s: float, said: object = ()) -> None:
        await self._note(plans.Failed(step=step.name, reason=reason))  # type: ignore[attr-defined]

    monkeypatch.setattr(PlanRun, "_look", no_look)


def _takes_back_what_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plans.decide

    def decide(shapes: list[Shape], notes: list[plans.Note]) -> plans.Next:
        return real([s._replace(commits=False) for s in shapes], notes)

    monkeypatch.setattr(plan_runner, "decide", decide)


def _goes_on_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had happened: what was begun before the promotion is not taken back."""
    real = plans.decide

    def decide(shapes: list[Shape], notes: list[plans.Note]) -> plans.Next:
        return real(shapes, [n for n in notes if not isinstance(n, plans.Restarted)])

    monkeypatch.setattr(plan_runner, "decide", decide)


def _undoes_only_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgets the step in the middle of which it died."""
    real = plans._back

    def back(shapes: list[Shape], at: dict[str, object], reason: str) -> plans.Next:
        return real(shapes, at | _idle(at), reason)  # type: ignore[arg-type]

    def _idle(at: dict[str, object]) -> dict[str, object]:
        return {k: plans._At.IDLE for k, v in at.items() if v is not plans._At.DONE}

    monkeypatch.setattr(plans, "_back", back)


def _notes_what_it_begins_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory only, until the next note."""
    real = PlanJournal.append

    def append(self: PlanJournal, *notes: plans.Note) -> None:
        for note in notes:
            if isinstance(note, plans.Doing):
                self.notes.append(note)
            else:
                real(self, note)

    monkeypatch.setattr(PlanJournal, "append", append)


@pytest.mark.parametrize(
    "plant",
    [
        _forgets_to_look,
        _takes_back_what_is_final,
        _goes_on_after_a_crash,
        _undoes_only_what_is_done,
        _notes_what_it_begins_too_late,
    ],
)
async def test_a_planted_mistake_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = []
    for script in FAILOVER:
        for how in ("die before", "die after", "fail", "half"):
            stage = Stage([Script(s.shape, do=[how] if s is script else []) for s in FAILOVER])
            try:
                run, outcome = await to_the_end(stage)
            except Exception as error:
                found.append(repr(error))
                continue
            found += stage.problems(run, outcome)
            if outcome is not expected(script, how):
                found.append(f"{script.shape.name}, {how}: {outcome}")
    assert found
