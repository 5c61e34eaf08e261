"""A copy comes to lack something while its source is away, which has to find out: the next session brings it,
whatever has happened to the target meanwhile.
"""

import os
import shutil

import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate
from kit.trees import build_random_tree

from replicator import limits
from replicator.queue.dirty import DirtyMap, Scope
from replicator.sender.known_copy import KnownCopy
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim


async def boot_target(simulation: Simulation, how: str) -> None:
    """A receiver runs again, as `how` says."""
    if how == "goes on":
        return
    if how == "stopped":
        assert simulation.receiver is not None
        simulation.receiver.stop()
        await trio.sleep(5)
    if how in ("stopped", "power"):
        await simulation.lose_target_power()
    else:
        await simulation.kill_receiver()
    simulation.start_receiver()
    await trio.sleep(5)


async def is_exact_again(simulation: Simulation) -> None:
    await trio.sleep(30)
    await simulation.drained()
    simulation.assert_equal()
    assert simulation.status.target_data_state is TargetDataState.OK


HOW = pytest.mark.parametrize("how", ["goes on", "killed", "power", "stopped"])


@HOW
@pytest.mark.parametrize("again", [False, True], ids=["", "and once more"])
async def test_a_path_is_given_up_while_the_source_is_away(
    how: str, again: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Its mtime is as the source's is: only what the copy remembers tells that something is lacking."""
    async with simulate(1) as simulation:
        for name in (b"f", b"other"):
            simulation.source.create(name)
            simulation.source.write(name, 0, b"content")
        await simulation.drained()
        await trio.sleep(60)
        lacking = simulation.target_root / "f"
        lacking.rename(simulation.target_root.parent / "kept")
        simulation.source.write(b"f", 2, b"lost")
        await trio.sleep(1)
        await simulation.kill_sender()
        await trio.sleep(1.5 * limits.APPLY_GIVE_UP_S)
        assert simulation.receiver is not None
        assert simulation.receiver.replica.state.data_state is TargetDataState.MIRROR_REQUIRED
        (simulation.target_root.parent / "kept").rename(lacking)
        await boot_target(simulation, how)
        simulation.start_sender()
        if again:  # it has heard that something is lacking, and not what
            await trio.sleep(0.004)
            await simulation.kill_sender()
            simulation.start_sender()
        await is_exact_again(simulation)


@HOW
async def test_others_change_a_copy_while_its_source_is_away(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with simulate(2) as simulation:
        simulation.source.create(b"f")
        simulation.source.write(b"f", 0, b"content")
        await simulation.drained()
        await trio.sleep(60)
        await simulation.kill_sender()
        assert simulation.receiver is not None
        replica = simulation.receiver.replica
        (simulation.target_root / "f").write_bytes(b"of others")
        dirty = DirtyMap()
        dirty.include(b"f", int(Scope.TREE), 0)
        replica.drift.add(simulation.journal_id, dirty)
        await replica.changed_by_others(None)
        replica.drift.tell()
        await boot_target(simulation, how)
        simulation.start_sender()
        await is_exact_again(simulation)


def forget(simulation: Simulation) -> None:
    """The target's disk is another one: its agent is who it was, and knows nothing of copies."""
    disk = simulation.target_world.disk
    for path in disk.paths():
        disk.unlink(path)
    disk.pages.clear()
    shutil.rmtree(simulation.home)
    shutil.rmtree(simulation.target_root)
    simulation.target_root.mkdir()


@pytest.mark.parametrize("when", ["idle", "while it mirrors", "while it recovers"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "sender killed"])
async def test_a_target_that_has_forgotten_its_copy_gets_all_of_it(
    when: str, restart: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEP_FILES", 3)
    monkeypatch.setattr(limits, "PIECES_IN_FLIGHT", 6)
    async with simulate(3, start=False) as simulation:
        build_random_tree(simulation.source_root, 3, 150)
        simulation.start_receiver()
        sender = simulation.start_sender()
        if when != "while it mirrors":
            await simulation.drained()
        if when == "while it recovers":
            sender.mirror_start()
        for _ in range(0 if when == "idle" else 10_000):
            if simulation.status.mirror.done_files >= 20:
                break
            await trio.sleep(0.001)
        await simulation.kill_receiver()
        if restart:
            await simulation.kill_sender()
        forget(simulation)
        simulation.start_receiver()
        if restart:
            simulation.start_sender()
        await is_exact_again(simulation)
        assert os.listdir(simulation.target_root)


async def test_a_source_that_forgets_that_its_copy_was_exact_is_found(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KnownCopy, "was_exact_last", False)
    wrong = pytest.RaisesExc(AssertionError, match="nobody mirrors it")
    with pytest.RaisesGroup(wrong, flatten_subgroups=True):
        await test_a_path_is_given_up_while_the_source_is_away("goes on", False, autojump_clock)
