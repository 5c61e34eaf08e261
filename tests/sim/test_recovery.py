"""Recoveries of what is known to be old: whole agents, random changes while apart and meanwhile, faults.

What is not journaled is told to the dirt of the sender instead. Afterwards both trees are equal, and what was
read and sent is in proportion to what changed.
"""

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from kit import random_changes
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.mirror.regions import PatchReader
from replicator.mirror.scan import Source
from replicator.ops import Record
from replicator.sender.amending import Amender
from replicator.sender.arguments import SenderOptions
from replicator.sender.flow import QueuedPiece

pytestmark = pytest.mark.sim


@pytest.fixture
def small_limits(small_limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And records come few at a time."""
    monkeypatch.setattr(limits, "RUN_BYTES", 1024)


class Pair:
    """A simulation whose sender can be asked to recover."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.lost: list[Record] = []
        simulation.source.observers.append(self.observe)
        self.start_sender()

    def observe(self, record: Record) -> None:
        if not self.simulation.journaling:
            self.lost.append(record)

    def start_sender(self) -> None:
        self.simulation.start_sender()

    def recover(self) -> None:
        """The sender hears what was not journaled."""
        sender = self.simulation.sender
        assert sender is not None
        mirrors, dirt = sender.mirrors, sender.dirt
        if mirrors.run is None:
            mirrors.begin_recovery()
        for record in self.lost:
            dirt.fold(mirrors._flows[0], record)
        self.lost.clear()
        assert dirt.save()
        mirrors.recover(dirt.require)

    async def equal_again(self) -> None:
        await self.simulation.drained()
        self.simulation.assert_equal()
        assert self.simulation.status.target_data_state == "OK"

    async def fault(self, chance: random.Random) -> None:
        which = chance.choice(("cut", "sender", "receiver", "both"))
        if which == "cut":
            self.simulation.network.cut("source", "target")
        if which in ("sender", "both"):
            await self.simulation.kill_sender()
            self.start_sender()
        if which in ("receiver", "both"):
            await self.simulation.kill_receiver()
            self.simulation.start_receiver()


async def one_run(seed: int, *, faults: bool, links: bool = True) -> None:
    chance = random.Random(seed)
    # Every other tree has files of many blocks, so that there are holes among them.
    random_changes.SIZE_MAX = 400 if seed % 2 else 20_000
    async with simulate(seed, options=SenderOptions(mirror="full"), start=False) as simulation:
        simulation.source.create(b"one that stays")  # a source that became empty empties no target
        simulation.start_receiver()
        pair = Pair(simulation)
        changes = RandomChanges(simulation.source, chance, links=links)
        changes.steps(80)
        await pair.equal_again()
        for _ in range(3):
            changes.steps(chance.choice((0, 3)))  # may be under way when the sides part
            simulation.journaling = False
            changes.steps(chance.choice((1, 5, 20, 50)))
            simulation.journaling = True
            pair.recover()
            for _ in range(chance.randint(5, 30)):
                changes.steps(chance.choice((0, 1, 1, 3, 10)))
                await trio.sleep(chance.choice((0, 0.0002, 0.001, 0.01)))
                if faults and chance.random() < 0.08:
                    await pair.fault(chance)
            await pair.equal_again()


@pytest.mark.parametrize("faults", [False, True], ids=["calm", "faults"])
@pytest.mark.parametrize("seed", range(12))
async def test_both_trees_end_equal(
    seed: int, faults: bool, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    await one_run(seed, faults=faults)


# --- planted mistakes: the runs above must find them ---

Plant = Callable[[pytest.MonkeyPatch], None]


def no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.mirror.patch.os.ftruncate", lambda descriptor, size: None)


def no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    read = PatchReader._read

    def without(self: PatchReader, bytes_max: int) -> Any:
        extents, _, content = read(self, bytes_max)
        return extents, (), content

    monkeypatch.setattr(PatchReader, "_read", without)


def regions_after_later_records(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Amender.__init__

    def late(self: Amender, *arguments: Any) -> None:
        init(self, *arguments)
        queue = self._queue

        def queue_late(flow: Any, piece: QueuedPiece) -> None:
            if piece.patch is not None:
                piece.place += 1
            queue(flow, piece)

        self._queue = queue_late

    monkeypatch.setattr(Amender, "__init__", late)


@pytest.mark.parametrize(
    "plant",
    [
        no_size,
        regions_after_later_records,
    ],
)
def test_a_planted_mistake_is_found(
    plant: Plant, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(60):
        try:
            trio.run(
                partial(one_run, seed, faults=False),
                clock=trio.testing.MockClock(autojump_threshold=0),
            )
        except BaseExceptionGroup as group:
            assert group.subgroup(AssertionError) is not None
            return
    raise AssertionError("no run found it")


@pytest.mark.parametrize("plant", [None, no_size, no_holes])
async def test_sizes_and_holes_are_brought(
    plant: Plant | None, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random changes rarely make a hole of a whole block where there was data."""
    async with simulate(1, start=False) as simulation:
        source = simulation.source
        for path in (b"punched", b"emptied", b"cut"):
            source.create(path)
            source.write(path, 0, b"x" * 40_000)
        simulation.start_receiver()
        pair = Pair(simulation)
        await pair.equal_again()
        simulation.journaling = False
        source.fallocate(b"punched", 3, 5000, 20_000)
        source.truncate(b"emptied", 0)
        source.truncate(b"emptied", 40_000)
        source.truncate(b"cut", 10_000)
        simulation.journaling = True
        if plant is not None:
            plant(monkeypatch)
        pair.recover()
        await simulation.drained()
        if plant is None:
            simulation.assert_equal()
        else:
            with pytest.raises(AssertionError):
                simulation.assert_equal()


# --- in proportion to what changed ---


class Counted:
    """What the source side has read: bytes of contents, lists of names, objects by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = self.lists = self.looks = self.sent = 0
        pread, scandir = os.pread, os.scandir
        look, read_names = Source.look, Source.read_names

        def counting_pread(descriptor: int, size: int, offset: int) -> bytes:
            data = pread(descriptor, size, offset)
            self.bytes += len(data)
            return data

        def counting_scandir(where: Any = ".") -> Any:
            self.lists += 1
            return scandir(where)

        def counting_look(source: Source, *arguments: Any) -> Any:
            self.looks += 1
            return look(source, *arguments)

        def counting_read_names(source: Source, *arguments: Any) -> Any:
            found = read_names(source, *arguments)
            self.looks += len(found)
            return found

        monkeypatch.setattr(os, "pread", counting_pread)
        monkeypatch.setattr(os, "scandir", counting_scandir)
        monkeypatch.setattr(Source, "look", counting_look)
        monkeypatch.setattr(Source, "read_names", counting_read_names)


async def recovered(pair: Pair, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> Counted:
    """What it took to bring `change`, made while apart."""
    simulation = pair.simulation
    simulation.source.settle()
    await simulation.drained()
    simulation.journaling = False
    change()
    simulation.journaling = True
    sender = simulation.sender
    assert sender is not None
    sent = sender.totals.mirror_bytes
    with monkeypatch.context() as patched:
        counted = Counted(patched)
        pair.recover()
        await simulation.drained()
    progress = simulation.status.mirror
    assert progress is not None and progress.complete and progress.percent == 100
    counted.sent = sender.totals.mirror_bytes - sent
    return counted


def write_sparsely(path: Path, size: int, chance: random.Random, count: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.truncate(size)
        for _ in range(count):
            os.pwrite(file.fileno(), chance.randbytes(4096), chance.randrange(size // 4096) * 4096)


async def test_regions_of_a_large_file_cost_what_they_hold(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, count = 100 << 30, 200
    chance = random.Random(1)
    async with simulate(1, start=False) as simulation:
        simulation.source.create(b"large")
        write_sparsely(simulation.source_root / "large", size, chance, 50)
        simulation.start_receiver()
        pair = Pair(simulation)
        await simulation.drained()
        inode = (simulation.target_root / "large").stat().st_ino

        def change() -> None:
            for _ in range(count):
                offset = chance.randrange(size // 4096) * 4096
                simulation.source.write(b"large", offset, chance.randbytes(4096))

        counted = await recovered(pair, monkeypatch, change)
        assert (simulation.target_root / "large").stat().st_ino == inode
        assert counted.bytes <= count * 4096
        assert counted.sent < count * (4096 + 100)
        for offset in _data_offsets(simulation.source_root / "large"):
            with (
                open(simulation.source_root / "large", "rb") as one,
                open(simulation.target_root / "large", "rb") as other,
            ):
                assert os.pread(one.fileno(), 4096, offset) == os.pread(other.fileno(), 4096, offset)
        assert _data_offsets(simulation.source_root / "large") == _data_offsets(
            simulation.target_root / "large"
        )


def _data_offsets(path: Path) -> list[int]:
    offsets: list[int] = []
    with open(path, "rb") as file:
        offset, size = 0, path.stat().st_size
        while offset < size:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            offsets += range(offset, end, 4096)
            offset = end
    return offsets


async def test_a_new_name_costs_one_list(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulate(1, start=False) as simulation:
        source = simulation.source
        source.mkdir(b"d")
        for number in range(3000):
            (simulation.source_root / f"d/file{number}").write_bytes(b"content")
        for number in range(100):
            (simulation.source_root / f"d/sub{number}/below").mkdir(parents=True)
        simulation.start_receiver()
        pair = Pair(simulation)
        await simulation.drained()

        def change() -> None:
            source.create(b"d/new")
            source.write(b"d/new", 0, b"new")
            source.unlink(b"d/file7")

        counted = await recovered(pair, monkeypatch, change)
        simulation.assert_equal()
        assert counted.bytes == 3 and counted.looks <= 2
        assert counted.lists == 2  # one on each side
        assert counted.sent < 3100 * 20
