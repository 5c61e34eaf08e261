"""A source that was restored from its copy: protection goes on, and nothing is compared or sent again.

Here the restore itself is a plain copy of the target's tree; how it is made is tested in
`test_restore_stream.py`.
"""

import random
import shutil
import subprocess
import uuid

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.trees import snapshot

from replicator.sender.arguments import Restored, SenderOptions
from replicator.status import ConnectionState, TargetDataState

pytestmark = pytest.mark.sim

RESTORE = str(uuid.UUID(int=77))


async def copy_stands_still(simulation: Simulation) -> None:
    await simulation.kill_sender()
    assert simulation.receiver is not None
    await simulation.receiver.restore_begins(RESTORE)


def bring_home(simulation: Simulation, extra: bytes = b"") -> None:
    """The source becomes what the copy is, with objects of its own, unseen by its capture."""
    shutil.rmtree(simulation.source_root)
    command = ["cp", "-a", simulation.target_root, simulation.source_root]
    subprocess.run(command, check=True, timeout=60)
    lacking = {}
    if extra:
        (simulation.source_root / extra.decode()).write_bytes(b"kept here")
        lacking = {simulation.journal_id: [extra]}
    heads = {simulation.journal_id: tuple(simulation.writer.position)}
    simulation.restored = Restored(RESTORE, heads, lacking)
    simulation.epoch = 1


async def promote(simulation: Simulation) -> None:
    receiver = simulation.receiver
    assert receiver is not None
    await receiver.restored(RESTORE, 1)
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(5)
    await simulation.kill_receiver()
    simulation.start_receiver()


def mirrors_begun(simulation: Simulation) -> list[str]:
    assert simulation.sender is not None
    return [e.reason for e in simulation.sender.story.since() if e.event == "mirror begins" and e.reason]


@pytest.mark.parametrize("where", ["drained", "backlog", "waiting", "in use", "extra"])
@pytest.mark.parametrize("kills", [False, True], ids=["", "killed"])
@pytest.mark.parametrize("seed", range(6))
async def test_protection_resumes(
    where: str, kills: bool, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(f"{where} {seed}")
    async with simulate(seed, options=SenderOptions(mirror="full")) as simulation:
        changes = RandomChanges(simulation.source, chance)
        changes.steps(60)
        await simulation.drained()
        begun = len(mirrors_begun(simulation))
        receiver = simulation.receiver
        assert receiver is not None
        if where in ("waiting", "in use"):  # in the copy's queue is what is not to happen
            receiver.pause()
            changes.steps(20)
            await trio.sleep(1)
        if where == "in use":
            await receiver.replica.ownership.take_into_use()
            (simulation.target_root / "made in the copy").write_bytes(b"while it was in use")
        await copy_stands_still(simulation)
        if where in ("backlog", "waiting", "in use"):
            changes.steps(20)  # never sent
        bring_home(simulation, b"extra" if where == "extra" else b"")
        await promote(simulation)
        simulation.start_sender()
        if not kills:
            await simulation.drained()
            assert simulation.status.sent_mirror_bytes <= (200 if where == "extra" else 0)
        changes.steps(10)
        for _ in range(4 if kills else 0):
            await trio.sleep(chance.choice((0, 0.0005, 0.002, 0.01, 0.3)))
            if chance.random() < 0.6:
                await simulation.kill_sender()
                simulation.start_sender()
            if chance.random() < 0.4:
                await simulation.kill_receiver()
                simulation.start_receiver()
            changes.steps(3)
        await simulation.drained()
        simulation.assert_equal(frozenset({"holes"}))  # cp has its own idea of them
        assert simulation.status.target_data_state is TargetDataState.OK
        assert set(mirrors_begun(simulation)[begun:]) == {"recovery"}
        changes.steps(30)
        await simulation.drained()
        simulation.assert_equal(frozenset({"holes"}))


async def test_a_source_of_an_older_epoch_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        await copy_stands_still(simulation)
        await promote(simulation)
        simulation.start_sender()
        await trio.sleep(60)
        assert simulation.status.state is ConnectionState.ERROR
        assert "restore required" in simulation.status.state_reason


@pytest.mark.parametrize("kill", [False, True], ids=["", "killed"])
async def test_the_copy_stands_still_and_goes_on(kill: bool, autojump_clock: trio.testing.MockClock) -> None:
    """A source that replicates on: what arrives waits, also for the next process."""
    async with simulate(3) as simulation:
        changes = RandomChanges(simulation.source, random.Random(3))
        changes.steps(40)
        await simulation.drained()
        assert simulation.receiver is not None
        await simulation.receiver.restore_begins(RESTORE)
        before = snapshot(simulation.target_root)
        changes.steps(40)
        await trio.sleep(5)
        if kill:
            await simulation.kill_receiver()
            simulation.start_receiver()
            await trio.sleep(5)
        assert snapshot(simulation.target_root) == before
        assert simulation.receiver is not None
        await simulation.receiver.restore_ends(RESTORE)
        await simulation.drained()
        simulation.assert_equal()
