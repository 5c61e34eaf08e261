"""Large files that a sender puts into the target's file by itself, while they change and everything dies."""

import os
import random
from collections.abc import Iterator
from functools import partial

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.mirror.local_copy import Wanted
from replicator.sender import sessions

pytestmark = pytest.mark.sim

KIB = 1024
FILE_BYTES = 1024 * KIB


class Reached:
    """A receiver of the simulation, as a sender of the same host reaches it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.offered = 0

    def offer(self, journal: int, path: bytes, transfer: int) -> int | None:
        receiver = self._simulation.receiver
        if receiver is None:
            return None
        descriptor = receiver.offer(Wanted(journal, path, transfer))
        if descriptor is None:
            return None
        self.offered += 1
        return os.dup(descriptor)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PART_BYTES", 32 * KIB)
    monkeypatch.setattr(limits, "LOCAL_COPY_BYTES", 32 * KIB)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """None of a file is left open."""
    yield
    places = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(place) for place in places if os.path.lexists(place)]
    assert not [file for file in files if "replicator-test-sim" in file and "/#" in file]


def make(simulation: Simulation, chance: random.Random) -> None:
    source = simulation.source
    source.create(b"file")
    source.write(b"file", 0, chance.randbytes(FILE_BYTES // 2))
    source.write(b"file", FILE_BYTES - 100, chance.randbytes(100))
    source.settle()


async def test_nothing_of_it_travels(
    monkeypatch: pytest.MonkeyPatch, descriptors: None, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(1, start=False) as simulation:
        make(simulation, random.Random(1))
        reached = Reached(simulation)
        monkeypatch.setattr(sessions, "reach", lambda uuid, pid: reached)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        simulation.assert_equal()
        run = simulation.status.mirror
        assert reached.offered == 1 and run.complete and run.done_files == 1
        assert run.sent_bytes == 0 and run.done_bytes == run.skipped_bytes > FILE_BYTES // 2
        assert simulation.status.sent_mirror_bytes < 20 * KIB


async def test_what_the_kernel_cannot_copy_is_read(
    monkeypatch: pytest.MonkeyPatch, descriptors: None, autojump_clock: trio.testing.MockClock
) -> None:
    """From where it failed."""
    async with simulate(2, start=False) as simulation:
        make(simulation, random.Random(2))
        monkeypatch.setattr(sessions, "reach", lambda uuid, pid: Reached(simulation))
        real, calls = os.copy_file_range, []

        def fails(*arguments: int) -> int:
            calls.append(arguments)
            if len(calls) > 4:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(os, "copy_file_range", fails)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        simulation.assert_equal()
        run = simulation.status.mirror
        assert 0 < run.skipped_bytes < run.sent_bytes and len(calls) == 5


async def test_one_that_is_cut_off_meanwhile_is_copied_on(
    monkeypatch: pytest.MonkeyPatch, descriptors: None, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing went wrong: what cut it off is in the queue."""
    async with simulate(3, start=False) as simulation:
        make(simulation, random.Random(3))
        monkeypatch.setattr(sessions, "reach", lambda uuid, pid: Reached(simulation))
        real, calls = os.copy_file_range, []

        def cuts(*arguments: int) -> int:
            calls.append(arguments)
            if len(calls) != 4:
                return real(*arguments)
            simulation.source.truncate(b"file", arguments[3])
            count = real(*arguments)
            simulation.source.write(b"file", FILE_BYTES + 64 * KIB, b"and longer than before")
            return count

        monkeypatch.setattr(os, "copy_file_range", cuts)
        simulation.start_receiver()
        simulation.start_sender()
        await simulation.drained()
        simulation.source.settle()
        await simulation.drained()
        simulation.assert_equal()
        run = simulation.status.mirror
        assert run.complete and not run.problem_count and run.sent_bytes == 0 and len(calls) == 5


@pytest.mark.parametrize("seed", range(25))
async def test_under_changes_cuts_and_kills(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(seed)
    async with simulate(300 + seed, start=False) as simulation:
        make(simulation, chance)
        source = simulation.source
        monkeypatch.setattr(sessions, "reach", lambda uuid, pid: Reached(simulation))
        if seed % 3 == 0:
            source.link(b"file", b"link")
        simulation.start_receiver()
        simulation.start_sender()
        changes = RandomChanges(source, simulation.random)
        for _ in range(40):
            await trio.sleep(chance.choice([0, 0, 0.0005, 0.001, 0.01]))
            if chance.random() < 0.3:
                changes.step()
            draw, place = chance.random(), chance.randrange(FILE_BYTES)
            if os.path.exists(source.at(b"file")):
                operation = (
                    partial(source.write, b"file", place, chance.randbytes(5000))
                    if draw < 0.5
                    else partial(source.truncate, b"file", place)
                    if draw < 0.7
                    else partial(source.rename, b"file", b"moved")
                    if draw < 0.72
                    else None
                )
                if operation is not None:
                    operation()
            if seed % 2:
                await simulation.interrupt(chance.random(), cut=0.04, receiver=0.07, sender=0.1)
        await simulation.drained()
        simulation.assert_equal()
