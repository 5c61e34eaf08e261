"""Verifications: no difference where there is none, whatever changes meanwhile; each one that is there is
found, named, and brought if that is wanted.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.mirror import digests
from replicator.mirror.compare import Comparer
from replicator.schedules import Schedule
from replicator.sender.touched import Touched
from replicator.sender.verifier import Verifier
from replicator.sender.verify_run import VerifyOptions
from replicator.sender.verify_walk import Recently
from replicator.status import MirrorStatus, TargetDataState, VerifyPhase, VerifyProgress

pytestmark = pytest.mark.sim

KIB = 1024
_OVER = (VerifyPhase.COMPLETE, VerifyPhase.STOPPED)


async def verified(simulation: Simulation, **options: bool) -> VerifyProgress:
    """The report of a verification, from its start to its end."""
    sender = simulation.sender
    assert sender is not None
    sender.verify_start(**options)
    return await ended(simulation)


async def ended(simulation: Simulation, timeout_s: float = 600) -> VerifyProgress:
    with trio.fail_after(timeout_s):
        while progress(simulation).phase not in _OVER:  # noqa: ASYNC110  # a look from outside: nothing tells
            await trio.sleep(0.01)
    return progress(simulation)


def progress(simulation: Simulation) -> VerifyProgress:
    assert simulation.sender is not None
    return simulation.sender.verify_progress()


def found(report: VerifyProgress) -> dict[str, tuple[str, ...]]:
    return {difference.path: difference.aspects for difference in report.differences}


def furnish(simulation: Simulation) -> None:
    """A small tree of everything."""
    source = simulation.source
    for directory in (b"d", b"d/e", b"empty"):
        source.mkdir(directory)
    for name, size in ((b"file", 5000), (b"d/other", 100), (b"d/e/large", 3 * limits.PART_BYTES)):
        source.create(name)
        source.write(name, 0, random.Random(size).randbytes(size))
    source.create(b"sparse")
    source.truncate(b"sparse", 1024 * KIB)
    source.write(b"sparse", 512 * KIB, b"in the middle")
    source.symlink(b"link", b"to/somewhere")
    source.create(b"one name")
    source.write(b"one name", 0, b"linked")
    source.link(b"one name", b"another name")
    source.setxattr(b"file", b"user.colour", b"blue")
    source.settle()


def keeping_times(path: Path, change: Callable[[Path], object]) -> None:
    state = path.lstat()
    parent = path.parent.stat()
    change(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)


async def test_what_is_missing_and_what_is_extra(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(3) as simulation:
        furnish(simulation)
        await simulation.drained()
        target = simulation.target_root
        keeping_parent(target, lambda: (target / "file").unlink())
        keeping_parent(target, lambda: (target / "empty").rmdir())
        keeping_parent(target / "d", lambda: (target / "d/extra").write_bytes(b"extra"))
        report = await verified(simulation)
        assert found(report) == {"file": ("missing",), "empty": ("missing",), "d/extra": ("extra",)}
        assert (report.missing_files, report.missing_directories, report.extra) == (1, 1, 1)
        assert (target / "d/extra").exists()


def keeping_parent(directory: Path, change: Callable[[], object]) -> None:
    state = directory.stat()
    change()
    os.utime(directory, ns=(state.st_atime_ns, state.st_mtime_ns))


async def test_two_files_that_are_one_in_the_copy(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(16) as simulation:
        furnish(simulation)
        for name in (b"twin", b"d/twin"):
            simulation.source.create(name)
            simulation.source.write(name, 0, b"equal")
        simulation.source.settle()
        await simulation.drained()
        for root in (simulation.source_root, simulation.target_root):
            for name in ("twin", "d/twin"):
                os.utime(root / name, ns=(0, 10**18))
        target = simulation.target_root
        state = (target / "d").stat()
        (target / "d/twin").unlink()
        os.link(target / "twin", target / "d/twin")
        os.utime(target / "d", ns=(0, state.st_mtime_ns))
        report = await verified(simulation, checksum=True)
        assert [aspects for _, aspects in found(report).items()] == [("hard link",)]
        assert set(found(report)) <= {"twin", "d/twin"}
        await verified(simulation, remirror=True)
        assert not os.path.samefile(target / "twin", target / "d/twin")
        assert not found(await verified(simulation, checksum=True))


async def test_a_hole_that_became_data_is_equal(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(4) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "sparse", lambda p: overwrite(p, 0, bytes(64 * KIB)))
        report = await verified(simulation, checksum=True)
        assert not found(report) and report.files == 7 and report.directories == 4


async def test_only_what_differs_travels(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(6) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "d/e/large", lambda p: overwrite(p, 2 * 1024 * KIB, b"x"))
        before = simulation.status.sent_mirror_bytes
        report = await verified(simulation, checksum=True, remirror=True)
        await trio.sleep(1)
        assert report.bytes_out_of_sync == limits.COMPARE_BLOCK_BYTES
        assert simulation.status.sent_mirror_bytes - before < limits.COMPARE_BLOCK_BYTES + 16 * KIB
        simulation.assert_equal()


async def changing(simulation: Simulation, seed: int) -> None:
    """In bursts, many times in each step of a verification; mtimes are told after each of them."""
    chance = random.Random(seed)
    changes = RandomChanges(simulation.source, chance)
    simulation.source.create(b"hot")
    for _ in range(8):
        for _ in range(50):
            changes.steps(chance.randint(1, 2))
            simulation.source.write(b"hot", chance.randrange(256 * KIB), chance.randbytes(3000))
            if chance.random() < 0.1:
                simulation.source.truncate(b"hot", chance.randrange(64 * KIB))
            await trio.sleep(chance.choice((0, 0.0001, 0.0003, 0.001)))
        await trio.sleep(chance.random() / 2)
        simulation.source.settle()


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("seed", range(10))
async def test_no_difference_while_everything_changes(
    seed: int, checksum: bool, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    await under_load(seed, checksum, monkeypatch)


async def under_load(seed: int, checksum: bool, monkeypatch: pytest.MonkeyPatch) -> VerifyProgress:
    monkeypatch.setattr(limits, "STEP_FILES", 7)
    monkeypatch.setattr(limits, "CHECK_TRIES", 6)
    monkeypatch.setattr(limits, "CHECK_AGAIN_MAX_S", 0.5)
    monkeypatch.setattr(limits, "MTIME_TOLD_S", 1.0)
    async with simulate(seed) as simulation:
        furnish(simulation)
        RandomChanges(simulation.source, random.Random(seed)).steps(80)
        await simulation.drained()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changing, simulation, seed + 1000)
            await trio.sleep(0.002)
            report = await verified(simulation, checksum=checksum)
            nursery.cancel_scope.cancel()
        assert not found(report), found(report)
        assert not report.problems and report.files > 7
        await simulation.drained()
        simulation.assert_equal(frozenset({"holes"}))
        assert simulation.status.target_data_state is TargetDataState.OK
        return report


async def test_a_difference_is_found_while_everything_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with simulate(7) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "d/e/large", lambda p: overwrite(p, 100_000, b"flipped"))
        keeping_times(simulation.target_root / "file", lambda p: p.chmod(0o611))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hot_file, simulation)
            report = await verified(simulation, checksum=True)
            nursery.cancel_scope.cancel()
        assert found(report) == {"d/e/large": ("content",), "file": ("mode",)}


async def hot_file(simulation: Simulation) -> None:
    simulation.source.create(b"hot")
    chance = random.Random(1)
    while True:
        for _ in range(100):
            simulation.source.write(b"hot", chance.randrange(256 * KIB), chance.randbytes(3000))
            await trio.sleep(0.005)
        simulation.source.settle()


async def growing(simulation: Simulation) -> None:
    """A log that grows all the time, by leaps."""
    simulation.source.create(b"growing")
    for number in range(3000):
        simulation.source.write(b"growing", number * 9000, b"line")
        await trio.sleep(0.0002)
    simulation.source.settle()


async def grows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_SETTLE_S", 0.01)  # as long as it grows
    async with simulate(seed) as simulation:
        furnish(simulation)
        await simulation.drained()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(growing, simulation)
            await trio.sleep(0.1)
            for _ in range(5):
                report = await verified(simulation, checksum=True)
                assert not found(report), found(report)
            nursery.cancel_scope.cancel()


async def test_a_file_that_grows(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    await grows(15, monkeypatch)


async def test_sessions_break_and_both_sides_are_killed(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(8) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "d/e/large", lambda p: overwrite(p, 100_000, b"flipped"))
        assert simulation.sender is not None
        simulation.sender.verify_start(checksum=True)
        for number in range(6):
            await trio.sleep(0.003)
            if number % 3 == 0:
                simulation.network.cut("source", "target")
            elif number % 3 == 1:
                await simulation.kill_receiver()
                simulation.start_receiver()
            else:
                await simulation.kill_sender()
                simulation.start_sender()
        assert found(await ended(simulation)) == {"d/e/large": ("content",)}


async def test_pause_stop_and_what_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(9) as simulation:
        furnish(simulation)
        sender = simulation.sender
        assert sender is not None
        await trio.sleep(0.01)
        with pytest.raises(ReplicatorError, match="mirror is running"):
            sender.verify_start()
        await simulation.drained()
        sender.verify_start(checksum=True)
        with pytest.raises(ReplicatorError, match="a verification is running"):
            sender.verify_start()
        assert simulation.status.mirror_status is MirrorStatus.VERIFYING
        sender.verify_act("pause")
        await trio.sleep(30)
        assert progress(simulation).phase is VerifyPhase.PAUSED and progress(simulation).files < 7
        await simulation.kill_sender()
        sender = simulation.start_sender()
        await trio.sleep(30)
        assert progress(simulation).phase is VerifyPhase.PAUSED
        sender.verify_act("resume")
        assert (await ended(simulation)).files == 7
        sender.verify_start()
        sender.verify_act("stop")
        assert progress(simulation).phase is VerifyPhase.STOPPED
        assert [r.result for r in sender.runs([])] == ["complete", "equal", "stopped"]
        with pytest.raises(ReplicatorError, match="no verification"):
            sender.verify_act("stop")
        with pytest.raises(ReplicatorError, match="newer"):
            sender.verify_start(newer=True)


async def test_only_what_is_newer_is_brought(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(10) as simulation:
        furnish(simulation)
        await simulation.drained()
        for name, age_ns in (("file", 10**9), ("d/other", -(10**9))):
            path = simulation.target_root / name
            os.utime(path, ns=(0, path.stat().st_mtime_ns - age_ns))
        report = await verified(simulation, remirror=True, newer=True)
        assert set(found(report)) == {"file", "d/other"} and (report.remirrored, report.left) == (1, 1)
        assert set(found(await verified(simulation))) == {"d/other"}


def text_of(simulation: Simulation, path: str) -> str:
    disk = simulation.source_world.disk
    handle = disk.open_read(path)
    try:
        return disk.read(handle, disk.size(path), 0).decode()
    finally:
        disk.close(handle)


async def test_the_log(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(11) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "file", lambda p: overwrite(p, 0, b"flipped"))
        keeping_times(simulation.target_root / "d", lambda p: p.chmod(0o711))
        report = await verified(simulation, checksum=True, remirror=True)
        sender = simulation.sender
        assert sender is not None
        text = text_of(simulation, sender.verify.log.path)
        for line in (
            f"BEGIN VERIFICATION {report.run}",
            "everything --> target:1500, checksum on",
            "file DIFFERENT ON TARGET: content",
            "5000 BYTES OUT OF SYNC",
            "Security differs: mode",
            "Files different: 1",
            "Directories compared: 4",
            f"END VERIFICATION {report.run}",
        ):
            assert line in text
        assert text.endswith(f"END VERIFICATION {report.run}\n\n")
        sender.verify.log.settings = type(sender.verify.log.settings)(size_max=len(text) + 50)
        await verified(simulation)
        full = text_of(simulation, sender.verify.log.path)
        assert full.startswith(text) and len(full) <= len(text) + 50


async def test_a_schedule_outlives_its_sender(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(12) as simulation:
        furnish(simulation)
        await simulation.drained()
        sender = simulation.sender
        assert sender is not None
        now_s = simulation.source_world.clock.wall_ns() / 1e9
        schedule = Schedule(first=now_s + 100, every_s=3600)
        sender.verify.schedule(schedule, VerifyOptions(checksum=True))
        assert progress(simulation).next_run == now_s + 100
        await trio.sleep(200)
        assert progress(simulation).scheduled
        assert len(sender.runs(["verify"])) == 1 and progress(simulation).next_run == now_s + 3700
        await simulation.kill_sender()
        await trio.sleep(3 * 3600 + 100)  # three are missed
        sender = simulation.start_sender()
        await trio.sleep(100)
        assert len(sender.runs(["verify"])) == 2
        assert progress(simulation).next_run == now_s + 100 + 4 * 3600
        await trio.sleep(2 * 3600)
        assert len(sender.runs(["verify"])) == 4
        sender.verify.schedule(None, VerifyOptions())
        await trio.sleep(2 * 3600)
        assert len(sender.runs(["verify"])) == 4 and progress(simulation).next_run is None


async def test_in_the_background(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(13) as simulation:
        furnish(simulation)
        await simulation.drained()
        sender = simulation.sender
        assert sender is not None
        budget = 64 * KIB
        sender.verify_background(budget, {"checksum": True})
        await trio.sleep(20)
        assert progress(simulation).oldest_seconds is None and progress(simulation).read_bytes < 25 * budget
        await trio.sleep(120)
        oldest_s = progress(simulation).oldest_seconds
        assert oldest_s is not None and oldest_s < 150 and len(sender.runs(["background"])) >= 1
        keeping_times(simulation.target_root / "file", lambda p: overwrite(p, 0, b"flipped"))
        await trio.sleep(250)
        assert sender.runs(["background"])[-1].different == 1
        assert (await verified(simulation, checksum=True)).different_files == 1  # by hand meanwhile
        sender.verify_background(0, {})
        await trio.sleep(10)
        assert not sender.verifier.run_under_way


# --- files that move ---


async def files_that_move(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that differ move all the time, to where it was looked at already and back: each is found."""
    monkeypatch.setattr(limits, "STEP_FILES", 2)
    chance = random.Random(seed)
    async with simulate(seed) as simulation:
        source, root = simulation.source, simulation.target_root
        directories = [b"%c" % letter for letter in b"abcdefgh"]
        for directory in directories:
            source.mkdir(directory)
            for number in range(6):
                source.create(b"%s/%d" % (directory, number))
        where = [chance.choice(directories) + b"/moving%d" % number for number in range(4)]
        for path in where:
            source.create(path)
            source.write(path, 0, b"as it is")
        source.settle()
        await simulation.drained()
        for path in where:
            keeping_times(root / os.fsdecode(path), lambda p: overwrite(p, 0, b"AS IT IS"))
        sender = simulation.sender
        assert sender is not None
        sender.verify_start(checksum=True)
        seen = [{path} for path in where]
        while progress(simulation).phase not in _OVER:
            await trio.sleep(chance.choice((0.0001, 0.001, 0.01)))
            for number, path in enumerate(where):
                if chance.random() < 0.5 or len(seen[number]) > 12:
                    continue
                where[number] = b"%s/%d-%d" % (chance.choice(directories), number, len(seen[number]))
                seen[number].add(where[number])
                if chance.random() < 0.3:
                    source.link(path, where[number])
                    source.unlink(path)
                else:
                    source.rename(path, where[number])
        report = progress(simulation)
        different = {os.fsencode(path) for path, aspects in found(report).items() if "content" in aspects}
        assert all(names & different for names in seen), (seed, seen, different)
        assert different <= set().union(*seen)


@pytest.mark.parametrize("seed", range(12))
async def test_a_file_that_moves_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    await files_that_move(seed, monkeypatch)


def moves_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verifier, "_is_open", lambda *_: False)


def what_was_just_read_is_done_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recently, "__contains__", lambda *_: False)


@pytest.mark.parametrize("plant", [moves_are_not_looked_at, what_was_just_read_is_done_with])
async def test_a_planted_mistake_misses_files_that_move(
    plant: Any, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        for seed in range(12):
            await files_that_move(seed, monkeypatch)


# --- planted mistakes ---


def operations_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Touched, "object_since", lambda *_: False)
    monkeypatch.setattr(Touched, "content_since", lambda *_: False)


def names_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Touched, "names_since", lambda *_: False)


def what_lies_behind_an_end_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "padded", lambda content, length: content)


def mtimes_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.sender.verifier._SOON", frozenset())


@pytest.mark.parametrize(
    "plant",
    [
        operations_are_not_looked_at,
        names_are_not_looked_at,
        mtimes_count_at_once,
    ],
)
async def test_a_planted_mistake_makes_false_differences(
    plant: Any, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        for seed in range(10):
            await under_load(seed, True, monkeypatch)


async def test_what_lies_behind_an_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    what_lies_behind_an_end_differs(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        for seed in range(15, 20):
            await grows(seed, monkeypatch)


async def test_a_comparison_that_looks_away_is_noticed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    unequal = digests.unequal
    monkeypatch.setattr(digests, "unequal", lambda *arguments: unequal(*arguments)[1:])
    monkeypatch.setattr(Comparer, "_peer", lambda *_: b"")
    async with simulate(14) as simulation:
        furnish(simulation)
        await simulation.drained()
        keeping_times(simulation.target_root / "file", lambda p: overwrite(p, 0, b"flipped"))
        with pytest.raises(AssertionError):
            assert found(await verified(simulation, checksum=True))
