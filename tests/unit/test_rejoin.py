"""What an agent does that meets another of its group again: every row, from both sides."""

import msgspec
import pytest

from replicator.failover.rejoin import Action, History, Meeting, Side, rejoin, survivor
from replicator.failovers import Policy, Promotion


def a_promotion(epoch: int, owner: str, parent: int = 0, vote: str = "") -> Promotion:
    return Promotion(group="g", epoch=epoch, parent_epoch=parent, owner=owner, owner_name=owner, vote=vote)


def a_side(agent: str, epoch: int, **fields: object) -> Side:
    return msgspec.structs.replace(Side(group="g", agent=agent, epoch=epoch, owns=False), **fields)


OWNER = a_side("source", 0, owns=True)
COPY = a_side("target", 0)
BEATEN = a_side("source", 0, owns=True)  # it has not heard of the promotion yet
WRITING = a_side("source", 0, owns=True, changes=3)
UNSURE = a_side("source", 0, owns=True, changes=None)
PROMOTED = a_side("target", 1, owns=True, promotion=a_promotion(1, "target", vote="w"), changes=5)
IDLE = msgspec.structs.replace(PROMOTED, changes=0)
RIVAL = a_side("source", 1, owns=True, promotion=a_promotion(1, "source"), changes=3)
LATER_RIVAL = a_side("source", 2, owns=True, promotion=a_promotion(2, "source"), changes=3)
HOME = a_side("source", 2, owns=True, promotion=a_promotion(2, "source", parent=1), changes=3)
FORMER = a_side("target", 1, owns=True, promotion=PROMOTED.promotion)
A = Action


@pytest.mark.parametrize(
    ("mine", "theirs", "history", "action", "back", "bundle"),
    [
        (a_side("x", 0, group="h"), OWNER, History.SAME, A.REFUSE, A.REFUSE, False),
        (OWNER, COPY, History.SAME, A.CONTINUE, A.CONTINUE, False),
        (OWNER, COPY, History.LOST, A.CONTINUE, A.CONTINUE, False),  # the ladder of repairs
        (OWNER, COPY, History.DIFFERS, A.STOP, A.STOP, False),
        (a_side("a", 0), a_side("b", 0), History.LOST, A.CHOOSE, A.CHOOSE, True),
        (BEATEN, PROMOTED, History.SAME, A.FOLLOW, A.LEAD, False),
        (BEATEN, PROMOTED, History.DIFFERS, A.STOP, A.STOP, False),
        (BEATEN, PROMOTED, History.LOST, A.CHOOSE, A.CHOOSE, True),
        (WRITING, PROMOTED, History.SAME, A.HOLD, A.HOLD, True),
        (UNSURE, PROMOTED, History.SAME, A.HOLD, A.HOLD, True),
        (RIVAL, PROMOTED, History.SAME, A.HOLD, A.HOLD, True),
        (LATER_RIVAL, PROMOTED, History.SAME, A.HOLD, A.HOLD, True),
        (RIVAL, PROMOTED, History.DIFFERS, A.STOP, A.STOP, False),
        (FORMER, HOME, History.SAME, A.FOLLOW, A.LEAD, False),  # the one continues the other: no fork
    ],
)
def test_a_meeting(
    mine: Side, theirs: Side, history: History, action: Action, back: Action, bundle: bool
) -> None:
    verdict = rejoin(Meeting(mine=mine, theirs=theirs, history=history))
    assert (verdict.action, verdict.bundle) == (action, bundle)
    assert rejoin(Meeting(mine=theirs, theirs=mine, history=history)).action is back
    if mine.epoch < theirs.epoch and action is not A.REFUSE:
        assert verdict.fenced  # who is superseded never writes


ZERO = a_side("source", 1, owns=True, promotion=a_promotion(1, "source"), changes=0)


@pytest.mark.parametrize(
    ("mine", "theirs", "policy", "survives"),
    [
        (WRITING, PROMOTED, Policy.MANUAL, None),
        (BEATEN, PROMOTED, Policy.DISCARD_ZERO_CHANGES, "target"),
        (WRITING, IDLE, Policy.DISCARD_ZERO_CHANGES, "source"),
        (WRITING, PROMOTED, Policy.DISCARD_ZERO_CHANGES, None),
        (UNSURE, IDLE, Policy.DISCARD_ZERO_CHANGES, "source"),
        (UNSURE, PROMOTED, Policy.DISCARD_ZERO_CHANGES, None),
        (ZERO, IDLE, Policy.DISCARD_ZERO_CHANGES, None),
        (RIVAL, PROMOTED, Policy.PREFER_WITNESS_VOTE, "target"),
        (RIVAL, msgspec.structs.replace(RIVAL, agent="x"), Policy.PREFER_WITNESS_VOTE, None),
        (RIVAL, PROMOTED, Policy.PREFER_NODE, "source"),
        (LATER_RIVAL, PROMOTED, Policy.PREFER_NEWER_EPOCH, "source"),
        (WRITING, PROMOTED, Policy.PREFER_NEWER_EPOCH, "target"),
        (RIVAL, PROMOTED, Policy.PREFER_NEWER_EPOCH, None),
        (WRITING, PROMOTED, Policy.PREFER_MOST_CHANGES, "target"),
        (UNSURE, PROMOTED, Policy.PREFER_MOST_CHANGES, None),
        (a_side("source", 0, owns=True, changes=9), PROMOTED, Policy.PREFER_MOST_CHANGES, "source"),
        (a_side("source", 0, owns=True, changes=5), PROMOTED, Policy.PREFER_MOST_CHANGES, None),
    ],
)
def test_which_branch_survives(mine: Side, theirs: Side, policy: Policy, survives: str | None) -> None:
    meeting = Meeting(mine=mine, theirs=theirs, policy=policy, prefer_node="source")
    found = survivor(meeting)
    assert (found.agent if found else None) == survives
    turned = survivor(msgspec.structs.replace(meeting, mine=theirs, theirs=mine))
    assert (turned.agent if turned else None) == survives


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(
    ("mine", "theirs"), [(WRITING, PROMOTED), (RIVAL, PROMOTED), (LATER_RIVAL, PROMOTED)]
)
def test_both_sides_agree_and_nothing_is_overwritten_unsaved(
    mine: Side, theirs: Side, policy: Policy
) -> None:
    meeting = Meeting(mine=mine, theirs=theirs, policy=policy, prefer_node="source")
    here = rejoin(meeting)
    there = rejoin(msgspec.structs.replace(meeting, mine=theirs, theirs=mine))
    assert {here.action, there.action} in ({A.HOLD}, {A.FOLLOW, A.LEAD})
    for verdict in (here, there):
        if verdict.action is A.FOLLOW:
            assert verdict.fenced and verdict.bundle
    winner = mine if here.action is A.LEAD else theirs
    loser = theirs if winner is mine else mine
    if {here.action, there.action} == {A.FOLLOW, A.LEAD}:
        lead = here if winner is mine else there
        assert lead.promote is (winner.epoch <= loser.epoch)  # the highest epoch owns the group, always
