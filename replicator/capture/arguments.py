"""What a capture is started with. Apart from it: its agent needs nothing else of it."""

import msgspec

from replicator import limits
from replicator.mount_options import MountOptions
from replicator.queue.settings import JournalSettings


class CaptureSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture process is told by its agent."""

    home: str
    mount_id: str
    path: str  # the directory to capture, absolute and without links
    mountpoint: str  # may be `path` itself
    binding: str = "auto"  # as asked for: see `binding_choice.choose`
    options: MountOptions = MountOptions()
    memory_directory: str
    disk_directory: str
    segment_bytes: int = limits.SEGMENT_BYTES
    memory_bytes: int = limits.MEMORY_QUEUE_BYTES
    disk_bytes: int | None = limits.DISK_QUEUE_BYTES
    disk_free_min_bytes: int = limits.DISK_FREE_MIN_BYTES
    readers: list[str] = []  # cursors that the journal has before anything can be changed through the mount
    active: list[bytes] = []  # as for the call `set_active`
    synchronous: dict[
        str, list[bytes]
    ] = {}  # the same by connection: those that a synchronous mount waits for

    fence: str = ""  # page of shared memory that says until when changes are carried out; "": always

    @property
    def journal(self) -> JournalSettings:
        return JournalSettings(
            self.memory_directory,
            self.disk_directory,
            self.segment_bytes,
            self.memory_bytes,
            self.disk_bytes,
            self.disk_free_min_bytes,
        )
