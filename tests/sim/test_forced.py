"""A copy that was taken into use, and a source that goes on: nothing is sent until a person has chosen."""

import pytest
import trio
import trio.testing
from kit.patience import until_async
from kit.simulation import Simulation, simulate

from replicator.errors import ReplicatorError
from replicator.status import ConnectionState, TargetDataState

pytestmark = pytest.mark.sim


async def taken_into_use(simulation: Simulation, *, backlog: bool) -> None:
    """Both sides changed, with operations of the source in the target's queue."""
    for name in (b"both", b"source-only", b"removed-there"):
        simulation.source.create(name)
    await simulation.drained()
    receiver = simulation.receiver
    assert receiver is not None
    with pytest.raises(ReplicatorError, match="pause it first"):
        await receiver.replica.ownership.take_into_use()
    receiver.pause()
    if backlog:
        simulation.source.write(b"both", 0, b"queued on the target")
    await trio.sleep(1)
    await receiver.replica.ownership.take_into_use()
    with pytest.raises(ReplicatorError, match="in use"):
        receiver.resume()
    (simulation.target_root / "both").write_bytes(b"changed there")
    (simulation.target_root / "target-only").touch()
    (simulation.target_root / "removed-there").unlink()


@pytest.mark.parametrize("kill", ["nobody", "sender", "receiver", "both"])
@pytest.mark.parametrize("backlog", [False, True], ids=["drained", "backlog"])
async def test_the_source_is_chosen(kill: str, backlog: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1) as simulation:
        await taken_into_use(simulation, backlog=backlog)
        await until_async(lambda: simulation.status.state is ConnectionState.ERROR, 60, 0.1)
        assert "recovery force" in simulation.status.state_reason
        simulation.source.write(b"source-only", 0, b"changed here")
        for who in ("sender", "receiver"):
            if kill in (who, "both"):
                await getattr(simulation, f"kill_{who}")()
                getattr(simulation, f"start_{who}")()
        await trio.sleep(60)
        assert simulation.status.state is ConnectionState.ERROR
        assert (simulation.target_root / "both").read_bytes() == b"changed there"
        assert simulation.sender is not None
        simulation.sender.force_source()
        for who in ("sender", "receiver"):
            if kill in (who, "both"):
                await trio.sleep(0.005)
                await getattr(simulation, f"kill_{who}")()
                getattr(simulation, f"start_{who}")()
        await simulation.drained()
        simulation.assert_equal()
        assert simulation.status.target_data_state is TargetDataState.OK
        simulation.source.write(b"both", 0, b"and on")
        await simulation.drained()
        simulation.assert_equal()
