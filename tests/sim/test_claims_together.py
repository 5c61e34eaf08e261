"""Mirrors of what is mostly there: files are claimed together, and what differs is found all the same."""

import os
import random
import subprocess
import time

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.trees import build_random_tree

from replicator import limits
from replicator.mirror.pieces import Alike
from replicator.mirror.place import Placer
from replicator.sender.arguments import SenderOptions

pytestmark = pytest.mark.sim

FILES = 1000


def make_files(simulation: Simulation, *, size: int = 3000) -> None:
    """A tree of its own in the source, not journaled."""
    chance = random.Random(1)
    simulation.journaling = False
    for number in range(FILES):
        directory = b"d%d" % (number // 250)
        if number % 250 == 0:
            simulation.source.mkdir(directory)
        path = directory + b"/f%d" % number
        simulation.source.create(path)
        simulation.source.write(path, 0, chance.randbytes(number % size))
    simulation.source.settle()
    simulation.journaling = True


def copy_tree(simulation: Simulation) -> None:
    subprocess.run(["cp", "-a", f"{simulation.source_root}/.", simulation.target_root], check=True)


async def mirrored(simulation: Simulation) -> None:
    simulation.start_receiver()
    simulation.start_sender()
    await simulation.mirror_ended()


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[Alike]:
    """Claims that targets have checked."""
    found: list[Alike] = []
    place = Placer._place_alike
    monkeypatch.setattr(Placer, "_place_alike", lambda self, entry: (found.append(entry), place(self, entry)))
    return found


async def test_nothing_is_sent_of_what_is_equal(
    placed: list[Alike], autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(1, options=SenderOptions(mirror="difference"), start=False) as simulation:
        make_files(simulation)
        copy_tree(simulation)
        await mirrored(simulation)
        simulation.assert_equal()
        run = simulation.status.mirror
        assert run.complete and run.sent_bytes == 0
        assert run.done_files == FILES and run.skipped_bytes == run.done_bytes > 0
        assert sum(len(entry.names) for entry in placed) == FILES
        assert simulation.status.sent_mirror_bytes < 80 * FILES


async def test_a_directory_of_many_steps(
    monkeypatch: pytest.MonkeyPatch, placed: list[Alike], autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(limits, "STEP_FILES", 4)
    async with simulate(2, options=SenderOptions(mirror="difference"), start=False) as simulation:
        build_random_tree(simulation.source_root, 2, 60)
        make_files(simulation)
        copy_tree(simulation)
        for path in sorted((simulation.target_root / "d1").iterdir())[::3]:
            path.write_bytes(b"old")
        await mirrored(simulation)
        simulation.assert_equal()
        assert len(placed) > FILES // (4 * limits.CLAIMS_PER_FILE)
        assert simulation.status.mirror.complete


@pytest.mark.parametrize("seed", range(8))
async def test_under_changes(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Claims that meanwhile are none any more: content that hides behind size and mtime is not journaled as
    such, names move, sessions are cut.
    """
    monkeypatch.setattr(limits, "STEP_FILES", random.Random(seed).choice([2, 16, 256]))
    async with simulate(100 + seed, options=SenderOptions(mirror="difference"), start=False) as simulation:
        make_files(simulation, size=100)
        copy_tree(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        changes = RandomChanges(simulation.source, simulation.random)
        for _ in range(60):
            changes.steps(5)
            path = b"d%d/f%d" % divmod(simulation.random.randrange(FILES), 250)
            hide(simulation, path)
            if simulation.random.random() < 0.05:
                simulation.network.cut("source", "target")
            await trio.sleep(simulation.random.choice([0, 0.001, 0.01]))
        await simulation.drained()
        simulation.assert_equal()


def hide(simulation: Simulation, path: bytes) -> None:
    """Change content, and put size and mtime back."""
    source = simulation.source
    path = b"d%d/f%d" % (int(path.split(b"/f")[1]) // 250, int(path.split(b"/f")[1]))
    try:
        state = os.stat(source.at(path))
    except OSError:
        return
    if state.st_size:
        source.write(path, 0, b"Z")
        source.utime(path, state.st_mtime_ns)


async def killed_in_the_middle(simulation: Simulation, share: float, side: str) -> int:
    """Bytes that had been sent then."""
    simulation.start_receiver()
    simulation.start_sender()
    size = sum(path.stat().st_size for path in simulation.source_root.rglob("*") if path.is_file())
    with trio.fail_after(600):
        while simulation.status.mirror.done_bytes < share * size:  # noqa: ASYNC110
            await trio.sleep(0.0001)
    sent = simulation.status.mirror.sent_bytes
    await (simulation.kill_sender() if side == "sender" else simulation.kill_receiver())
    return sent


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_a_full_mirror_that_is_killed_goes_on_where_it_was(
    share: float, side: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """And what it had not brought is brought, though it looks the same on the target."""
    monkeypatch.setattr(limits, "PIECE_BYTES_IN_FLIGHT", 64 * 1024)
    async with simulate(7, options=SenderOptions(mirror="full"), start=False) as simulation:
        make_files(simulation)
        copy_tree(simulation)
        for path in simulation.target_root.rglob("f*"):
            state = path.stat()
            path.write_bytes(b"-" * state.st_size)
            os.utime(path, ns=(0, state.st_mtime_ns))
        # Files have the machine's time: a source whose clock is behind would not believe them.
        clock = simulation.source_world.clock
        clock.jump_ns = time.time_ns() + 10**10 - clock.wall_ns()
        size = sum(path.stat().st_size for path in simulation.source_root.rglob("f*"))
        sent = await killed_in_the_middle(simulation, share, side)
        if side == "sender":
            simulation.start_sender()
            await simulation.mirror_ended()
            run = simulation.status.mirror
            assert run.sent_bytes <= size - sent + 0.15 * size
        else:
            simulation.start_receiver()
            await simulation.mirror_ended()
        simulation.assert_equal()
        assert simulation.status.mirror.complete
