"""The table of phases of a group: complete where it has to be, and nothing leads astray."""

from replicator.failover.phases import GROUP, OWNING, GroupEvent
from replicator.failovers import Phase


def after(phase: Phase, *happens: GroupEvent) -> Phase:
    for event in happens:
        phase = GROUP[phase, event]
    return phase


E = GroupEvent


def test_signs_of_life_may_come_in_every_phase_but_idle() -> None:
    for phase in set(Phase) - {Phase.IDLE}:
        for event in (E.SOURCE_FAILED, E.SOURCE_ANSWERS):
            assert (phase, event) in GROUP


def test_a_failover_that_has_begun_is_moved_by_its_procedure_alone() -> None:
    leave = {
        event for (phase, event), then in GROUP.items() if phase is Phase.TAKING_OVER and then is not phase
    }
    assert leave == {E.TAKEN_BACK, E.COMPLETED, E.SUPERSEDED}


def test_the_whole_way_and_back() -> None:
    assert after(Phase.WATCHING, E.SOURCE_FAILED) is Phase.ASKING
    assert after(Phase.ASKING, E.DECLINE, E.SOURCE_FAILED) is Phase.DECLINED
    assert after(Phase.DECLINED, E.SOURCE_ANSWERS) is Phase.WATCHING
    assert after(Phase.DECLINED, E.BEGIN, E.HALTED, E.BEGIN, E.COMPLETED) is Phase.ACTIVE
    assert after(Phase.WATCHING, E.BEGIN, E.TAKEN_BACK) is Phase.ASKING
    assert after(Phase.ACTIVE, E.HAND_BACK, E.HAND_BACK_UNDONE) is Phase.ACTIVE
    assert after(Phase.ACTIVE, E.HAND_BACK, E.HANDED_BACK, E.STOP, E.START) is Phase.WATCHING


def test_only_a_failover_makes_an_owner() -> None:
    for (phase, event), then in GROUP.items():
        if then in OWNING and phase not in OWNING:
            assert (phase, event) == (Phase.TAKING_OVER, E.COMPLETED)


def test_every_phase_and_event_is_used() -> None:
    assert {phase for phase, _ in GROUP} == set(Phase) == set(GROUP.values())
    assert {event for _, event in GROUP} == set(GroupEvent)
