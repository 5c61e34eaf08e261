"""Histories of a group drawn from seeds: crashes, partitions, pauses, restarts, commands of persons.

`tests/kit/failover_histories.py` says what a history is and what must hold in each, `failover_agents.py` what
of it is the product's own code; `test_failover_planted.py` shows that mistakes are found.
"""

from dataclasses import replace

import pytest
from kit.campaign import amount
from kit.failover_agents import S, Setup, T, W
from kit.failover_histories import Fault, History, Play, draw, draw_lost, play, run, shrink
from kit.failover_world import Violation

from replicator.failovers import Lapse

pytestmark = pytest.mark.sim

FOUND = {
    10_111: "a source that was fenced, was up again with a new lease, and was voted away as one that is off",
    10_594: "a vote that was not used, and of which the witness was never told: two changed what was owed",
    10_835: "settings that came late replaced those that a source had heard of since",
    11_941: "a change of settings that forgot what became of the group meanwhile",
    11: "a source that answered while a failover was being taken back: its group asked for ever",
    14: "a target that granted nothing after it had handed back",
    478: "a target whose agent ended right after it had taken a failover back: it granted nothing any more",
    498: "a source that a person has opened, and that took what its former owner still brought",
}
"""Seeds that failed once (some of them drawn otherwise then), and what they found."""


@pytest.mark.parametrize("seed", [*FOUND, *range(1000, 1000 + amount("FAILOVERS_SHORT", 40))])
def test_a_history(seed: int) -> None:
    play(draw(seed))


@pytest.mark.parametrize("seed", range(amount("FAILOVERS_LOST", 40)))
def test_a_source_that_is_given_up_in_a_hand_over(seed: int) -> None:
    play(draw_lost(seed))


def test_a_source_that_dies_is_taken_over_from_and_gets_its_place_back() -> None:
    outcome = play(History(1, Setup(), [Fault(10.0, "crash", ("source",)), Fault(30.0, "boot", ("source",))]))
    assert outcome.failovers == outcome.failbacks == 1


def test_a_source_that_only_its_target_does_not_see_goes_on() -> None:
    """The witness sees it, so it does not vote."""
    outcome = play(
        History(
            1, Setup(), [Fault(10.0, "cut", ("source", "target")), Fault(10.0, "cut", ("target", "source"))]
        )
    )
    assert outcome.failovers == 0


def test_both_sides_of_a_partition_write_where_nobody_is_asked_and_what_loses_is_kept() -> None:
    setup = Setup(witness="", lapse=Lapse.NONE, even_if_partitioned=True)
    faults = [Fault(10.0, "cut", ("source", "target")), Fault(10.0, "cut", ("target", "source"))]
    outcome = play(History(1, setup, faults))
    assert outcome.failovers == 1 and outcome.forks == 1


# --- what the argument assumes (docs/developers/failover.md), and what becomes of it otherwise ---

CUT_OFF = [Fault(10.0, "cut", (one, other)) for one in (S, T, W) for other in (S, T, W) if S in (one, other)]


def test_a_host_that_is_paused_does_not_write_afterwards() -> None:
    """Its clock has run on (CLOCK_BOOTTIME)."""
    outcome = play(History(1, Setup(), [*CUT_OFF, Fault(10.5, "pause", (S, 8.0))]))
    assert outcome.failovers == 1


def test_a_clock_that_stands_still_breaks_the_lease_and_the_fork_is_found() -> None:
    history = History(1, Setup(), [*CUT_OFF, Fault(10.5, "suspend", (S, 8.0))])
    with pytest.raises(Violation, match="two writers"):
        play(history)
    outcome = play(replace(history, overruled=True))
    assert outcome.failovers == 1 and outcome.forks == 1


def test_a_clock_that_is_much_too_slow_breaks_the_lease_and_the_fork_is_found() -> None:
    setup = Setup(interval_s=2.0, misses=5, automatic=False)
    histories = [History(seed, setup, [*CUT_OFF, Fault(10.1, "now")]) for seed in range(100)]
    history = next(history for history in histories if _is_slow(replace(history, drift=60.0)))
    play(history)
    with pytest.raises(Violation, match="two writers"):
        play(replace(history, drift=60.0))
    assert play(replace(history, drift=60.0, overruled=True)).forks == 1


def _is_slow(history: History) -> bool:
    """The clock of the source, against both others."""
    hosts = Play(history).hosts
    return hosts[S].rate < 0.8 * min(hosts[T].rate, hosts[W].rate)


def test_a_history_that_fails_is_shrunk() -> None:
    def player(history: History) -> None:
        if any(fault.what == "kill" for fault in history.faults):
            raise Violation("killed")

    seed = next(seed for seed in range(100) if any(f.what == "kill" for f in draw(seed).faults))
    smaller, violation = shrink(draw(seed), player)  # type: ignore[arg-type]
    assert [fault.what for fault in smaller.faults] == ["kill"] and violation.text == "killed"


@pytest.mark.soak
@pytest.mark.timeout_s(3600)
def test_campaign() -> None:
    outcome, failed = run(range(10_000, 10_000 + amount("FAILOVERS", 2_000)))
    print(outcome)
    assert failed == []
