"""A target takes over, both sides write, and the former source becomes a copy of the new one: what both have
changed travels, and nothing else.
"""

import os
import random

import pytest
import trio
import trio.testing
from kit.random_changes import RandomChanges
from kit.simulation import Simulation, simulate
from kit.taking_over import Back, opened, tails_of, take_over

from replicator import limits
from replicator.sender.arguments import SenderOptions
from replicator.status import TargetDataState

pytestmark = pytest.mark.sim

SEEDS = int(os.environ.get("TAKE_OVER_SEEDS", "4"))
ZEROS = frozenset({"holes"})
"""Not looked at: what has lost its data reads as zeros, be they a hole or not, and contents are compared."""
FULL = SenderOptions(mirror="full")


async def become_cold(simulation: Simulation) -> None:
    with trio.fail_after(600):
        await trio.sleep(limits.ACTIVITY_LOOK_S)
        while simulation.keeper.is_hot:  # noqa: ASYNC110 -- nobody tells
            await trio.sleep(limits.ACTIVITY_LOOK_S)


async def disturbed(back: Back, changes: RandomChanges, chance: random.Random) -> None:
    """While the former source is brought up to date, processes are killed, and programs write on."""
    for _ in range(5):
        await trio.sleep(chance.choice((0, 0.0005, 0.002, 0.01, 0.3)))
        await back.interrupt(chance.random(), 0.2, 0.5, 0.8)
        changes.steps(3)


async def goes_on(back: Back, changes: RandomChanges, ignore: frozenset[str] = frozenset()) -> None:
    await back.drained()
    back.assert_equal(ignore)
    assert back.status.target_data_state is TargetDataState.OK
    changes.steps(20)
    await back.drained()
    back.assert_equal(ignore)


async def lived_through(forward: Simulation, chance: random.Random, how: str) -> RandomChanges:
    """Until the target is to take over: what the source did last may be on its way, or not there yet."""
    here = RandomChanges(forward.source, chance)
    here.steps(60)
    await forward.drained()
    if how == "cold":  # what the source's storage may lose is noted from here on
        await become_cold(forward)
    if how == "left behind":
        assert forward.receiver is not None
        forward.receiver.pause()
    here.steps(chance.choice((0, 10, 40)))
    await trio.sleep(chance.choice((0, 0.001, 0.01, 1)))
    if how in ("power", "cold"):
        await forward.lose_source_power()
    elif how != "alive":
        await forward.kill_sender()
    return here


@pytest.mark.parametrize("how", ["dead", "alive", "left behind", "power", "cold"])
@pytest.mark.parametrize("disturbs", [False, True], ids=["", "disturbed"])
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_both_sides_write(
    how: str, disturbs: bool, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    chance = random.Random(f"{how} {disturbs} {seed}")
    async with simulate(seed, options=FULL, losing=how in ("power", "cold")) as forward:
        here = await lived_through(forward, chance, how)
        record = await take_over(forward, drain=how != "left behind")
        here.steps(chance.choice((0, 5, 30)))
        await trio.sleep(chance.choice((0, 3)))  # a source that lives finds out
        back = opened(forward, record, seed + 5000)
        there = RandomChanges(back.source, chance)
        there.steps(chance.choice((0, 5, 30)))
        tails = await tails_of(forward, record)
        if how != "power":
            assert None not in tails.values()
        back.prepare(tails, record)
        back.start()
        if disturbs:
            await disturbed(back, there, chance)
        await goes_on(back, there, ZEROS if how in ("power", "cold") else frozenset())
