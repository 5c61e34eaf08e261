"""Mirrors that compare: what they find, what they send for it, and what becomes of it when something dies."""

import os
import random
import shutil
from typing import Any

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.mirror import digests
from replicator.mirror.patches import PatchRequest
from replicator.sender.arguments import SenderOptions
from replicator.status import MirrorProgress, TargetDataState

pytestmark = pytest.mark.sim

KIB = 1024
UNIT = digests.UNIT_BYTES
FILE_BYTES = 2 * 1024 * KIB


def options(*, newer: bool = False, checksum: bool = True, checksum_all: bool = False) -> SenderOptions:
    return SenderOptions(mirror="difference", newer=newer, checksum=checksum, checksum_all=checksum_all)


def make_stale(simulation: Simulation, chance: random.Random, *, share: float, same_time: bool) -> int:
    """A file, and an old copy of it on the target. Returns how many bytes of whole units differ."""
    source, target = simulation.source_root / "file", simulation.target_root / "file"
    simulation.journaling = False  # what is journaled is brought whatever it looks like
    simulation.source.create(b"file")
    simulation.source.write(b"file", 0, chance.randbytes(FILE_BYTES))
    simulation.source.settle()
    shutil.copy2(source, target)
    units = chance.sample(range(FILE_BYTES // UNIT), int(FILE_BYTES // UNIT * share))
    with open(target, "r+b", buffering=0) as file:
        for unit in units:
            os.pwrite(file.fileno(), chance.randbytes(100), unit * UNIT + chance.randrange(UNIT - 100))
    state = source.stat()
    age_ns = 0 if same_time else 10**9
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns - age_ns))
    simulation.journaling = True
    return len(units) * UNIT


def progress(simulation: Simulation) -> MirrorProgress:
    return simulation.status.mirror


async def mirrored(simulation: Simulation) -> None:
    simulation.start_receiver()
    simulation.start_sender()
    await simulation.mirror_ended()


@pytest.mark.parametrize("checksum_all", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1])
async def test_what_is_sent_is_in_proportion(
    share: float, checksum_all: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(1, options=options(checksum_all=checksum_all), start=False) as simulation:
        changed = make_stale(simulation, random.Random(1), share=share, same_time=checksum_all)
        inode = (simulation.target_root / "file").stat().st_ino
        await mirrored(simulation)
        simulation.assert_equal()
        assert (simulation.target_root / "file").stat().st_ino == inode  # in place
        run = progress(simulation)
        assert run.complete and run.checksum
        assert run.sent_bytes == changed and run.skipped_bytes == FILE_BYTES - changed
        assert run.compared_bytes == FILE_BYTES == run.done_bytes and run.done_files == 1
        assert simulation.status.sent_mirror_bytes < 1.05 * changed + 8 * KIB


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (options(checksum=False), False),
        (options(), False),  # only what looks different is compared
        (options(checksum_all=True), True),
    ],
)
@pytest.mark.parametrize("size", [5000, FILE_BYTES])
async def test_what_hides_behind_size_and_time(
    size: int, wanted: SenderOptions, found: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(2, options=wanted, start=False) as simulation:
        make_stale(simulation, random.Random(2), share=0.1, same_time=True)
        for root in (simulation.source_root, simulation.target_root):
            state = (root / "file").stat()
            os.truncate(root / "file", size)
            os.utime(root / "file", ns=(state.st_atime_ns, state.st_mtime_ns))
        with open(simulation.target_root / "file", "r+b") as file:
            state = os.fstat(file.fileno())
            file.write(b"another beginning")
        os.utime(simulation.target_root / "file", ns=(state.st_atime_ns, state.st_mtime_ns))
        await mirrored(simulation)
        contents = [(root / "file").read_bytes() for root in (simulation.source_root, simulation.target_root)]
        assert (contents[0] == contents[1]) is found


@pytest.mark.parametrize("checksum", [False, True])
async def test_only_what_is_newer(checksum: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(3, options=options(newer=True, checksum=checksum), start=False) as simulation:
        changed = make_stale(simulation, random.Random(3), share=0.1, same_time=False)
        for name, age_ns in ((b"newer here", 10**9), (b"older here", -(10**9)), (b"equal", 0)):
            simulation.journaling = False
            simulation.source.create(name)
            simulation.source.write(name, 0, b"source")
            simulation.journaling = True
            path = simulation.source_root / os.fsdecode(name)
            copy = simulation.target_root / os.fsdecode(name)
            copy.write_bytes(b"target" if age_ns else b"source")
            os.utime(copy, ns=(0, path.stat().st_mtime_ns - age_ns))
        await mirrored(simulation)
        target = simulation.target_root
        assert (target / "file").read_bytes() == (simulation.source_root / "file").read_bytes()
        assert (target / "newer here").read_bytes() == (target / "equal").read_bytes() == b"source"
        assert (target / "older here").read_bytes() == b"target"
        run = progress(simulation)
        # It is no copy of the source, and nobody says so.
        assert [problem.path for problem in run.problems] == ["older here"] and not run.complete
        assert simulation.status.target_data_state is TargetDataState.MIRROR_REQUIRED
        sent = changed + 6 if checksum else FILE_BYTES + 6
        assert run.sent_bytes == sent


@pytest.mark.parametrize("checksum_all", [False, True])
async def test_an_empty_target(checksum_all: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(4, options=options(checksum_all=checksum_all), start=False) as simulation:
        changes = RandomChanges(simulation.source, random.Random(4))
        changes.steps(60)
        simulation.source.create(b"large")
        simulation.source.write(b"large", 0, random.Random(4).randbytes(3 * limits.PART_BYTES))
        await mirrored(simulation)
        simulation.assert_equal()
        assert progress(simulation).complete


@pytest.mark.parametrize("checksum_all", [False, True])
@pytest.mark.parametrize("seed", range(20))
async def test_changes_and_kills_meanwhile(
    seed: int,
    checksum_all: bool,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setattr(limits, "PART_BYTES", 4 * KIB)
    monkeypatch.setattr(limits, "PIECES_IN_FLIGHT", 6)
    monkeypatch.setattr(limits, "COMPARE_BLOCK_BYTES", random.Random(seed).choice((UNIT, 4 * UNIT, 64 * KIB)))
    chance = random.Random(seed)
    async with simulate(seed, options=options(checksum_all=checksum_all), start=False) as simulation:
        make_stale(simulation, chance, share=0.1, same_time=checksum_all)
        simulation.network.split = 0.2
        simulation.start_receiver()
        simulation.start_sender()
        name = b"file"
        for _ in range(chance.randint(10, 40)):
            await trio.sleep(chance.choice((0, 0.0005, 0.005, 0.02)))
            act = chance.random()
            if act < 0.4:
                simulation.source.write(name, chance.randrange(FILE_BYTES), chance.randbytes(3000))
            elif act < 0.5:
                simulation.source.truncate(name, chance.randrange(FILE_BYTES // 2, FILE_BYTES))
            elif act < 0.6:
                simulation.source.fallocate(name, 3, chance.randrange(FILE_BYTES), 9 * UNIT)
            elif act < 0.65:
                other = b"file" if name == b"other" else b"other"
                simulation.source.rename(name, other)
                name = other
            else:
                await simulation.interrupt(act, cut=0.7, receiver=0.75, sender=0.8)
        await simulation.drained()
        simulation.assert_equal(frozenset({"holes"}))
        assert simulation.status.target_data_state is TargetDataState.OK


async def killed_everywhere() -> None:
    """Wherever a sender is killed: what has the size and time of the source is right."""
    for number in range(1, 60, 3):
        async with simulate(number, options=options(), start=False) as simulation:
            make_stale(simulation, random.Random(number), share=0.1, same_time=False)
            simulation.start_receiver()
            simulation.start_sender()
            await trio.sleep(number * 0.0005)
            await simulation.kill_sender()
            source, target = simulation.source_root / "file", simulation.target_root / "file"
            if source.stat().st_mtime_ns == target.stat().st_mtime_ns:
                assert source.read_bytes() == target.read_bytes()
            simulation.start_sender()
            await simulation.drained()
            simulation.assert_equal()


async def test_a_sender_killed_before_the_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(limits, "PART_BYTES", 4 * KIB)
    await killed_everywhere()


# --- planted mistakes ---


def one_digest_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    differing = digests.differing

    def carelessly(*arguments: Any) -> Any:
        return differing(*arguments)[1:]

    monkeypatch.setattr(digests, "differing", carelessly)


def units_are_believed_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = digests.differing_units
    monkeypatch.setattr(digests, "differing_units", lambda here, there: found(here, there)[:-1])


async def test_an_end_that_does_not_wait_is_found(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    take = PatchRequest.take
    monkeypatch.setattr(PatchRequest, "take", lambda self: take(self)._replace(ends=True))
    monkeypatch.setattr(limits, "PART_BYTES", 4 * KIB)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        await killed_everywhere()


@pytest.mark.parametrize("plant", [one_digest_is_not_compared, units_are_believed_equal])
async def test_a_planted_mistake_is_found(
    plant: Any, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    plant(monkeypatch)
    async with simulate(5, options=options(), start=False) as simulation:
        make_stale(simulation, random.Random(5), share=0.1, same_time=False)
        await mirrored(simulation)
        with pytest.raises(AssertionError):
            simulation.assert_equal()
