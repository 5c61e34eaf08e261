"""Where a journal lies and how large it may become."""

from dataclasses import dataclass

from replicator import limits


@dataclass(frozen=True)
class JournalSettings:
    """Sizes in bytes. `disk_bytes` None: unlimited; 0: no disk tier."""

    memory_directory: str  # on tmpfs: memory tier, shared header, doorbells
    disk_directory: str  # disk tier, and what a clean stop leaves
    segment_bytes: int = limits.SEGMENT_BYTES
    memory_bytes: int = limits.MEMORY_QUEUE_BYTES
    disk_bytes: int | None = limits.DISK_QUEUE_BYTES
    disk_free_min_bytes: int = limits.DISK_FREE_MIN_BYTES
