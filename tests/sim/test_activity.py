"""Power loss of a source: only what was hot is compared; whichever side was ahead, both are equal then."""

import random

import pytest
import trio
import trio.testing
from kit.losing_source import LosingSource
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate

from replicator import limits
from replicator.agent.sender_arguments import SenderOptions

pytestmark = pytest.mark.sim


async def become_cold(simulation: Simulation) -> None:
    """Everything is durable on both sides, and the log knows."""
    await simulation.drained()
    with trio.fail_after(600):
        await trio.sleep(limits.ACTIVITY_LOOK_S)
        while simulation.keeper.is_hot:  # noqa: ASYNC110 -- nobody tells
            await trio.sleep(limits.ACTIVITY_LOOK_S)


async def lose_power(simulation: Simulation) -> None:
    await simulation.lose_source_power()
    simulation.start_sender()
    await trio.sleep(30)  # to connect again
    await simulation.drained()
    simulation.source.synced()


def compares_everything(simulation: Simulation) -> bool:
    """Whether a run of the present sender did."""
    sender = simulation.sender
    assert sender is not None
    run = sender._mirrors.last
    return run is not None and not run.some_paths


async def one_run(seed: int, *, links: bool = True) -> int:
    """How often everything was compared although the log could tell what to. That has to be where a file with
    several names was changed, and the name it is known by has changed, too.
    """
    chance = random.Random(seed)
    compared = 0
    async with simulate(seed, options=SenderOptions(mirror="full"), start=False, losing=True) as simulation:
        assert isinstance(simulation.source, LosingSource)
        changes = RandomChanges(simulation.source, chance, links=links)
        changes.steps(60)
        simulation.start_receiver()
        simulation.start_sender()
        await become_cold(simulation)
        for _ in range(chance.randint(1, 3)):
            for _ in range(chance.randint(1, 30)):
                changes.steps(chance.choice((0, 1, 1, 3, 20)))
                await trio.sleep(chance.choice((0, 0.0002, 0.001, 0.01, 0.01, 15)))
                if chance.random() < 0.03:
                    simulation.network.cut("source", "target")
            exact = simulation.status.target_data_state == "OK"
            await lose_power(simulation)
            simulation.assert_equal()
            assert simulation.status.target_data_state == "OK"
            compared += exact and compares_everything(simulation)
        changes.steps(30)
        await simulation.drained()
        simulation.source.synced()
        simulation.assert_equal()
    return compared


@pytest.mark.parametrize("seed", range(12))
async def test_both_sides_end_equal(
    seed: int, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    await one_run(seed)


@pytest.mark.parametrize("seed", range(100, 112))
async def test_only_what_was_hot_is_compared(
    seed: int, small_limits: None, autojump_clock: trio.testing.MockClock
) -> None:
    assert await one_run(seed, links=False) == 0


@pytest.mark.soak
@pytest.mark.timeout_s(3600)
@pytest.mark.parametrize("block", range(10))
async def test_campaign(block: int, small_limits: None, autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(20_000 + 100 * block, 20_000 + 100 * (block + 1)):
        await one_run(seed)
