"""What a failover, failback or drill did, as people see it and as it is kept. Values only."""

from enum import StrEnum

import msgspec


class StepOutcome(StrEnum):
    PENDING = "pending"  # not begun
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "taking back"
    UNDONE = "taken back"
    UNDO_FAILED = "not taken back"  # a person has to look


class ReportOutcome(StrEnum):
    RUNNING = "running"
    HALTED = "waits for a person"  # final as far as it went; to be tried again
    TAKING_BACK = "is taken back"
    COMPLETED = "completed"
    TAKEN_BACK = "taken back"


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """`text`: why it failed. `said`: lines it has printed. `found`: it was interrupted, and turned out
    to have taken effect.
    """

    name: str
    outcome: StepOutcome = StepOutcome.PENDING
    began: float = 0.0  # seconds since the epoch of clocks
    duration_s: float = 0.0
    text: str = ""
    said: tuple[str, ...] = ()
    found: bool = False


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one copy. Counts are operations of the source.

    `received`: what the target had got of the source; `applied`: what of it is in the copy (less only if
    draining took longer than it may). `applied_until`: when the source did the last of it, by its clock: the
    recovery point. None: not known.
    """

    connection: str
    repset: str = ""
    copy: tuple[str, ...] = ()  # directories here
    received: int = 0
    applied: int = 0
    unapplied_bytes: int = 0
    applied_until: float | None = None
    problem: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a procedure. `epoch`: that it made, or will; 0: none."""

    uuid: str
    kind: str  # failover, failback, …
    group: str
    name: str = ""  # of the monitor
    reason: str = ""
    forced: bool = False
    began: float
    ended: float = 0.0
    outcome: ReportOutcome = ReportOutcome.RUNNING
    text: str = ""  # why it halted or was taken back
    interruptions: int = 0  # restarts of the agent in the middle
    epoch: int = 0
    copies: tuple[CopyReport, ...] = ()
    addresses: tuple[str, ...] = ()
    steps: tuple[StepReport, ...] = ()

    @property
    def recovery_point(self) -> float | None:
        """The oldest of its copies; None: none is known."""
        return min((c.applied_until for c in self.copies if c.applied_until is not None), default=None)
