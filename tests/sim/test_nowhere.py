"""The target Diagnostics: a sender does everything, nobody gets it, and it is measured."""

import random
from dataclasses import replace

import msgspec
import trio
import trio.testing
from kit.simulation import Simulation, simulate

from replicator.diagnostics import DiagnosticsReport
from replicator.sender.nowhere import Nowhere
from replicator.sender.sender import Sender
from replicator.status import TargetDataState


def start(simulation: Simulation, nursery: trio.Nursery) -> tuple[Sender, Nowhere]:
    nowhere = Nowhere(simulation.source_world, f"/home/source/{simulation.connection}.diagnostics")
    simulation.source_world = replace(simulation.source_world, connect=nowhere.dial)
    nursery.start_soon(nowhere.run)
    return simulation.start_sender(), nowhere


async def test_everything_but_sending(autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(1)
    async with simulate(1, start=False) as simulation, trio.open_nursery() as nursery:
        simulation.source.create(b"random")
        simulation.source.write(b"random", 0, chance.randbytes(500_000))
        simulation.source.create(b"zeros")
        simulation.source.write(b"zeros", 0, b"all the same " * 40_000)
        sender, nowhere = start(simulation, nursery)
        await simulation.drained()
        await trio.sleep(30)
        status = simulation.status
        assert status.target_data_state is TargetDataState.OK and status.queued_ops == 0
        assert list(simulation.target_root.iterdir()) == []
        found = nowhere.report()
        assert found.mirror_complete and 1_000_000 < found.mirror_bytes < 1_100_000
        assert found.mirror_ratio is not None and 0.2 < found.mirror_ratio < 0.9
        before = found.change_bytes
        for number in range(100):
            simulation.source.write(b"zeros", number * 4096, b"the same " * 400)
            await trio.sleep(1)
        await simulation.drained()
        found = nowhere.report()
        assert 360_000 < found.change_bytes - before < 400_000
        assert found.change_ratio is not None and found.change_ratio < 0.2
        assert found.peak_minute_bytes_per_s > found.average_bytes_per_s

        # Killed: what was measured is there, and nothing is mirrored again.
        await trio.sleep(30)
        since = found.since
        await simulation.kill_sender()
        sender, nowhere = start(simulation, nursery)
        simulation.source.write(b"zeros", 0, b"again")
        await simulation.drained()
        await trio.sleep(30)
        later = nowhere.report()
        assert later.since == since and later.change_bytes >= found.change_bytes
        assert later.mirror_bytes == found.mirror_bytes and sender.totals.mirror_bytes == 0
        assert msgspec.convert(msgspec.to_builtins(later), DiagnosticsReport) == later

        sender.mirror_start("difference")  # there is nothing to compare with
        await simulation.drained()
        await trio.sleep(10)
        again = nowhere.report()
        assert again.mirror_complete and again.mirror_bytes > 1_000_000
        nursery.cancel_scope.cancel()
