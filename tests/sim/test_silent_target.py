"""A target from which nothing comes: no host says that it is gone where packets are dropped on the way."""

import trio
import trio.testing
from kit.simulation import simulate

from replicator import limits


async def test_it_is_dialled_until_it_answers(autojump_clock: trio.testing.MockClock) -> None:
    async with simulate(1) as simulation:
        await simulation.drained()
        sender = simulation.sender
        simulation.network.part("source", "target")
        simulation.network.cut("source", "target")
        simulation.source.create(b"meanwhile")
        await trio.sleep(5 * limits.CONNECT_TIMEOUT_S)
        assert simulation.status.state_reason == "target:1500: no answer in time"
        simulation.network.heal("source", "target")
        await simulation.drained()
        assert simulation.sender is sender and (simulation.target_root / "meanwhile").exists()
