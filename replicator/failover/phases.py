"""Phases of a group on its target: what may follow what. `states.Machine` holds the present one."""

from enum import StrEnum

from replicator.failovers import Phase
from replicator.states import Table


class GroupEvent(StrEnum):
    """What moves the phase of a group."""

    SOURCE_FAILED = "the source has failed"  # and a person is asked
    SOURCE_ANSWERS = "the source answers again"
    DECLINE = "declined"
    BEGIN = "failover begins"  # asked for, or automatic
    TAKEN_BACK = "failover was taken back"
    HALTED = "failover waits for a person"  # after the promotion: the phase stays
    COMPLETED = "failover is complete"
    HAND_BACK = "failback begins"
    HAND_BACK_UNDONE = "failback was taken back"
    HANDED_BACK = "failback is complete"
    HANDED_BACK_FOR_GOOD = "failback is complete, and monitoring ends"
    STOP = "monitoring ends"
    START = "monitoring begins"
    SUPERSEDED = "somebody else owns the group by a higher epoch"


_P, _E = Phase, GroupEvent
GROUP: Table[Phase, GroupEvent] = {
    (_P.IDLE, _E.START): _P.WATCHING,
    (_P.IDLE, _E.BEGIN): _P.TAKING_OVER,  # by hand
    (_P.WATCHING, _E.SOURCE_FAILED): _P.ASKING,
    (_P.WATCHING, _E.SOURCE_ANSWERS): _P.WATCHING,
    (_P.WATCHING, _E.BEGIN): _P.TAKING_OVER,
    (_P.ASKING, _E.SOURCE_FAILED): _P.ASKING,
    (_P.ASKING, _E.SOURCE_ANSWERS): _P.WATCHING,
    (_P.ASKING, _E.DECLINE): _P.DECLINED,
    (_P.ASKING, _E.BEGIN): _P.TAKING_OVER,
    (_P.DECLINED, _E.SOURCE_FAILED): _P.DECLINED,  # the answer holds until the source has been there again
    (_P.DECLINED, _E.SOURCE_ANSWERS): _P.WATCHING,
    (_P.DECLINED, _E.BEGIN): _P.TAKING_OVER,
    (_P.TAKING_OVER, _E.TAKEN_BACK): _P.ASKING,  # it did not work by itself: a person is asked
    (_P.TAKING_OVER, _E.HALTED): _P.TAKING_OVER,
    (_P.TAKING_OVER, _E.BEGIN): _P.TAKING_OVER,  # tried again
    (_P.TAKING_OVER, _E.SOURCE_FAILED): _P.TAKING_OVER,
    (_P.TAKING_OVER, _E.SOURCE_ANSWERS): _P.TAKING_OVER,
    (_P.TAKING_OVER, _E.COMPLETED): _P.ACTIVE,
    (_P.ACTIVE, _E.SOURCE_FAILED): _P.ACTIVE,
    (_P.ACTIVE, _E.SOURCE_ANSWERS): _P.ACTIVE,
    (_P.ACTIVE, _E.HAND_BACK): _P.HANDING_BACK,
    (_P.HANDING_BACK, _E.SOURCE_FAILED): _P.HANDING_BACK,
    (_P.HANDING_BACK, _E.SOURCE_ANSWERS): _P.HANDING_BACK,
    (_P.HANDING_BACK, _E.HALTED): _P.HANDING_BACK,
    (_P.HANDING_BACK, _E.HAND_BACK): _P.HANDING_BACK,
    (_P.HANDING_BACK, _E.HAND_BACK_UNDONE): _P.ACTIVE,
    (_P.HANDING_BACK, _E.HANDED_BACK): _P.WATCHING,
    (_P.HANDING_BACK, _E.HANDED_BACK_FOR_GOOD): _P.IDLE,
    **{(phase, _E.STOP): _P.IDLE for phase in (_P.WATCHING, _P.ASKING, _P.DECLINED, _P.IDLE)},
    (_P.ACTIVE, _E.STOP): _P.IDLE,  # the roles stay as they are
    **{(phase, _E.SUPERSEDED): _P.IDLE for phase in Phase},
}
"""Once a failover has begun, monitoring cannot be stopped, and signs of life of the source change nothing:
the procedure has an end of its own.
"""

ASSUMING = frozenset({Phase.TAKING_OVER, Phase.HANDING_BACK})
"""FO-21: phases in which addresses move."""
OWNING = frozenset({Phase.ACTIVE, Phase.HANDING_BACK})
"""Phases in which this target owns the group and has its addresses. In TAKING_OVER it may already."""
MAY_OWN = OWNING | {Phase.TAKING_OVER}
