"""Files whose content has moved: what of it the target has under another offset is not sent again."""

import os
import random

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.sender.arguments import SenderOptions

pytestmark = pytest.mark.sim

KIB = 1024
BLOCK = 64 * KIB
FILE_BYTES = 4 * 1024 * KIB
DIFFERENCE = SenderOptions(mirror="difference", checksum=True)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOVED_MIN_BYTES", 1024 * KIB)
    monkeypatch.setattr(limits, "MOVED_PROBE_BYTES", 256 * KIB)


def make(simulation: Simulation, old: bytes, new: bytes) -> None:
    simulation.journaling = False
    simulation.source.create(b"file")
    simulation.source.write(b"file", 0, new)
    simulation.source.settle()
    simulation.journaling = True
    target = simulation.target_root / "file"
    target.write_bytes(old)
    os.utime(target, ns=(0, 10**18))


async def mirrored(simulation: Simulation) -> None:
    simulation.start_receiver()
    simulation.start_sender()
    await simulation.mirror_ended()


CONTENT = random.Random(1).randbytes(FILE_BYTES)
NEW = random.Random(2).randbytes(3 * BLOCK + 1234)

CHANGES = {
    "inserted at the start": (CONTENT, NEW + CONTENT, len(NEW)),
    "inserted in the middle": (CONTENT, CONTENT[: 40 * BLOCK] + NEW + CONTENT[40 * BLOCK :], len(NEW)),
    "removed in the middle": (CONTENT, CONTENT[: 10 * BLOCK] + CONTENT[12 * BLOCK + 1 :], 0),
    "all of it is another": (random.Random(3).randbytes(FILE_BYTES), CONTENT, FILE_BYTES),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_little_is_sent(what: str, autojump_clock: trio.testing.MockClock) -> None:
    old, new, changed = CHANGES[what]
    async with simulate(1, options=DIFFERENCE, start=False) as simulation:
        make(simulation, old, new)
        await mirrored(simulation)
        simulation.assert_equal()
        run = simulation.status.mirror
        assert run.complete and run.done_bytes == len(new)
        assert run.sent_bytes <= changed + 24 * BLOCK  # what was compared before it was known, and edges
        if what == "inserted at the start":
            assert run.sent_bytes <= changed + 2 * BLOCK


@pytest.mark.parametrize("seed", range(10))
async def test_under_changes_cuts_and_kills(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(seed)
    old, new, _ = chance.choice(list(CHANGES.values()))
    async with simulate(50 + seed, options=DIFFERENCE, start=False) as simulation:
        make(simulation, old, new)
        simulation.start_receiver()
        simulation.start_sender()
        changes = RandomChanges(simulation.source, simulation.random)
        for _ in range(25):
            await trio.sleep(chance.choice([0, 0.001, 0.01, 0.05]))
            changes.step()
            if os.path.exists(simulation.source.at(b"file")):
                offset = chance.randrange(len(new))
                simulation.source.write(b"file", offset, chance.randbytes(chance.choice([10, 5000])))
            await simulation.interrupt(chance.random(), cut=0.06, receiver=0.09, sender=0.12)
        await simulation.drained()
        simulation.assert_equal()


async def test_the_old_copy_looks_like_no_other_meanwhile(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """And keeps its content until the other one is complete."""
    old, new, _ = CHANGES["inserted at the start"]
    async with simulate(3, options=DIFFERENCE, start=False) as simulation:
        make(simulation, old, new)
        simulation.start_receiver()
        simulation.start_sender()
        with trio.fail_after(600):
            while simulation.status.mirror.compared_bytes < 2 * FILE_BYTES // 3:  # noqa: ASYNC110
                await trio.sleep(0.0001)
        target = simulation.target_root / "file"
        if simulation.status.target_data_state != "OK":
            content = target.read_bytes()
            assert content[: len(old)] == old or content == new
            assert target.stat().st_mtime_ns in (1, (simulation.source_root / "file").stat().st_mtime_ns)
        await simulation.drained()
        simulation.assert_equal()
