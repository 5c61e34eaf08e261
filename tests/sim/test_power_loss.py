"""Power loss of either host: what may have been lost is compared by itself, however whole it looks."""

import errno
import os
import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate
from kit.trees import build_random_tree

from replicator import limits
from replicator.receiver.durability import Durability

pytestmark = pytest.mark.sim


def tear(tree: Path) -> int:
    """Leave of every other file its size and times, as a file system may that kept its journal and lost data.
    Returns how many.
    """
    torn = 0
    for number, path in enumerate(sorted(tree.rglob("*"))):
        state = path.lstat()
        if number % 2 and stat.S_ISREG(state.st_mode) and state.st_size:
            path.write_bytes(bytes(state.st_size))
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
            torn += 1
    return torn


async def some_files_are_there(simulation: Simulation) -> None:
    for _ in range(10_000):
        if sum(not path.is_symlink() and path.is_file() for path in simulation.target_root.rglob("*")) >= 20:
            return
        await trio.sleep(0.001)
    raise AssertionError("no mirror runs")


async def never_durable(durability: Durability, *, clean: bool = False) -> None:
    raise OSError(errno.EIO, "this disk syncs nothing")


@pytest.mark.parametrize("kind", ["full", "difference"])
@pytest.mark.parametrize("complete", [True, False], ids=["afterwards", "in a mirror"])
async def test_the_source_brings_everything_again_that_a_mirror_brought_and_nobody_synced(
    complete: bool, kind: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEP_FILES", 3)
    monkeypatch.setattr(limits, "PIECES_IN_FLIGHT", 6)
    monkeypatch.setattr(Durability, "make_durable", never_durable)
    async with simulate(5, start=False) as simulation:
        build_random_tree(simulation.source_root, 5, 150)
        simulation.start_receiver()
        sender = simulation.start_sender()
        if complete:
            await simulation.drained()
            simulation.source.create(b"later")
            simulation.source.write(b"later", 0, b"a change")
            await simulation.drained()
        else:
            await some_files_are_there(simulation)
            assert simulation.status.mirror.status == "Mirroring"
        if kind == "difference":
            sender.mirror_start("difference")
        await simulation.lose_target_power()
        monkeypatch.undo()
        assert tear(simulation.target_root)
        simulation.start_receiver()
        await trio.sleep(30)  # to connect again
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.target_data_state == "OK"


async def test_operations_that_come_again_leave_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The copy has kept all, so these renames are done twice: the first moves what the second one brought."""
    async with simulate(61) as simulation:
        source = simulation.source
        source.mkdir(b"first")
        source.mkdir(b"second")
        source.create(b"second/file")
        await simulation.drained()
        await trio.sleep(60)  # it is durable
        source.rename(b"first", b"moved")
        source.rename(b"second", b"first")
        await simulation.drained()
        await simulation.lose_target_power()
        simulation.start_receiver()
        await trio.sleep(30)  # to connect again
        await simulation.drained()
        simulation.assert_equal()


@pytest.mark.parametrize("killed", [False, True], ids=["calm", "killed"])
@pytest.mark.parametrize("complete", [True, False], ids=["afterwards", "in a mirror"])
async def test_the_copy_follows_a_source_that_lost_data(
    complete: bool, killed: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy may be newer than what the source has left; then it has to become older."""
    monkeypatch.setattr(limits, "STEP_FILES", 3)
    monkeypatch.setattr(limits, "PIECES_IN_FLIGHT", 6)
    async with simulate(5, start=False) as simulation:
        build_random_tree(simulation.source_root, 5, 150)
        simulation.start_receiver()
        simulation.start_sender()
        if complete:
            await simulation.drained()
        else:
            await some_files_are_there(simulation)
        await simulation.lose_source_power()
        assert tear(simulation.source_root)
        simulation.start_sender()
        if killed:  # what it knew of the power loss must not be lost with it
            await trio.sleep(0.01)
            await simulation.kill_sender()
            simulation.start_sender()
        await trio.sleep(30)  # to connect again
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.target_data_state == "OK"
