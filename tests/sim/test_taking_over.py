"""A target takes over, both sides write, and the former source becomes a copy of the new one: what both have
changed travels, and nothing else.
"""

import random

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import simulate
from kit.taking_over import opened, tails_of, take_over

from replicator.sender.arguments import SenderOptions
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("seed", range(20))
async def test_both_sides_write(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(seed)
    async with simulate(seed, options=SenderOptions(mirror="full")) as forward:
        here = RandomChanges(forward.source, chance)
        here.steps(60)
        await forward.drained()
        here.steps(chance.choice((0, 10, 40)))
        await trio.sleep(chance.choice((0, 0.001, 0.01, 1)))
        await forward.kill_sender()
        record = await take_over(forward)
        here.steps(chance.choice((0, 5, 30)))
        back = opened(forward, record, seed + 5000)
        RandomChanges(back.source, chance).steps(chance.choice((0, 5, 30)))
        tails = await tails_of(forward, record)
        assert None not in tails.values()
        back.prepare(tails, record)
        back.start()
        await trio.sleep(chance.choice((0, 0.01, 1)))
        RandomChanges(back.source, chance).steps(10)
        await back.drained()
        back.assert_equal()
        assert back.status.target_data_state is TargetDataState.OK
