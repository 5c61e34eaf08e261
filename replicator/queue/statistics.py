"""How large a journal is, as its writer tells others."""

from dataclasses import dataclass

from replicator.queue.settings import JournalSettings


@dataclass(frozen=True)
class JournalStatistics:
    """Size of a journal. Bytes include segment headers and records still kept for a slow reader."""

    memory_bytes: int
    disk_bytes: int
    head_sequence: int
    lost_ops: int  # ever
    segments: int
    percent: float | None  # of memory and disk limit together; None: the disk tier is unlimited
    settings: JournalSettings
    problem: str  # why a tier could not be written when that was tried last; "": it could
