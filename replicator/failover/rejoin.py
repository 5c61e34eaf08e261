"""What an agent does that meets another of its group again: one pure function (beyond 4.3).

    verdict = rejoin(Meeting(mine=…, theirs=…, history=History.SAME, policy=Policy.MANUAL))

Both sides decide by the same facts, so their answers fit: `FOLLOW` here is `LEAD` there.
"""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator.failovers import Policy, Promotion


class History(StrEnum):
    """What both know of the time before they parted."""

    SAME = "same"  # chain values agree up to the shorter end, or up to the fork point
    DIFFERS = "differs"  # they do not, where they should
    LOST = "lost"  # the fork point is in nobody's journal


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two. `changes`: how many it made of its own behind the fork point; None: nobody knows.
    `promotion`: by which it owns the group; None: as configured, or it does not own it.
    """

    group: str
    agent: str
    epoch: int
    owns: bool  # as it believes
    changes: int | None = 0
    promotion: Promotion | None = None

    @property
    def has_changes(self) -> bool:
        """What nobody knows may be there."""
        return self.changes is None or self.changes > 0


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    mine: Side
    theirs: Side
    history: History = History.SAME
    policy: Policy = Policy.MANUAL
    prefer_node: str = ""  # uuid of an agent, for Policy.PREFER_NODE


class Action(StrEnum):
    REFUSE = "refuse"  # a stranger
    CONTINUE = "continue"  # as before
    STOP = "stop"  # something is broken: both stand still, a person looks
    FOLLOW = "follow"  # take what the other has
    LEAD = "lead"  # the other takes what is here
    HOLD = "hold"  # stay fenced until a person, or a later policy, says which branch survives
    CHOOSE = "choose"  # nobody knows who was right: a person picks the direction


class Verdict(NamedTuple):
    """`fenced`: its mounts do not write. `bundle`: what this side has of its own is saved before any of it is
    overwritten. `promote`: its branch survives without having the highest epoch, so it is promoted first.
    """

    action: Action
    fenced: bool = False
    bundle: bool = False
    promote: bool = False
    reason: str = ""


def rejoin(meeting: Meeting) -> Verdict:
    mine, theirs = meeting.mine, meeting.theirs
    if mine.group != theirs.group:
        return Verdict(Action.REFUSE, reason="it belongs to another group")
    if mine.owns and theirs.owns and (mine.promotion or theirs.promotion):
        return _two_owners(meeting)
    if mine.epoch == theirs.epoch:
        return _same_epoch(meeting)
    return _superseded(meeting) if theirs.epoch > mine.epoch else _superseding(meeting)


def survivor(meeting: Meeting) -> Side | None:
    """Whose branch survives by the policy; None: a person decides."""
    mine, theirs = meeting.mine, meeting.theirs
    match meeting.policy:
        case Policy.DISCARD_ZERO_CHANGES:
            if mine.changes == 0 and theirs.changes == 0:
                return _newer(mine, theirs)
            if mine.changes == 0 or theirs.changes == 0:
                return theirs if mine.changes == 0 else mine
        case Policy.PREFER_WITNESS_VOTE:
            votes = [side for side in (mine, theirs) if side.promotion is not None and side.promotion.vote]
            return votes[0] if len(votes) == 1 else None
        case Policy.PREFER_NODE:
            return next((side for side in (mine, theirs) if side.agent == meeting.prefer_node), None)
        case Policy.PREFER_NEWER_EPOCH:
            return _newer(mine, theirs)
        case Policy.PREFER_MOST_CHANGES:
            if mine.changes is not None and theirs.changes is not None and mine.changes != theirs.changes:
                return mine if mine.changes > theirs.changes else theirs
        case Policy.MANUAL:
            pass
    return None


def _newer(mine: Side, theirs: Side) -> Side | None:
    if mine.epoch == theirs.epoch:
        return None
    return mine if mine.epoch > theirs.epoch else theirs


def _same_epoch(meeting: Meeting) -> Verdict:
    mine, theirs = meeting.mine, meeting.theirs
    if meeting.history is History.DIFFERS:
        return Verdict(
            Action.STOP, fenced=True, reason="the histories of one epoch differ: compare both, then choose"
        )
    if meeting.history is History.LOST and not mine.owns and not theirs.owns:
        return Verdict(Action.CHOOSE, fenced=True, bundle=True, reason="nobody owns the group")
    return Verdict(Action.CONTINUE)


def _superseded(meeting: Meeting) -> Verdict:
    """The other's epoch is higher."""
    mine = meeting.mine
    if meeting.history is History.DIFFERS:
        return Verdict(Action.STOP, fenced=True, reason="the histories before the fork differ")
    if meeting.history is History.LOST:
        return Verdict(
            Action.CHOOSE, fenced=True, bundle=True, reason="where the histories part is not known any more"
        )
    if not mine.has_changes:
        return Verdict(Action.FOLLOW, fenced=True, reason="superseded, with nothing of its own")
    survives = survivor(meeting)
    if survives is None:
        return Verdict(Action.HOLD, fenced=True, bundle=True, reason="both have changes: a person decides")
    if survives is meeting.theirs:
        return Verdict(Action.FOLLOW, fenced=True, bundle=True, reason=f"by {meeting.policy}")
    return Verdict(Action.LEAD, fenced=True, promote=True, reason=f"by {meeting.policy}")


def _superseding(meeting: Meeting) -> Verdict:
    """The other's epoch is lower: what `_superseded` says there, seen from here. This side goes on."""
    there = _superseded(_turned(meeting))
    if there.action is Action.LEAD:
        return Verdict(Action.FOLLOW, fenced=True, bundle=meeting.mine.has_changes, reason=there.reason)
    if there.action is Action.FOLLOW:
        return Verdict(Action.LEAD, reason=there.reason)
    return Verdict(there.action, reason=there.reason)


def _two_owners(meeting: Meeting) -> Verdict:
    """Both were promoted, or one and the other never noticed: split brain."""
    mine, theirs = meeting.mine, meeting.theirs
    if not mine.promotion or not theirs.promotion:
        if mine.epoch != theirs.epoch:  # the one as configured has only not been told yet
            return _superseded(meeting) if theirs.epoch > mine.epoch else _superseding(meeting)
    elif _continues(mine.promotion, theirs.promotion) or _continues(theirs.promotion, mine.promotion):
        return _superseded(meeting) if theirs.epoch > mine.epoch else _superseding(meeting)
    if meeting.history is History.DIFFERS:
        return Verdict(
            Action.STOP, fenced=True, reason="two owners, and histories that differ before the fork"
        )
    survives = survivor(meeting)
    if survives is None:
        return Verdict(
            Action.HOLD, fenced=True, bundle=mine.has_changes, reason="two owners: a person decides"
        )
    if survives is mine:
        return Verdict(Action.LEAD, promote=mine.epoch <= theirs.epoch, reason=f"by {meeting.policy}")
    return Verdict(Action.FOLLOW, fenced=True, bundle=mine.has_changes, reason=f"by {meeting.policy}")


def _continues(later: Promotion, earlier: Promotion) -> bool:
    """Whether it was promoted from that very term, or a later one: then there is no fork between the two."""
    return later.parent_epoch >= earlier.epoch


def _turned(meeting: Meeting) -> Meeting:
    return msgspec.structs.replace(meeting, mine=meeting.theirs, theirs=meeting.mine)
