"""The arguments file of a sender process: what its agent tells it."""

import msgspec

from replicator.limit_calendar import LimitEntry
from replicator.repset import ReplicationSet
from replicator.security.settings import SecuritySettings
from replicator.sender.verify_log import VerifyLogSettings
from replicator.transmission import TransmissionOrders
from replicator.transmission_schedule import TransmissionSchedule


class JournalArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mount of the set: its journal and how to reach its capture."""

    mount_id: str
    root: str  # absolute path of the captured directory
    capture_socket: str  # "": of none; a directory of a copy is read, and its journal stays empty
    memory_directory: str
    disk_directory: str
    rules_root: str = ""  # as the rules of the set name it; "": they name `root`


class MapArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`source` is relative to the root of journal number `journal`; `target` is absolute."""

    journal: int
    source: str
    target: str


class SenderOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the administrator asked for when connecting."""

    mirror: str | None = "difference"  # full, difference; None: no mirror by itself
    newer: bool = False  # of that mirror: only what is newer here
    checksum: bool = False  # the same: compare blocks
    checksum_all: bool = False  # such mirrors compare those of all files
    replicate: bool = True
    remap_links: bool = False
    local_copy: bool = True  # large files are copied by the kernel where the target is on this host
    orphans: str = "keep"  # keep, delete: names the source does not have
    automatic_recovery: bool = True  # a recovery begins by itself
    recovery_share: float = (
        1.0  # of its time that a recovery or mirror may work, until the agent says otherwise
    )
    lock: str = "none"  # of the copy: see status.TargetLock
    remirror: str = "log"  # what brings what the target lacks after it was away, see `limits.REMIRROR`
    congestion_control: str = ""  # of the session's socket, see `congestion.py`; "": the host's
    reconnect: bool = True  # by itself, after a connection was lost
    reconnect_at_start: bool = True  # the same, after the source's host was down
    verify_log: VerifyLogSettings = VerifyLogSettings()
    schedule: TransmissionSchedule = TransmissionSchedule()
    replication_ratio: int = 0  # frames of changes for each step of a mirror, see `mix.py`
    limit_calendar: tuple[LimitEntry, ...] = ()
    target_calendar: tuple[LimitEntry, ...] = ()  # of the limit that all connections to the target share
    transmission: TransmissionOrders = TransmissionOrders()


class Restored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The source was restored from the copy of this connection, or is what it was promoted from, and equals
    it where its journals stood.

    `lacking`: by journal id, in base64, what does not: paths relative to the captured directory. `differing`:
    the same, as an encoded dirty map.
    """

    restore: str  # uuid: taken up once
    heads: dict[str, tuple[int, int]] = {}  # by journal id: sequence and chain; missing: where what is kept
    # for this connection begins
    lacking: dict[str, list[bytes]] = {}
    differing: dict[str, bytes] = {}
    resume: bool = True  # False: only a person lets it go on, and then everything is compared
    opened: bool = True  # False: its directories are being opened for programs, and it is not started yet
    waits: str = ""  # why it must not transmit before its agent says so; "": it may


class SenderArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments file of a sender process.

    Paths are text with surrogate escapes.
    """

    home: str
    connection_uuid: str
    agent_uuid: str
    agent_name: str
    target_host: str
    target_port: int
    repset: ReplicationSet
    journals: list[JournalArguments]
    maps: list[MapArguments]
    options: SenderOptions = SenderOptions()
    epoch: int = 0  # of the set: restores raise it, see `Connect.epoch`
    restored: Restored | None = None
    superseded: str = ""  # why nothing may be transmitted: another agent owns the copy
    connection_id: int = 0  # for people
    security: SecuritySettings = SecuritySettings()

    @property
    def target_name(self) -> str:
        """For people."""
        return f"{self.target_host}:{self.target_port}"

    @property
    def is_restore(self) -> bool:
        """Whether a copy is brought home. Its sessions are begun by the other side."""
        return all(not journal.capture_socket for journal in self.journals)
