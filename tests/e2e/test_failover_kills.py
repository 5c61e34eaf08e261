"""Agents killed with SIGKILL at each step of a take-over, of the former source's return, and of the way home:
it goes on or is taken back, and in the end there is one owner with the address, protected, and equal trees.
"""

import random
from pathlib import Path

import pytest
from kit import machine
from kit.campaign import amount
from kit.failover_lab import failover_lab
from kit.kill_rounds import Kill, Rounds, noted, scripts_of

from replicator.agent.failover import failback_steps as failback
from replicator.agent.failover import procedure

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

TAKE_OVER = (
    *(procedure.CHECK, procedure.VOTE, procedure.PRE_SCRIPT, procedure.PROBE, procedure.DRAIN),
    *(procedure.PROMOTE, procedure.OPEN, procedure.ADDRESSES, procedure.POST_SCRIPT, procedure.TELL),
)
HOME = (
    *(failback.PREPARE, failback.CATCH_UP, failback.PRE_SCRIPT, failback.FREEZE, failback.DRAIN),
    *(failback.HOLD, failback.VOTE, failback.PROMOTE, failback.GIVE_UP, failback.TAKE, failback.OPEN),
    *(failback.FOLLOW, failback.RESUME, failback.POST_SCRIPT, failback.HOME_SCRIPT, failback.TELL),
)
REVERSAL = (failback.PREPARE, failback.CATCH_UP, failback.ADOPT, failback.TURN, failback.RETIRE)
WITH_WITNESS = {procedure.CHECK, procedure.VOTE, procedure.TELL, failback.VOTE, failback.TELL}
STEPS = {"restore-first": HOME, "failback-first": HOME, "stay": REVERSAL}


def victims(step: str) -> list[str]:
    """Who has something to do with it."""
    return ["source", "target", *(["witness"] if step in WITH_WITNESS else [])]


WAYS_HOME = [(order, step, who) for order, steps in STEPS.items() for step in steps for who in victims(step)]
TAKING_OVER = [(step, who) for step in TAKE_OVER for who in victims(step)]

ROUNDS = amount("FAILBACK_KILLS", len(WAYS_HOME))
PER_LAB = 8  # rounds of the same hosts: what one leaves behind another one may meet


@pytest.mark.timeout_s(300)
def test_killed_at_one_step_of_each(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        lab.protect()
        lab.monitor(*scripts_of(lab), automatic=False, serve=False)
        rounds = Rounds(lab, random.Random(1))
        rounds.take_over(Kill(procedure.OPEN, lab.target))
        rounds.follow(lab.source)
        rounds.come_home("restore-first", Kill(failback.PROMOTE, lab.source))
        rounds.check()
        assert rounds.kills > 1  # a step may be over before it is seen to have begun
        assert "source-post-failback 2" in noted(lab).read_text()


@pytest.mark.soak
@pytest.mark.timeout_s(300 * PER_LAB)
@pytest.mark.parametrize("first", range(0, ROUNDS, PER_LAB))
def test_killed_at_every_step(tmp_path: Path, first: int) -> None:
    chance = random.Random(7)
    ways_home = chance.sample(WAYS_HOME, len(WAYS_HOME))
    taking_over = chance.sample(TAKING_OVER, len(TAKING_OVER))
    with failover_lab(tmp_path, witness=True) as lab:
        lab.protect()
        lab.monitor(*scripts_of(lab), automatic=False, serve=False)
        rounds = Rounds(lab, random.Random(first))
        for number in range(first, min(first + PER_LAB, ROUNDS)):
            step, who = taking_over[number % len(taking_over)]
            order, home_step, home_who = ways_home[number % len(ways_home)]
            follower = chance.choice(["source", "target", "witness"])
            print(f"{number}: {who} at {step}; {follower}; {order}: {home_who} at {home_step}", flush=True)
            rounds.take_over(Kill(step, getattr(lab, who)))
            rounds.follow(getattr(lab, follower))
            rounds.come_home(order, Kill(home_step, getattr(lab, home_who)))
            rounds.check()
        print(f"{rounds.kills} kills", flush=True)
