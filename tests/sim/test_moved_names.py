"""What was renamed on the source while nobody saw it is not sent again."""

import os
import random
import shutil
import subprocess

import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.mirror.elsewhere import FileIndex
from replicator.mirror.place import Placer
from replicator.sender.arguments import SenderOptions

pytestmark = pytest.mark.sim

FILES = 30
FILE_BYTES = 3 * limits.ELSEWHERE_MIN_BYTES


def make(simulation: Simulation) -> None:
    """The same tree on both sides."""
    chance = random.Random(1)
    simulation.journaling = False
    simulation.source.mkdir(b"old")
    for number in range(FILES):
        path = b"old/f%d" % number
        simulation.source.create(path)
        simulation.source.write(path, 0, chance.randbytes(FILE_BYTES + number * 1000))
    simulation.source.settle()
    subprocess.run(["cp", "-a", f"{simulation.source_root}/.", simulation.target_root], check=True)


async def mirrored(simulation: Simulation) -> None:
    simulation.journaling = True
    simulation.start_receiver()
    simulation.start_sender()
    await simulation.mirror_ended()


def assert_new_is_equal(simulation: Simulation) -> None:
    """The old directory is an orphan, which nobody has asked to remove."""
    for number in range(FILES):
        source, target = (
            root / "new" / f"f{number}" for root in (simulation.source_root, simulation.target_root)
        )
        assert source.read_bytes() == target.read_bytes()
        assert source.stat().st_mtime_ns == target.stat().st_mtime_ns
    times = [(root / "new").stat().st_mtime_ns for root in (simulation.source_root, simulation.target_root)]
    assert times[0] == times[1]


@pytest.mark.parametrize("checksum", [False, True])
async def test_a_directory_renamed_while_unconnected(
    checksum: bool, autojump_clock: trio.testing.MockClock
) -> None:
    options = SenderOptions(mirror="difference", checksum=checksum)
    async with simulate(1, options=options, start=False) as simulation:
        make(simulation)
        os.rename(simulation.source_root / "old", simulation.source_root / "new")
        await mirrored(simulation)
        assert_new_is_equal(simulation)
        assert simulation.status.mirror.complete
        assert simulation.status.sent_mirror_bytes < 0.01 * FILES * FILE_BYTES


async def test_a_file_that_only_looks_like_it(autojump_clock: trio.testing.MockClock) -> None:
    """Of equal size and time, but with other content: nothing of it is believed."""
    async with simulate(2, options=SenderOptions(mirror="difference"), start=False) as simulation:
        make(simulation)
        os.rename(simulation.source_root / "old", simulation.source_root / "new")
        for path in (simulation.target_root / "old").iterdir():
            state = path.stat()
            content = bytearray(path.read_bytes())
            content[1000:2000] = b"-" * 1000
            path.write_bytes(content)
            os.utime(path, ns=(0, state.st_mtime_ns))
        await mirrored(simulation)
        assert_new_is_equal(simulation)


async def test_searches_in_vain_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(limits, "ELSEWHERE_VAIN", 5)
    asked: list[bytes] = []
    place = Placer._place_elsewhere
    monkeypatch.setattr(
        Placer, "_place_elsewhere", lambda self, entry: (asked.append(entry.path), place(self, entry))
    )
    monkeypatch.setattr(limits, "STEP_FILES", 4)
    monkeypatch.setattr(limits, "CLAIMS_PER_FILE", 1)
    async with simulate(3, options=SenderOptions(mirror="difference"), start=False) as simulation:
        make(simulation)
        shutil.rmtree(simulation.target_root / "old")
        os.rename(simulation.source_root / "old", simulation.source_root / "new")
        await mirrored(simulation)
        simulation.assert_equal()
        assert 5 <= len(asked) < FILES


@pytest.mark.parametrize("seed", range(8))
async def test_while_names_move_and_somebody_dies(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(limits, "STEP_FILES", chance.choice([2, 8, 256]))
    async with simulate(30 + seed, options=SenderOptions(mirror="difference"), start=False) as simulation:
        make(simulation)
        os.rename(simulation.source_root / "old", simulation.source_root / "new")
        simulation.journaling = True
        simulation.start_receiver()
        simulation.start_sender()
        for step in range(20):
            await trio.sleep(chance.choice([0, 0.001, 0.01]))
            path = b"new/f%d" % chance.randrange(FILES)
            source = simulation.source
            if os.path.exists(source.at(path)):
                if chance.random() < 0.5:
                    source.write(path, chance.randrange(FILE_BYTES), chance.randbytes(500))
                else:
                    source.rename(path, b"new/g%d" % step)
            await simulation.interrupt(chance.random(), cut=0.1, receiver=0.15, sender=0.2)
        await simulation.drained()
        if (simulation.target_root / "old").exists():  # not seen to be removed: an orphan
            shutil.rmtree(simulation.target_root / "old")
        simulation.assert_equal(frozenset({"directory mtime_ns"}))


def test_the_index_is_closed() -> None:
    index = FileIndex([])
    assert index.find(1, 1) is None
    index.close()
