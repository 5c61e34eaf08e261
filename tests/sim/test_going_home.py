"""A group goes home: what the owner wrote is there, both journals prove it, and protection goes on from the
hand-over without a mirror.
"""

import random

import pytest
import trio
import trio.testing
from kit.going_home import hand_over, heads_of, positions_of
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.taking_over import Back, opened, tails_of, take_over

from replicator.failover.handback import disagreement
from replicator.failovers import Promotion
from replicator.sender.arguments import SenderOptions
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

FULL = SenderOptions(mirror="full")


async def failed_over(
    forward: Simulation, chance: random.Random, seed: int
) -> tuple[RandomChanges, Back, Promotion]:
    """Both have written since the fork, and the return connection runs."""
    here = RandomChanges(forward.source, chance)
    here.steps(60)
    await forward.drained()
    here.steps(chance.choice((0, 10)))
    await forward.kill_sender()
    record = await take_over(forward)
    here.steps(chance.choice((0, 10)))
    back = opened(forward, record, seed + 5000)
    RandomChanges(back.source, chance).steps(20)
    back.prepare(await tails_of(forward, record), record)
    back.start()
    return here, back, record


@pytest.mark.parametrize("seed", range(10))
async def test_home_has_everything_and_protection_goes_on(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(seed)
    async with simulate(seed, options=FULL) as forward:
        here, back, record = await failed_over(forward, chance, seed)
        await trio.sleep(chance.choice((0, 0.01, 1)))
        RandomChanges(back.source, chance).steps(10)
        await back.drained()
        assert disagreement(heads_of(forward, back), positions_of(forward, back)) == ""
        await hand_over(forward, back, epoch=record.epoch + 1)
        early = chance.choice((0, 20))  # while the sender is still to come: brought as what was missed
        here.steps(early)
        forward.start_receiver()
        forward.start_sender()
        await forward.drained()
        forward.assert_equal()
        here.steps(20)
        await forward.drained()
        forward.assert_equal()
        status = forward.status
        assert status.target_data_state is TargetDataState.OK
        assert early or status.sent_mirror_bytes == 0  # all of it came as operations


@pytest.mark.parametrize("seed", range(4))
async def test_there_and_back_again(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """The second failover and failback are as the first."""
    chance = random.Random(seed)
    async with simulate(seed, options=FULL) as forward:
        here, back, record = await failed_over(forward, chance, seed)
        await back.drained()
        await hand_over(forward, back, epoch=record.epoch + 1)
        forward.start_receiver()
        forward.start_sender()
        here.steps(20)
        await forward.drained()
        await forward.kill_sender()
        record = await take_over(forward, epoch=record.epoch + 2)
        here.steps(5)
        back = opened(forward, record, seed + 9000)
        there = RandomChanges(back.source, chance)
        there.steps(20)
        back.prepare(await tails_of(forward, record), record)
        back.start()
        await back.drained()
        back.assert_equal()
        assert back.status.target_data_state is TargetDataState.OK


async def test_an_operation_that_is_missing_at_home_is_seen(autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(5)
    async with simulate(5, options=FULL) as forward:
        _, back, _ = await failed_over(forward, chance, 5)
        await back.drained()
        await back.kill_sender()
        RandomChanges(back.source, chance).steps(1)
        wrong = disagreement(heads_of(forward, back), positions_of(forward, back))
        assert "ends at operation" in wrong
