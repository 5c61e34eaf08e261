"""How much of their time the recoveries and mirrors of one host may work: a table and a pure function.

The *speed* is the host's (DC-19), the *priority* a replication set's (DC-17). Both only say how recoveries
share the host with applications and with each other: replication goes first in any case.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Speed(StrEnum):
    """DC-19: of everything that recovers or mirrors on a host."""

    NONE = "none"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    MAXIMUM = "maximum"


class Priority(StrEnum):
    """DC-17: of a replication set, while others recover as well."""

    CRITICAL = "critical"
    HIGH = "high"
    REGULAR = "regular"
    LOW = "low"


class Step(NamedTuple):
    """What a speed allows one recovery: the part of its time that it works."""

    busy: float  # while programs change what is captured
    quiet: float  # otherwise: nobody is slowed down
    at_once: int | None  # so many work fully beside each other, more share that; None: all


SPEEDS = {
    Speed.NONE: Step(0.0, 0.0, None),
    Speed.LOW: Step(0.25, 0.5, 2),
    Speed.NORMAL: Step(0.5, 1.0, 4),
    Speed.HIGH: Step(0.75, 1.0, 4),
    Speed.MAXIMUM: Step(1.0, 1.0, None),
}
_WEIGHTS = {Priority.CRITICAL: 8, Priority.HIGH: 4, Priority.REGULAR: 2, Priority.LOW: 1}


def shares(speed: Speed, priorities: Sequence[Priority], *, busy: bool) -> list[float]:
    """The part of its time, 0 to 1, that each of the recoveries with these priorities may work.

    The highest priority that is there works as the speed says, each one below half as much as the next: a
    lower one is slower, but never waits for a higher one (DC-18). `busy`: programs change what is captured.
    """
    step = SPEEDS[speed]
    whole = step.busy if busy else step.quiet
    highest = max((_WEIGHTS[priority] for priority in priorities), default=1)
    parts = [_WEIGHTS[priority] / highest for priority in priorities]
    if step.at_once is not None and sum(parts) > step.at_once:
        whole *= step.at_once / sum(parts)
    return [whole * part for part in parts]
