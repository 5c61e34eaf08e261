"""Runs drawn from seeds: several mounts, targets and faults at once, with checkers of every guarantee.

`tests/kit/trial.py` says what a run is, `tests/kit/simulated_faults.py` what may happen in it,
`tests/kit/checkers.py` what is looked at; `tests/TRACK_RECORD.md` what they found.
"""

import os

import pytest
from kit import trial
from kit.campaign import amount

pytestmark = pytest.mark.sim

FOUND = {
    49: "a target's directory that a power loss took along",
    10_004: "the time of a directory in which a mirror joined names of one file again",
    61: "names that were left by operations which came again after a power loss",
    20_119: "pieces of a mirror for which nobody looked any more, when the stream went over what was tracked",
    20_526: "a hard-linked file that changes under a name a recovery has still to bring, and then loses",
    20_604: "what a mirror had left to bring, when another took its place",
    21_265: "a full spool whose session ended while it waited, with nothing left to be applied",
}
"""Seeds that failed once, and what they found."""


@pytest.mark.parametrize("seed", [*FOUND, *range(1000, 1000 + amount("TRIALS_SHORT", 40))])
def test_a_trial(seed: int) -> None:
    trial.run(seed)


def test_a_trial_leaves_nothing_open() -> None:
    """Else tens of thousands of them could not run in one process."""
    before = sorted(os.listdir("/proc/self/fd"))
    assert (made := trial.run(11)).plan.hosts == made.plan.mounts == 2
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.soak
@pytest.mark.timeout_s(36_000)
def test_campaign() -> None:
    assert trial.main(100_000, amount("TRIALS", 20_000)) == 0
