"""May the mounts of a group write on this host, and until when? What leases, records and persons say, as one
pure function. All else only carries it out: the expiry in the page of a fence (`fs/fence.py`).
"""

import math
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.failovers import Lapse


class Right(NamedTuple):
    """`until_s`: CLOCK_BOOTTIME; 0: not now, infinite: without end. `reason`: why it is closed or will be."""

    until_s: float
    reason: str = ""

    def holds(self, now_s: float) -> bool:
        return now_s < self.until_s


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one group. Times are CLOCK_BOOTTIME of this host."""

    superseded_by: str = ""  # name of the agent that owns the group by a higher epoch
    frozen: bool = False  # it has stopped for a hand-over
    lapse: Lapse = Lapse.NONE
    expiry_s: float = 0.0  # of its leases (`lease.Holder`)
    witness: bool = False  # there is one
    came_back_s: float | None = (
        None  # when its agent began to ask, if its mounts were not up then; None: they
    )
    #                                   were, or somebody has answered that it owns the group still


def right(facts: Facts, now_s: float) -> Right:
    """Who is superseded does not write, whatever leases there are. With a lapse only leases count, also after
    a start. Without one a source that comes back waits for an answer; not for ever, if nobody but its target
    can give one.
    """
    if facts.superseded_by:
        return Right(0.0, f"{facts.superseded_by} owns the group now")
    if facts.frozen:
        return Right(0.0, "frozen for a hand-over")
    if facts.lapse is not Lapse.NONE:
        return Right(facts.expiry_s, "needs a lease of the target or the witness")
    if facts.came_back_s is not None and (facts.witness or now_s < facts.came_back_s + limits.START_FENCED_S):
        return Right(0.0, "has come back, and asks who owns the group")
    return Right(math.inf)
