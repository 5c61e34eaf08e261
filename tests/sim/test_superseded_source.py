"""The epoch as a fencing token: a source that another agent has superseded transmits nothing any more."""

import uuid

import pytest
import trio
import trio.testing
from kit.simulation import Simulation, simulate
from kit.trees import snapshot

from replicator.errors import ReplicatorError
from replicator.failovers import CopyFork, Promotion
from replicator.status import ConnectionState, TargetDataState, TransmitMode

pytestmark = pytest.mark.sim

OTHER = str(uuid.UUID(int=1))


def record(simulation: Simulation, epoch: int = 1) -> Promotion:
    return Promotion(
        group=str(uuid.UUID(int=7)),
        epoch=epoch,
        parent_epoch=epoch - 1,
        owner=OTHER,
        owner_name="beta",
        copies=(
            CopyFork(
                connection=simulation.connection,
                parent_epoch=epoch - 1,
                marks={simulation.journal_id: (5, 77)},
            ),
            CopyFork(connection=OTHER, parent_epoch=epoch - 1),
        ),
        reason="test",
    )


async def promote(simulation: Simulation, *, ends_session: bool, record: Promotion) -> None:
    """What a promotion leaves in a receiver."""
    assert simulation.receiver is not None
    await simulation.receiver.replica._kept.save(epoch=record.epoch, promotion=record, owned=True)
    if ends_session:
        await simulation.kill_receiver()
        simulation.start_receiver()


@pytest.mark.parametrize("ends_session", [True, False], ids=["refused", "acknowledged"])
async def test_it_stops_and_says_so(ends_session: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        await promote(simulation, ends_session=ends_session, record=record(simulation))
        if not ends_session:  # what is on its way still arrives; its acknowledgement says that it is over
            simulation.source.create(b"on its way")
        await trio.sleep(60)
        before = snapshot(simulation.target_root)
        simulation.source.create(b"later")
        await trio.sleep(60)
        status = simulation.status
        assert snapshot(simulation.target_root) == before
        assert status.state is ConnectionState.ERROR and status.transmit_mode is TransmitMode.ERROR
        assert status.target_data_state is TargetDataState.RESTORE_REQUIRED
        assert status.state_reason.startswith("restore required")
        assert "beta" in status.state_reason
        assert status.promotion is not None and status.promotion.owner == OTHER
        assert [fork.connection for fork in status.promotion.copies] == [simulation.connection]
        # Asked to try again it learns it again; nothing is lost, and nothing is written.
        assert simulation.sender is not None
        simulation.sender.transmit_start()
        await trio.sleep(60)
        assert simulation.status.state is ConnectionState.ERROR
        assert simulation.status.promotion is not None
        assert snapshot(simulation.target_root) == before


async def test_a_source_of_the_same_epoch_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(2) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        await promote(simulation, ends_session=True, record=record(simulation, 3))
        await simulation.kill_sender()
        simulation.epoch = 3
        simulation.start_sender()
        simulation.source.create(b"later")
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.promotion is None


async def test_who_has_seen_a_later_epoch_accepts_no_earlier_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A source that another one has replaced: the target knows that by the sessions of that one only."""
    async with simulate(4) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        for epoch in (3, 2):
            await simulation.kill_sender()
            await simulation.kill_receiver()
            simulation.epoch = epoch
            simulation.start_receiver()
            simulation.start_sender()
            await trio.sleep(60)
            assert (simulation.status.state is ConnectionState.STARTED) is (epoch == 3)
        assert "epoch 3" in simulation.status.state_reason


async def test_a_copy_in_use_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Its owner was superseded as well, and has not followed yet."""
    async with simulate(5) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        await promote(simulation, ends_session=True, record=record(simulation, 1))
        await simulation.kill_sender()
        simulation.epoch = 2
        simulation.start_sender()
        before = snapshot(simulation.target_root)
        simulation.source.create(b"later")
        await trio.sleep(60)
        assert simulation.status.state is ConnectionState.ERROR
        assert "in use" in simulation.status.state_reason
        assert snapshot(simulation.target_root) == before


async def test_its_agent_holds_it(autojump_clock: trio.testing.MockClock) -> None:
    """Told by its agent, which has learned it elsewhere: over restarts, and whoever wants to start it."""
    async with simulate(3) as simulation:
        simulation.source.create(b"file")
        await simulation.drained()
        assert simulation.sender is not None
        simulation.sender.supersede("restore required: beta has taken over")
        await trio.sleep(10)
        before = snapshot(simulation.target_root)
        for _ in range(2):
            assert simulation.status.state is ConnectionState.ERROR
            assert simulation.status.target_data_state is TargetDataState.RESTORE_REQUIRED
            for command in (simulation.sender.transmit_start, simulation.sender.transmit_resume):
                with pytest.raises(ReplicatorError, match="beta has taken over"):
                    command()
            simulation.source.write(b"file", 0, b"more")
            await trio.sleep(60)
            assert snapshot(simulation.target_root) == before
        simulation.sender.supersede("")
        simulation.sender.transmit_start()
        await simulation.drained()
        simulation.assert_equal()
