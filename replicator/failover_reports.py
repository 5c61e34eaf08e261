"""What a failover, failback or drill did, as people see it and as it is kept. Values only."""

from enum import StrEnum

import msgspec

from replicator.failovers import CopyReport


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


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a procedure. `epoch`: that it made; 0: none (yet)."""

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
