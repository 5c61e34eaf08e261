"""Drills of a group, as people see them and as they are kept. Values only."""

from enum import StrEnum

import msgspec

from replicator import limits


class DrillState(StrEnum):
    RUNNING = "running"
    KEPT = "kept"  # its commands have ended; the room stays for a person
    PASSED = "passed"
    FAILED = "failed"  # a command failed
    IMPOSSIBLE = "impossible"  # it could not be tried
    ENDED = "ended"  # by a person, or for a failover
    INTERRUPTED = "interrupted"  # its agent ended in the middle


HOLD = "drill-"
"""What the name begins with by which a copy stands still for a drill; its uuid follows."""

OVER = frozenset(DrillState) - {DrillState.RUNNING, DrillState.KEPT}


class DrillRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user asks for. `check`: a line for /bin/sh. `scripts`: the post-failover script is run before
    it. `duplicate`: copy the copies first, instead of standing still for the whole drill.
    """

    check: str = ""
    scripts: bool = True
    duplicate: bool = False
    keep: bool = False
    timeout_s: float = limits.DRILL_TIMEOUT_S


class DrillPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The consistent point of one copy. `applied`: by journal, the sequence of the last operation in it;
    `time`: when its source did that; None: not known.
    """

    connection: str
    repset: str
    applied: dict[str, int] = {}
    time: float | None = None


class DrillCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One command and its end."""

    name: str
    command: str
    result: str  # in words
    succeeded: bool
    exit_code: int | None = None
    duration_s: float = 0.0
    output: str = ""
    output_bytes: int = 0


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """`still_s`: how long nothing was applied to the copies. `pid`: of the first process of its room, as this
    host knows it. Times are seconds since the epoch of clocks.
    """

    uuid: str
    group: str
    name: str  # of the monitor
    request: DrillRequest
    state: DrillState = DrillState.RUNNING
    reason: str = ""
    began: float
    ended: float = 0.0
    held: tuple[str, ...] = ()  # uuids of the copies that stand still, or are about to
    points: tuple[DrillPoint, ...] = ()
    commands: tuple[DrillCommand, ...] = ()
    changed_files: int = 0  # in the view of the copies
    changed_bytes: int = 0
    removed: int = 0
    still_s: float = 0.0
    pid: int = 0

    def text(self) -> str:
        """For a history."""
        if self.reason:
            return f"drill {self.state}: {self.reason}"
        what = ", ".join(f"{c.name}: {c.result}" for c in self.commands) or "nothing was run"
        return f"drill {self.state} ({what}; {self.changed_files} files changed in the view)"
