"""Large files on their way while something dies: what has arrived of them is not sent again."""

import os
import random

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.mirror.begun import MARK
from replicator.sender.arguments import SenderOptions
from replicator.status import MirrorStatus

pytestmark = pytest.mark.sim

KIB = 1024
FILE_BYTES = 4096 * KIB
CONTENT = random.Random(1).randbytes(FILE_BYTES)
YEARS_NS = 50 * 365 * 86400 * 10**9


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BEGUN_MIN_BYTES", 64 * KIB)
    monkeypatch.setattr(limits, "PART_BYTES", 64 * KIB)
    monkeypatch.setattr(limits, "PIECE_BYTES_IN_FLIGHT", 256 * KIB)


def is_quiet(simulation: Simulation) -> None:
    """Whoever looks at files now finds that they were changed long ago: their times are real."""
    simulation.source_world.clock.jump_ns += YEARS_NS


def make(simulation: Simulation, content: bytes = CONTENT) -> None:
    simulation.source.mkdir(b"d")
    simulation.source.create(b"d/file")
    simulation.source.write(b"d/file", 0, content)
    simulation.source.settle()


def begun(simulation: Simulation) -> list[str]:
    return [name for name in os.listdir(simulation.target_root) if MARK.decode() in name]


async def arrived(simulation: Simulation, size: int) -> None:
    """So much of the file is on the target."""
    with trio.fail_after(600):
        while True:
            names = begun(simulation)
            if names and (simulation.target_root / names[0]).stat().st_size >= size:
                return
            await trio.sleep(0.0001)


async def interrupt(simulation: Simulation, what: str) -> None:
    if what == "cut":
        simulation.network.cut("source", "target")
    if what in ("sender", "both"):
        await simulation.kill_sender()
    if what in ("receiver", "both"):
        await simulation.kill_receiver()
        simulation.start_receiver()
    if what in ("sender", "both"):
        simulation.start_sender()


def sent_by(simulation: Simulation, what: str, before: int) -> int:
    """A new sender counts anew."""
    sent = simulation.status.sent_mirror_bytes
    return sent if what in ("sender", "both") else sent - before


@pytest.mark.parametrize("kind", ["full", "difference"])
@pytest.mark.parametrize("what", ["cut", "sender", "receiver", "both"])
async def test_it_goes_on_where_it_was(what: str, kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1, options=SenderOptions(mirror=kind), start=False) as simulation:
        make(simulation)
        is_quiet(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        await arrived(simulation, FILE_BYTES * 3 // 4)
        before = simulation.status.sent_mirror_bytes
        await interrupt(simulation, what)
        await simulation.drained()
        simulation.assert_equal()
        assert sent_by(simulation, what, before) < FILE_BYTES // 3
        run = simulation.status.mirror
        assert run.complete and run.done_files == 1
        if kind == "full":  # else it was also looked for under other names, in vain
            assert run.done_bytes == FILE_BYTES


@pytest.mark.parametrize("what", ["cut", "sender", "receiver"])
@pytest.mark.parametrize("change", ["write", "truncate", "rename"])
async def test_a_file_that_was_changed_meanwhile_is_compared(
    what: str, change: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(2, start=False) as simulation:
        make(simulation)
        is_quiet(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        await arrived(simulation, FILE_BYTES // 2)
        before = simulation.status.sent_mirror_bytes
        if what == "sender":
            await simulation.kill_sender()
        source = simulation.source
        if change == "write":
            source.write(b"d/file", 100 * KIB, b"changed")
        elif change == "truncate":
            source.truncate(b"d/file", FILE_BYTES // 4)
            source.write(b"d/file", FILE_BYTES - 5, b"again")
        else:
            source.rename(b"d/file", b"other")
        if what == "sender":
            simulation.start_sender()
        else:
            await interrupt(simulation, what)
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.mirror.complete and not begun(simulation)
        if change == "write":
            assert sent_by(simulation, what, before) < FILE_BYTES * 3 // 4


async def test_it_is_compared_after_a_loss_of_power_of_the_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The file system may have kept its size, and not what it held."""
    async with simulate(3, start=False) as simulation:
        make(simulation)
        is_quiet(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        await arrived(simulation, FILE_BYTES // 2)
        await simulation.lose_target_power()
        (name,) = begun(simulation)
        with open(simulation.target_root / name, "r+b") as file:
            file.write(bytes(64 * KIB))
        simulation.start_receiver()
        await simulation.drained()
        simulation.assert_equal()


@pytest.mark.parametrize("what", ["sender", "receiver"])
async def test_nothing_is_left_of_one_that_is_not_wanted_any_more(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(4, start=False) as simulation:
        make(simulation)
        is_quiet(simulation)
        simulation.start_receiver()
        simulation.start_sender()
        await arrived(simulation, FILE_BYTES // 2)
        if what == "sender":
            await simulation.kill_sender()
        else:
            await simulation.kill_receiver()
        simulation.source.unlink(b"d/file")
        if what == "sender":
            simulation.start_sender()
        else:
            simulation.start_receiver()
        await simulation.drained()
        simulation.assert_equal()


async def test_nothing_is_left_of_a_mirror_that_was_stopped(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(5, start=False) as simulation:
        make(simulation)
        simulation.start_receiver()
        sender = simulation.start_sender()
        await arrived(simulation, FILE_BYTES // 2)
        sender.mirror_stop()
        with trio.fail_after(600):
            while (  # noqa: ASYNC110  # a look from outside: nothing tells
                begun(simulation) or simulation.status.mirror_status is not MirrorStatus.IDLE
            ):
                await trio.sleep(0.01)
        assert os.listdir(simulation.target_root / "d") == []


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("seed", range(12))
async def test_under_changes_cuts_and_kills(
    seed: int, quiet: bool, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(seed)
    kind = chance.choice(["full", "difference"])
    async with simulate(80 + seed, options=SenderOptions(mirror=kind), start=False) as simulation:
        source = simulation.source
        make(simulation, chance.choice([CONTENT, CONTENT[: FILE_BYTES // 2] + bytes(FILE_BYTES // 2)]))
        if quiet:
            is_quiet(simulation)
        if seed % 3 == 0:
            source.link(b"d/file", b"link")
        simulation.start_receiver()
        simulation.start_sender()
        changes = RandomChanges(source, simulation.random)
        for _ in range(25):
            await trio.sleep(chance.choice([0, 0.001, 0.01, 0.05]))
            if chance.random() < 0.5:
                changes.step()
            draw = chance.random()
            if os.path.exists(source.at(b"d/file")):
                if draw < 0.3:
                    source.write(b"d/file", chance.randrange(FILE_BYTES), chance.randbytes(5000))
                elif draw < 0.4:
                    source.truncate(b"d/file", chance.randrange(FILE_BYTES))
                elif draw < 0.43:
                    source.rename(b"d/file", b"moved")
            await simulation.interrupt(chance.random(), cut=0.1, receiver=0.2, sender=0.3)
        await simulation.drained()
        simulation.assert_equal()
        assert not begun(simulation)
