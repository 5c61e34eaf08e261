"""Power loss of a source: only what was hot is compared; whichever side was ahead, both are equal then."""

import random
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from kit.losing_source import LosingSource
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.capture.activity_keeper import ActivityKeeper
from replicator.ops import Record
from replicator.queue.activity import ActivityLog
from replicator.queue.dirty import DirtyMap
from replicator.queue.header import Header
from replicator.queue.hot import HotSet
from replicator.sender.arguments import SenderOptions

pytestmark = pytest.mark.sim


ZEROS = frozenset({"holes"})
"""Not looked at: what has lost its data reads as zeros, be they a hole or not, and contents are compared."""


async def become_cold(simulation: Simulation) -> None:
    """Everything is durable on both sides, and the log knows."""
    await simulation.drained()
    with trio.fail_after(600):
        await trio.sleep(limits.ACTIVITY_LOOK_S)
        while simulation.keeper.is_hot:  # noqa: ASYNC110 -- nobody tells
            await trio.sleep(limits.ACTIVITY_LOOK_S)


async def lose_power(simulation: Simulation, certain: int | None = None) -> None:
    await simulation.lose_source_power(certain)
    simulation.start_sender()
    await trio.sleep(30)  # to connect again
    await simulation.drained()
    simulation.source.synced()


def compares_everything(simulation: Simulation) -> bool:
    """Whether a run of the present sender did."""
    sender = simulation.sender
    assert sender is not None
    run = sender.mirrors.last
    return run is not None and not run.some_paths


async def one_run(seed: int, *, links: bool = True) -> int:
    """How often everything was compared although the log could tell what to. That has to be where a file with
    several names was changed, and the name it is known by has changed, too.
    """
    chance = random.Random(seed)
    compared = 0
    async with simulate(seed, options=SenderOptions(mirror="full"), start=False, losing=True) as simulation:
        assert isinstance(simulation.source, LosingSource)
        simulation.source.create(b"stays")  # an empty source is no reason to empty a target
        changes = RandomChanges(simulation.source, chance, links=links)
        changes.steps(60)
        simulation.start_receiver()
        simulation.start_sender()
        await become_cold(simulation)
        for _ in range(chance.randint(1, 3)):
            for _ in range(chance.randint(1, 30)):
                changes.steps(chance.choice((0, 1, 1, 3, 20)))
                await trio.sleep(chance.choice((0, 0.0002, 0.001, 0.01, 0.01, 15)))
                if chance.random() < 0.03:
                    simulation.network.cut("source", "target")
                if chance.random() < 0.03:  # the target is away while its source is quiet
                    await simulation.kill_receiver()
                    changes.steps(5)
                    await trio.sleep(15)
                    simulation.start_receiver()
            changes.steps(chance.choice((0, 5)))
            await trio.sleep(chance.choice((0, 0.0005, 0.001, 0.002)))
            exact = simulation.status.target_data_state == "OK"
            await lose_power(simulation)
            simulation.assert_equal(ZEROS)
            assert simulation.status.target_data_state == "OK"
            compared += exact and compares_everything(simulation)
        changes.steps(30)
        await simulation.drained()
        simulation.source.synced()
        simulation.assert_equal(ZEROS)
    return compared


@pytest.mark.parametrize("seed", range(12))
async def test_both_sides_end_equal(
    seed: int, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    await one_run(seed)


@pytest.mark.parametrize("seed", range(100, 112))
async def test_only_what_was_hot_is_compared(
    seed: int, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    assert await one_run(seed, links=False) == 0


async def test_nothing_is_compared_of_an_idle_set(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, start=False, losing=True) as simulation:
        RandomChanges(simulation.source, random.Random(1)).steps(60)
        simulation.start_receiver()
        simulation.start_sender()
        await become_cold(simulation)
        await lose_power(simulation)
        simulation.assert_equal()
        assert simulation.status.mirror.kind == ""
        assert simulation.status.sent_mirror_bytes == 0


async def ahead_of_its_source(seeds: int = 8) -> None:
    """What the log does not tell of yet is lost by the source, and most often by the log's own disk."""
    for seed in range(seeds):
        await _ahead_of_its_source(seed)


async def _ahead_of_its_source(seed: int) -> None:
    async with simulate(seed, start=False, losing=True) as simulation:
        simulation.source_world.disk.random.seed(seed)  # type: ignore[attr-defined]
        simulation.source.create(b"f")
        simulation.start_receiver()
        simulation.start_sender()
        await become_cold(simulation)
        simulation.keeper.log.begin_sync = lambda: None  # type: ignore[method-assign]
        kept = len(simulation.source.records)
        simulation.source.write(b"f", 0, b"lost")
        await trio.sleep(10)
        await lose_power(simulation, kept)
        simulation.assert_equal()
        assert (simulation.source_root / "f").read_bytes() == b""


async def behind_its_source() -> None:
    """The target is away, and the source quiet."""
    async with simulate(1, start=False, losing=True) as simulation:
        simulation.source.create(b"f")
        simulation.start_receiver()
        simulation.start_sender()
        await become_cold(simulation)
        await simulation.kill_receiver()
        simulation.source.write(b"f", 0, b"kept")
        await trio.sleep(60)
        await simulation.lose_source_power()
        simulation.start_receiver()
        simulation.start_sender()
        await trio.sleep(60)
        await simulation.drained()
        simulation.source.synced()
        simulation.assert_equal()


async def test_a_copy_is_never_ahead_of_what_is_noted(autojump_clock: trio.testing.MockClock) -> None:
    await ahead_of_its_source()


async def test_what_a_target_lacks_stays_hot(autojump_clock: trio.testing.MockClock) -> None:
    await behind_its_source()


# --- planted mistakes ---


def _only_the_copy_may_be_behind(self: DirtyMap, limit_bytes: int = 0, *, either: bool = False) -> None:
    right_map(self, limit_bytes or limits.DIRTY_MAP_BYTES)


def _never_noted(self: HotSet, operation: Record) -> Iterator[Record]:
    return iter(())


async def _storage_never_synced(self: ActivityKeeper) -> None:
    self._sync_storage, right = lambda: None, self._sync_storage
    await right_become_cold(self)
    self._sync_storage = right


right_map, right_become_cold = DirtyMap.__init__, ActivityKeeper._become_cold


async def test_a_copy_that_gets_what_is_not_noted_is_found(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(Header, "uncovered", property(lambda _: 0, lambda _, sequence: None))
    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True, allow_unwrapped=True):
        await ahead_of_its_source(40)  # one of five shows it


async def test_a_generation_that_ends_too_early_costs_a_comparison_only(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A copy that lacks what the log has forgotten does not go on by it."""
    monkeypatch.setattr(ActivityLog, "closed_are_durable", property(lambda _: True))
    await behind_its_source()


PLANTED: list[tuple[str, object, str, object]] = [
    ("old names are dropped", DirtyMap, "__init__", _only_the_copy_may_be_behind),
    (
        "a generation ends without a sync of the storage",
        ActivityKeeper,
        "_become_cold",
        _storage_never_synced,
    ),
    ("renames are not noted", HotSet, "_rename", _never_noted),
]


@pytest.mark.parametrize(("where", "name", "wrong"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
async def test_planted_mistakes_are_found(
    where: object,
    name: str,
    wrong: object,
    small_limits: None,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr(where, name, wrong)
    found = False
    for seed in range(100, 160):
        try:
            await one_run(seed, links=False)
        except* AssertionError:
            found = True
        if found:
            return
    raise AssertionError("nothing was noticed")


@pytest.mark.soak
@pytest.mark.timeout_s(3600)
@pytest.mark.parametrize("block", range(10))
async def test_campaign(block: int, small_limits: None, autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(20_000 + 100 * block, 20_000 + 100 * (block + 1)):
        await one_run(seed)
