"""The arguments file of a receiver process: what its agent tells it."""

import msgspec

from replicator import limits
from replicator.orphans import OrphanSettings


class ReceiverArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The arguments file of a receiver process."""

    home: str
    connection_uuid: str
    agent_uuid: str
    agent_name: str
    memory_directory: str  # of the spool's memory tier, for this connection alone
    disk_directory: str = ""  # of its disk tier; "": beside the state of the connection
    segment_bytes: int = limits.SEGMENT_BYTES
    memory_bytes: int = limits.MEMORY_QUEUE_BYTES
    disk_bytes: int | None = limits.DISK_QUEUE_BYTES
    watch: str = "off"  # for changes of others in the copy: config.WATCHES
    disk_free_min_bytes: int = limits.DISK_FREE_MIN_BYTES
    orphans: OrphanSettings = OrphanSettings()
    keep_deleted: str = ""  # directory for what deletions take out of the copy; "": it is removed
    keeps_existing: bool = False  # of a restore: only what is missing is made
