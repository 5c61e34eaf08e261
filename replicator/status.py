"""States and statistics of a connection, as values.

Clients only render them. State names and meanings: features CS-01…CS-07; statistics ST-01…ST-13. The
dimensions are independent enumerations.
"""

from enum import StrEnum

import msgspec

from replicator import shares
from replicator.failovers import Promotion
from replicator.orphans import OrphanReport
from replicator.transmission import TransmissionStatus
from replicator.transmission_schedule import TransmissionSchedule


class ConnectionState(StrEnum):
    """CS-01."""

    STARTED = "Started"
    STOPPED = "Stopped"
    PAUSED = "Paused"
    SCHEDULED = "Scheduled"
    ERROR = "Error"


class TargetDataState(StrEnum):
    """CS-02: how good the target's copy is."""

    OK = "OK"
    MIRRORING = "Mirroring"
    MIRROR_REQUIRED = "Mirror Required"
    RESTORE_REQUIRED = "Restore Required"


class TargetStatus(StrEnum):
    """CS-03."""

    OK = "OK"
    NOT_LOADED = "Not Loaded"
    PAUSED = "Paused"
    PAUSE_PENDING = "Pause Pending"
    RETRYING = "Retrying"


class TargetLock(StrEnum):
    """What others may do with a copy while its connection lasts (DK-01…03). The weakest first."""

    NONE = "none"  # everything
    READ_ONLY = "read-only"
    LOCKED = "locked"  # nothing: they see an empty directory


class TransmitMode(StrEnum):
    """CS-05."""

    STARTED = "Started"
    PAUSED = "Paused"
    SCHEDULED = "Scheduled"
    STOPPED = "Stopped"
    ERROR = "Error"


class MirrorStatus(StrEnum):
    """CS-06.

    While the size is known, clients show `mirror_percent` in place of "Mirroring".
    """

    IDLE = "Idle"
    MIRRORING = "Mirroring"
    PAUSED = "Paused"
    WAITING = "Waiting"
    STOPPED = "Stopped"  # of a run: by request, before it was complete
    RESTORING = "Restoring"
    VERIFYING = "Verifying"
    REMOVING_ORPHANS = "Removing Orphans"


class ReplicationStatus(StrEnum):
    """CS-07."""

    REPLICATING = "Replicating"
    READY = "Ready"
    STOPPED = "Stopped"
    PENDING = "Pending"  # after a failure, until a mirror begins
    OUT_OF_MEMORY = "Out of Memory"  # the queue can take nothing: operations are lost and compared later


class Dimension(StrEnum):
    """The states of a connection that change independently of each other."""

    CONNECTION = "connection"
    TRANSMIT = "transmit mode"
    DATA = "target data state"
    TARGET = "target status"
    MIRROR = "mirror status"
    REPLICATION = "replication status"


class StoryEntry(msgspec.Struct, frozen=True):
    """One step of one dimension: what happened to a connection, and when."""

    sequence: int  # of the connection's story; never starts again
    time: float  # seconds since the epoch, by the source's clock
    dimension: Dimension
    before: str  # "": nothing was known before
    after: str  # the same as `before` if only the reason is another
    event: str  # what happened, in words
    reason: str  # "" if there is nothing to add
    lasted_s: float | None  # how long it had been `before`; None: unknown


class Problem(msgspec.Struct, frozen=True):
    """One file that could not be handled: shown, counted, and not the end of the run."""

    path: str
    reason: str


class MirrorProgress(msgspec.Struct, frozen=True):
    """Progress of the running, or result of the last, mirror.

    Sizes in bytes, times in seconds.
    """

    kind: str = ""  # full, difference
    status: MirrorStatus = MirrorStatus.IDLE
    complete: bool = False  # it has ended, with everything brought
    percent: float | None = None  # sent, or known to be there; None until the size is known
    total_files: int = 0
    total_bytes: int = 0
    total_known: bool = False
    done_files: int = 0
    done_bytes: int = 0
    sent_bytes: int = 0
    skipped_bytes: int = 0
    remaining_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    elapsed_s: float = 0.0
    remaining_s: float | None = None  # until its end at this rate; None: not known, or it does not move
    problem_count: int = 0
    problems: tuple[Problem, ...] = ()
    current: str = ""
    newer: bool = False  # only what is newer on the source
    checksum: bool = False  # blocks are compared
    compared_bytes: int = 0  # read and compared by digests
    held: bool = False  # it waits: the target has put nothing in place for a while (MR-09)
    applied_percent: float | None = None  # as `percent`, of what is in its place on the target (MR-10)
    applied_files: int = 0  # as `done_files`
    applied_bytes: int = 0


class VerifyPhase(StrEnum):
    """How far a verification is."""

    NONE = ""
    RUNNING = "running"
    PAUSED = "paused"
    REPAIRING = "repairing"  # what differs is brought
    STOPPED = "stopped"  # by request, before everything was compared
    COMPLETE = "complete"


class VerifyDifference(msgspec.Struct, frozen=True):
    """One path that differs, and in what (see `mirror.checks.Aspect`)."""

    path: str
    aspects: tuple[str, ...]
    bytes: int = 0  # of content, out of sync


class VerifyProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The running, or the last, verification of a connection. Sizes in bytes, times in seconds."""

    run: str = ""  # id
    phase: VerifyPhase = VerifyPhase.NONE
    checksum: bool = False
    remirror: bool = False
    newer: bool = False
    background: bool = False  # a part of the walk in the background
    scheduled: bool = False  # begun by the schedule
    started: float = 0.0  # since the epoch
    finished: float = 0.0
    elapsed_s: float = 0.0
    files: int = 0  # compared; what is no directory is a file
    directories: int = 0
    bytes: int = 0  # sizes of the files compared
    read_bytes: int = 0  # content compared by digests
    missing_files: int = 0
    missing_directories: int = 0
    different_files: int = 0
    different_directories: int = 0
    extra: int = 0  # names that only the target has
    remirrored: int = 0  # paths that were brought
    left: int = 0  # differ, and were left because they are not newer
    changing: int = 0  # changed whenever they were looked at: not compared
    bytes_out_of_sync: int = 0
    rate_bytes_per_s: float = 0.0
    problem_count: int = 0
    problems: tuple[Problem, ...] = ()
    differences: tuple[VerifyDifference, ...] = ()  # without those left out of `status`
    current: str = ""
    waits_for: str = ""  # why it does not go on
    next_run: float | None = None  # of the schedule, since the epoch
    schedule: str = ""
    background_bytes_per_s: int = 0  # it walks the set all the time, at this budget; 0: it does not
    oldest_seconds: float | None = None  # age of the last look at what was not looked at longest

    @property
    def options_text(self) -> str:
        """What it does."""
        wanted = [name for name in ("checksum", "remirror", "newer") if getattr(self, name)]
        return ", ".join(wanted) or "verify only"

    @property
    def difference_count(self) -> int:
        return (
            self.missing_files
            + self.missing_directories
            + self.different_files
            + self.different_directories
            + self.extra
        )


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one run of a mirror, recovery or verification ended. Sizes in bytes, times in seconds."""

    run: str  # id
    kind: str  # full, difference, recovery, forced, orphans, verify, background
    started: float  # since the epoch
    finished: float
    elapsed_s: float
    result: str  # complete, incomplete, stopped; of a verification equal, different, stopped
    options: str = ""
    files: int = 0
    bytes: int = 0
    matched_bytes: int = 0  # that the target had
    sent_bytes: int = 0
    skipped: int = 0  # differ, or change, and were left
    different: int = 0  # of a verification: paths
    bytes_out_of_sync: int = 0
    problem_count: int = 0
    problems: tuple[Problem, ...] = ()  # the first of them
    rate_bytes_per_s: float = 0.0
    text: str = ""  # what became of orphans


class RecoveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about a copy that is not exact, and how fast it may be (DC-17…DC-23)."""

    text: str = ""  # as an administrator reads it: "Log recovery paused, recovery enabled"; "": there is none
    automatic: bool = True  # recoveries begin by themselves
    priority: shares.Priority = shares.Priority.REGULAR  # of the replication set
    speed: shares.Speed = shares.Speed.NORMAL  # of this host
    share: float = 1.0  # of its time that a recovery or mirror of this connection may work now


class StageLag(msgspec.Struct, frozen=True):
    """One stage on the way of an operation: how long it takes, and what is in it."""

    stage: str  # journaled, sent, received, applied, durable: how it ends
    seconds: float  # the longest: of what waits now, and of what passed within the last seconds
    bytes: int  # of journal records that wait now


class LagSample(msgspec.Struct, frozen=True):
    """The meter some time ago: the worst of a second or of a minute."""

    time: float  # seconds since the epoch
    seconds: tuple[float, ...]  # by stage
    behind_bytes: int  # not applied on the target
    held_bytes: int  # in the queue: not durable on the target


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """The meter of a connection. A second or minute without a sample is one in which nothing was behind."""

    stages: tuple[StageLag, ...] = ()
    seconds: float = 0.0  # age of the oldest operation that is not applied
    bytes: int = 0  # that are not applied
    recovery_point_seconds: float = 0.0  # age of the oldest operation that has not reached the target
    recovery_point_bytes: int = 0  # would be lost with the source
    level: str = ""  # of the recovery point: warning, error, or none
    waits_for: str = ""  # why nothing is sent now
    held_bytes: int = 0  # that this connection keeps in the queue
    growth_bytes_per_s: float = 0.0  # of these, within the last minute
    queue_full_in_s: float | None = None  # at this rate; None: never
    last_minute: tuple[LagSample, ...] = ()  # by the second, oldest first
    last_hour: tuple[LagSample, ...] = ()  # by the minute


class PathOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One captured operation on a path somebody asks for. Paths are relative to the captured directory."""

    sequence: int
    time: float  # seconds since the epoch
    operation: str
    path: str
    path2: str = ""  # where it was renamed or linked to
    stage: str  # journaled, sent, received, applied, durable
    waits_for: str = ""


class PathConnection(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection does with a path."""

    id: int
    repset: str
    target: str
    included: bool
    rule: str = ""  # that decides; "": none names it
    mirror_pending: bool = False  # the mirror that runs has still to bring it, or something above it
    dirty: str = ""  # why the target's may differ, whatever is queued; "": nothing is known of it
    quarantined: str = ""  # why the last mirror or recovery left it as it was; "": it did not
    operations: tuple[PathOperation, ...] = ()  # the last ones in the queue, oldest first
    note: str = ""


class PathReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why a path is, or is not, on its targets."""

    path: str
    mount: str = ""  # the directory that captures it; "": none
    note: str = ""
    connections: tuple[PathConnection, ...] = ()


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: of a captured directory, or of a copy that is kept here. Sizes in bytes."""

    id: str  # of the mount, or the uuid of the connection
    role: str  # source, target
    name: str  # the captured directory, or what is written by the connection
    memory_directory: str
    memory_bytes: int
    memory_max_bytes: int
    memory_free_bytes: int | None  # of the file system; None: unknown
    disk_directory: str
    disk_bytes: int
    disk_max_bytes: int | None  # None: unlimited
    disk_free_min_bytes: int
    disk_free_bytes: int | None
    room_bytes: int  # that it can still take, with all limits and what others use
    percent: float  # of what it could hold now
    alert_percent: int
    alert: bool  # it holds so much, or did so a moment ago
    full: bool  # it can take nothing: what comes is lost, or its source waits
    segments: int
    lost_ops: int  # ever
    problem: str  # why it cannot be written


class ScheduleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """When a connection transmits, and what its schedule does next. Times are seconds since the epoch."""

    settings: TransmissionSchedule = TransmissionSchedule()  # as their user wrote them
    target: str = ""  # the host of whose connections this is the schedule; "": it is the connection's own
    holds: bool = False  # it transmits in sessions only
    session_began: float | None = None  # the one that is under way
    session_why: str = ""  # it began
    session_bytes: int = 0
    session_seconds: float = 0.0
    last_end: str = ""  # why the last one ended
    next_action: str = ""  # start, stop; "": nothing happens by itself
    next_time: float | None = None  # None: when its condition is met
    next_reason: str = ""
    next: str = ""  # all of that, in words
    zone: str = ""  # of these times of day, on the source


class ConnectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One connection as `dtctl status --json` prints it (design: the command contract)."""

    id: int
    uuid: str
    repset: str
    target: str
    target_address: str = ""
    state: ConnectionState = ConnectionState.STOPPED
    state_reason: str = ""
    target_data_state: TargetDataState = TargetDataState.MIRROR_REQUIRED
    target_status: TargetStatus = TargetStatus.NOT_LOADED
    target_status_reason: str = ""
    target_lock: TargetLock = TargetLock.NONE  # as it was asked for when connecting
    target_queue_full: bool = False  # AD-02: it has asked to wait
    transmit_mode: TransmitMode = TransmitMode.STOPPED
    mirror_status: MirrorStatus = MirrorStatus.IDLE
    replication_status: ReplicationStatus = ReplicationStatus.STOPPED
    queued_ops: int = 0  # ST-02: of mirror and replication
    queued_bytes: int = 0
    queued_replication_ops: int = 0
    queued_replication_bytes: int = 0
    queued_mirror_ops: int = 0
    memory_queue_bytes: int = 0
    disk_queue_bytes: int = 0
    sent_bytes: int = 0
    sent_compressed_bytes: int = 0  # what of sent_bytes went over the line, after compression
    sent_ops: int = 0
    sent_replication_bytes: int = 0
    sent_compressed_replication_bytes: int = 0
    sent_mirror_bytes: int = 0
    sent_compressed_mirror_bytes: int = 0
    skipped_mirror_bytes: int = 0
    remaining_mirror_bytes: int = 0
    foreign_changes: int = 0  # of others in the copy, as its present receiver has noticed them
    foreign_path: str = ""  # of the last of them
    lag_seconds: float = 0.0
    lag: Lag = Lag()  # without its history
    synchrony: str = ""  # of programs of its mounts with its target: a synchrony.SyncState; "": asynchronous
    synchrony_since: float | None = None  # seconds since the epoch
    synchrony_reason: str = ""  # why programs do not wait, or for what
    promotion: Promotion | None = None  # by which another agent owns the copy, as the target has told it
    tracking: bool = False  # nothing is kept in the queue for this connection: only what changes is noted
    tracked_since: float | None = None  # seconds since the epoch; what was changed since is to be brought
    tracked_files: int = 0  # entries that name one file
    tracked_bytes: int = 0  # in regions of known length
    tracked_directories: int = 0
    tracked_trees: int = 0  # to be brought with all below
    tracked_enough: bool = True  # False: everything has to be compared
    last_file: str = ""
    connected_since: float | None = None  # seconds since the epoch
    received: dict[str, int] = {}
    applied: dict[str, int] = {}
    durable: dict[str, int] = {}
    sender_pid: int | None = None
    receiver_pid: int | None = None  # on the target's host
    mirror: MirrorProgress = MirrorProgress()
    recovery: RecoveryStatus = RecoveryStatus()
    orphans: OrphanReport = OrphanReport()  # as the target told it last, without names
    schedule: ScheduleStatus = ScheduleStatus()
    verify: VerifyProgress = VerifyProgress()  # without names of what differs
    transmission: TransmissionStatus = TransmissionStatus()
