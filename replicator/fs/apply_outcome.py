"""What becomes of a record that is applied."""

import struct
from enum import Enum

from replicator.errors import ReplicatorError
from replicator.ops import Kind, Record, shown

INTENT = struct.Struct("<QQ")
"""What `Applier.intent` says, if anything."""


class Outcome(Enum):
    """What became of a record."""

    APPLIED = "applied"
    ALREADY = "already"  # in doubt, and found done
    IGNORED = "ignored"  # tolerant: the mirror brings it, or nothing was there to change


class ApplyError(ReplicatorError):
    """A record that cannot be applied. `errno` is 0 if the reason is not the operating system's."""

    def __init__(self, record: Record, reason: str, number: int = 0) -> None:
        name = Kind(record.kind).name if record.kind in Kind.__members__.values() else f"kind {record.kind}"
        paths = shown(record.path)
        if record.kind in (Kind.LINK, Kind.RENAME):
            paths += " -> " + shown(record.path2)
        super().__init__(f"cannot apply {name} {paths}: {reason}")
        self.path = record.path
        self.errno = number


class CrossDevice(ApplyError):
    """A rename or link between mapped roots on different file systems: the path has to be sent again."""
