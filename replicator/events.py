"""Events: what an agent tells about itself, each with an id that scripts and administrators can rely on.

Ids and meanings follow the system-log events (EV-*) and log messages (LG-*) of the feature list where these
have one; ids from 9000 are our own. An event is one line in the log and one value in the ring that the
control API shows.
"""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator import limits


class Severity(StrEnum):
    """As in syslog; the letter begins the feature list's rows."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventType(NamedTuple):
    """One row of the catalogue. `text` is a format whose fields the event fills."""

    id: int
    severity: Severity
    text: str


_I, _W, _E = Severity.INFO, Severity.WARNING, Severity.ERROR

# Parameter order for events of connections: target name, set, connection id, reason (features 1.28).
AGENT_STARTED = EventType(4000, _I, "agent {name} started (pid {pid}, home {home}, listening on {listen})")
AGENT_STOPPED = EventType(4005, _I, "agent {name} stopped; mounts stay")
PORT_OUT_OF_RANGE = EventType(
    4045, _W, "port {port} is not from {first} to {last}: listening on {listen} instead"
)
PORT_IN_USE = EventType(4046, _E, "cannot listen on {listen}: another program has the port")
AUTO_RECONNECTED = EventType(4010, _I, "connection {id} ({repset} to {target}) started again after a restart")
CONNECTED = EventType(4016, _I, "connection {id} established: {repset} to {target}")
DISCONNECTED = EventType(4017, _I, "connection {id} removed: {repset} to {target}")
MIRROR_STARTED = EventType(4019, _I, "connection {id}: {kind} mirror started by request")
MIRROR_PAUSED = EventType(4020, _I, "connection {id}: mirror paused")
MIRROR_HELD = EventType(91, _I, "connection {id}: the mirror waits: {target} puts nothing in place")  # MR-09
MIRROR_GOES_ON = EventType(92, _I, "connection {id}: the mirror goes on: {target} keeps up again")
MIRROR_RESUMED = EventType(4021, _I, "connection {id}: mirror resumed")
MIRROR_STOPPED = EventType(4022, _I, "connection {id}: mirror stopped by request")
REPLICATION_STARTED = EventType(4024, _I, "connection {id}: replication started")
REPLICATION_STOPPED = EventType(4025, _I, "connection {id}: replication stopped")
TARGET_PAUSED = EventType(4026, _I, "applying paused for {count} connections by request")
TARGET_RESUMED = EventType(4027, _I, "applying resumed for {count} connections by request")
TRANSMISSION_STARTED = EventType(4014, _I, "connection {id}: transmission {how}")
TRANSMISSION_STOPPED = EventType(4015, _I, "connection {id}: transmission {how}")
CALENDAR_CHANGED = EventType(9121, _I, "{what}: calendar of limits: {labels}")
SCHEDULE_CHANGED = EventType(9120, _I, "{what}: transmission schedule: {text}")
LEVELS_UNAVAILABLE = EventType(
    4047, _W, "connection {id}: {target} does not understand compression: everything is sent as it is"
)
TRANSMISSION_SET = EventType(9035, _I, "{what}: compression {compression}, bandwidth {limit}")
REPSET_MODIFIED = EventType(99, _I, "replication set {repset} modified: generation {generation}")  # RS-24
REPSET_DELETED = EventType(9001, _I, "replication set {repset} deleted")
MOUNT_ADDED = EventType(9010, _I, "{path} is captured at {mountpoint}")
MOUNT_REMOVED = EventType(9011, _I, "{path} is no longer captured")
MOUNT_STALE = EventType(9012, _W, "{mountpoint}: a capture ended without unmounting; it is mounted again")
MOUNT_FAILED = EventType(9013, _E, "{path} cannot be captured: {reason}")
MOUNT_GIVEN_UP = EventType(
    9015,
    _E,
    "{path}: no capture could be started: programs get errors there until one can, it is tried on: {reason}; "
    "see {log}",
)
MOUNT_OPTIONS = EventType(9016, _I, "{path} is served with {options} from now on")
MOUNT_RELOADED = EventType(9014, _I, "{path} is served by a new process (pid {pid})")
CONNECTION_BACK = EventType(73, _I, "connection {id} ({repset} to {target}) is connected again")
CONNECTION_LOST = EventType(77, _W, "connection {id} ({repset} to {target}) lost: {reason}")
MIRROR_COMPLETED = EventType(
    4023, _I, "connection {id}: mirror completed: {files} files, {bytes} bytes sent, {problems} problems"
)
MIRROR_INCOMPLETE = EventType(
    90, _W, "connection {id}: the mirror ended before it was complete: mirror required"
)
TARGET_RETRYING = EventType(
    4113, _W, "connection {id}: {target} cannot apply an operation and tries again: {reason}"
)
TARGET_RECOVERED = EventType(4120, _I, "connection {id}: {target} applies again")
QUEUE_ALERT = EventType(9060, _W, "the queue {name} is {percent:.0f} % full ({bytes} bytes)")
QUEUE_NORMAL = EventType(9061, _I, "the queue {name} is {percent:.0f} % full again")
OPERATIONS_LOST = EventType(
    78, _E, "the queue {name} could not take {count} operations: what differs is compared"
)
TRACKING_BEGINS = EventType(
    801,
    _W,
    "connection {id} ({repset} to {target}) holds the queue back: it is emptied, and what changes is noted "
    "and brought later",
)
LAG_WARNING = EventType(
    9062, _W, "connection {id}: {seconds:.0f} s of changes have not reached {target} (recovery point)"
)
LAG_ERROR = EventType(
    9063, _E, "connection {id}: {seconds:.0f} s of changes have not reached {target} (recovery point)"
)
LAG_NORMAL = EventType(9064, _I, "connection {id}: its recovery point at {target} is good again")
RECOVERY_SPEED = EventType(9080, _I, "recoveries and mirrors of this host: speed {speed}")
RECOVERY_PRIORITY = EventType(9081, _I, "replication set {repset}: recovery priority {priority}")
RECOVERY_AUTOMATIC = EventType(9082, _I, "connection {id}: recoveries begin by themselves")
RECOVERY_MANUAL = EventType(9083, _I, "connection {id}: recoveries wait for a person")
TARGET_USED = EventType(
    9084, _W, "the copies of {count} connections were taken into use: nothing is applied to them"
)
SOURCE_FORCED = EventType(9085, _W, "connection {id}: the source was chosen to survive: {lost}")
FOREIGN_CHANGES = EventType(
    9090,
    _W,
    "connection {id}: somebody else changed the copy on {target} ({count} changes, {path}); it is repaired",
)
FOREIGN_CHANGES_HERE = EventType(
    9091, _W, "the copy of connection {uuid} was changed here by somebody else ({count} changes, {path})"
)
NOT_WATCHED = EventType(
    9092, _W, "changes of others in the copy of connection {uuid} are not noticed: {reason}"
)
TARGET_QUEUE_FULL = EventType(
    9065, _W, "connection {id}: the queue of {target} is full: changes wait here until it has room"
)
TARGET_QUEUE_ROOM = EventType(
    9066, _I, "connection {id}: the queue of {target} has room again: sending goes on"
)
QUEUE_FULL = EventType(9067, _W, "the queue {name} is full: its source has to wait")
QUEUE_ROOM = EventType(9068, _I, "the queue {name} has room again")
SYNC_BEGINS = EventType(9140, _I, "connection {id}: programs wait until {target} has what they make durable")
SYNC_ENDS = EventType(9141, _W, "connection {id}: programs no longer wait for {target}: {reason}")
SYNC_WAITS = EventType(9142, _W, "connection {id}: programs wait for {target} (strict): {reason}")
QUEUE_FAILED = EventType(9069, _E, "the queue {name} cannot be written: {reason}")
QUEUE_WORKS = EventType(9070, _I, "the queue {name} can be written again")
QUEUE_MOVED = EventType(9071, _I, "the queue of {name} is in {directory} now")
QUEUE_NOT_MOVED = EventType(9072, _W, "the queue of {name} stays in {directory}: {reason}")
QUEUE_SETTINGS = EventType(9073, _I, "the queue of {name} follows the configuration now")
QUEUE_SETTINGS_LATER = EventType(
    9074, _W, "the queue of {name} follows the configuration when it is mounted anew: {reason}"
)
ORPHANS_STARTED = EventType(4048, _I, "connection {id}: its target is asked for its orphans ({mode})")
ORPHANS_PAUSED = EventType(4049, _I, "connection {id}: the handling of orphans paused")
ORPHANS_RESUMED = EventType(4050, _I, "connection {id}: the handling of orphans resumed")
ORPHANS_STOPPED = EventType(4051, _I, "connection {id}: the handling of orphans stopped: {reason}")
ORPHANS_COMPLETED = EventType(4052, _I, "connection {id}: {text}")
ORPHANS_HALTED = EventType(
    9095, _W, "connection {id}: orphans of {target} wait for a person: {reason} (dtctl orphans status {id})"
)
ORPHAN_SETTINGS = EventType(9096, _I, "orphans of the copies on this host: {text}")
RESTORE_STARTED = EventType(4053, _I, "restore {id}: {repset} is restored from {source} to {places}")
RESTORE_PAUSED = EventType(4054, _I, "restore {id}: paused by request")
RESTORE_RESUMED = EventType(4055, _I, "restore {id}: resumed by request")
RESTORE_STOPPED = EventType(4056, _W, "restore {id}: stopped: {reason}")
RESTORE_COMPLETED = EventType(4057, _I, "restore {id}: {text}")
RESTORE_FAILED = EventType(9110, _E, "restore {id}: cannot go on: {reason}")
COPY_HELD = EventType(97, _I, "the copy of {repset} ({copy}) stands still: it is being restored from")
COPY_PROMOTED = EventType(
    98, _W, "the copy of {repset} ({copy}) was restored, and belongs to that source now (epoch {epoch})"
)
COPY_OPENED = EventType(
    9370,
    _W,
    "the copy of {repset} is open for programs ({places}, epoch {epoch}): connection {id} tracks changes",
)
COPY_FOLLOWS = EventType(9371, _W, "connection {id}: {places} follow {owner} now: {text}")
COPY_FOLLOWS_NOT = EventType(
    9372, _W, "{owner} has taken over, and this host does not follow it yet: {reason}"
)
COPY_HAS_NEW_OWNER = EventType(
    9374,
    _W,
    "{owner} has taken over from {source}: the copy of {repset} here stands as {source} has left it",
)
SIBLING_NOT_TOLD = EventType(
    9375, _W, "the copy of {repset} on {where} does not know its new owner: {reason}"
)
SIBLING_TOLD = EventType(
    9376,
    _W,
    "monitor {name}: {where} keeps a copy of {repset} as {source} has left it: dtctl failover adopt {name}"
    " {where} has it follow this host",
)
RETURN_BEGINS = EventType(9373, _I, "connection {id}: the former owner is prepared, what was changed is sent")
DIVERGENCE_SAVED = EventType(
    9381,
    _W,
    "group {group}: what this host wrote and {winner} has not is kept as divergence bundle {id} ({objects}"
    " objects, {bytes} bytes); see dtctl divergence show {id}",
)
DIVERGENCE_DROPPED = EventType(9382, _W, "divergence bundle {id} of group {group} was dropped")
ERRAND_DONE = EventType(9383, _I, "monitor {name}: {source} has acknowledged: {what}")
ERRAND_GIVEN_UP = EventType(9384, _E, "monitor {name}: {source} was asked in vain: {what}: {reason}")
ERRAND_WAITS = EventType(
    9386, _W, "monitor {name}: {source} was asked and has not yet acknowledged: {what}: {reason}"
)
ERRAND_FAILED = EventType(9387, _W, "monitor {name}: {source} was asked, and failed: {what}: {reason}")
HANDED_BACK_HOME = EventType(
    9385, _W, "group {name}: {owner} has handed it back; this host owns it (epoch {epoch})"
)
# Failover (FO-16). Ids of our own: monitors 9300…, addresses and procedure 9320…, scripts 9340…, leases and
# fences 9350…, promotions 9370…, failback 9380…, witness 9400….
ADDRESSES_SILENT = EventType(
    700000, _E, "monitor {name}: {addresses} of {source} do not answer any more: {reason}"
)
FAILOVER_CONDITION = EventType(
    100, _E, "monitor {name}: {source} has failed, the condition for failover is met"
)
FAILOVER_STARTED = EventType(101, _W, "monitor {name}: failover of {source} is in progress ({reason})")
RESTORE_NEEDED = EventType(4018, _W, "connection {id}: {target} has taken over: a restore is required")
MONITOR_ADDED = EventType(9300, _I, "monitor {name} watches {source} ({addresses})")
MONITOR_EDITED = EventType(9301, _I, "monitor {name} was changed: {what}")
MONITOR_REMOVED = EventType(9302, _I, "monitor {name} was removed: {source} is not watched any more")
FAILOVER_ASKED = EventType(
    9303, _E, "monitor {name}: shall this host take over from {source}? dtctl failover answer {name} yes|no"
)
FAILOVER_DECLINED = EventType(9304, _W, "monitor {name}: no failover of {source}: {reason}")
ADDRESS_SILENT = EventType(9305, _W, "monitor {name}: {address} does not answer any more: {reason}")
ADDRESS_ANSWERS = EventType(9306, _I, "monitor {name}: {address} answers again")
FAILOVER_WITHDRAWN = EventType(9309, _W, "monitor {name}: {source} answers again: no failover is needed")
FAILOVER_NOT_BEGUN = EventType(9310, _E, "monitor {name}: a failover could not be begun: {reason}")
NO_HEARTBEATS = EventType(
    9308, _W, "heartbeats cannot be answered at UDP {listen}: {reason}; whoever watches this host makes calls"
)
WATCHED_BY = EventType(9307, _I, "{name} watches this host ({address}), to take over when it fails")
ADDRESS_TAKEN = EventType(9320, _W, "this host has {address} now")
ADDRESS_GIVEN_UP = EventType(9321, _I, "this host has given {address} back")
ADDRESS_DROPPED = EventType(9322, _W, "this host has dropped {address}: another host has it by a failover")
HOST_NAME_TAKEN = EventType(9323, _W, "this host is called {name} now, no longer {former}")
ADDRESS_CONFLICT = EventType(9324, _E, "addresses of {name} are not put up again: {reason}")
FAILOVER_COMPLETED = EventType(9325, _W, "monitor {name}: {kind} completed after {seconds:.1f} s: {text}")
FAILOVER_NOT_LOADED = EventType(9328, _E, "this agent takes no part in failover: {reason}")
FAILOVER_TASK_FAILED = EventType(9329, _E, "{what}: {reason}; it is tried again")
FAILOVER_HALTED = EventType(9326, _E, "monitor {name}: {kind} waits for a person: {text}")
FAILOVER_TAKEN_BACK = EventType(9327, _E, "monitor {name}: {kind} was taken back: {text}")
SCRIPT_ENDED = EventType(
    9340, _I, "{group}: {kind} script {path}: {how} after {seconds:.1f} s; it printed: {output}"
)
SCRIPT_FAILED = EventType(
    9341, _W, "{group}: {kind} script {path} failed: {how} after {seconds:.1f} s; it printed: {output}"
)
DRILL_STARTED = EventType(9342, _I, "{group}: a drill begins: {count} copies stand still meanwhile")
DRILL_PASSED = EventType(9343, _I, "{group}: {text}; nothing was applied for {seconds:.1f} s")
DRILL_NOT_PASSED = EventType(9344, _W, "{group}: {text}; nothing was applied for {seconds:.1f} s")
FENCE_CLOSED = EventType(9350, _E, "{name}: mounts of this host are fenced ({mode}): {reason}")
FENCE_OPENED = EventType(9351, _I, "{name}: mounts of this host may be written again")
FENCE_FAILED = EventType(9352, _E, "{path}: programs there would not stop when a lease lapses: {reason}")
GUARD_REMOVED = EventType(9353, _I, "{name}: {target} does not watch this host any more")
START_FENCED = EventType(9354, _W, "{name}: mounts start read-only until {whom} has said who owns the data")
START_UNANSWERED = EventType(
    9355, _W, "{name}: nobody has said within {seconds:g} s who owns the data: mounts may be written"
)
START_WAITS = EventType(
    9356,
    _E,
    "{name}: neither {target} nor the witness answers: mounts stay read-only; a person who knows that"
    " {target} has not taken over opens them with dtctl failover open {name} --even-if-two-masters",
)
OPENED_BY_HAND = EventType(9357, _W, "{name}: mounts were opened by hand, whoever owns the data: {reason}")
SUPERSEDED = EventType(9358, _E, "{name}: {owner} has taken over from this host (epoch {epoch}): {reason}")
GUARD_ADDED = EventType(
    9359, _I, "{name}: {target} gives leases to this host; without one its mounts: {lapse}"
)
SOURCE_NOT_TOLD = EventType(9360, _W, "monitor {name}: the source does not know of it yet: {reason}")
ADDRESSES_NOT_DROPPED = EventType(
    9361, _E, "{name}: addresses that another host has taken could not be dropped here: {reason}"
)
GUARD_RELEASED = EventType(9362, _W, "{name}: a person has released this host from {target}: it asks nobody")
WITNESS_GROUP = EventType(9400, _I, "this agent is the witness of group {group} from now on, asked by {name}")
WITNESS_VOTED = EventType(9401, _W, "witness of group {group}: {name} may own it from epoch {epoch} on")
WITNESS_LEARNED = EventType(9402, _I, "witness of group {group}: {name} owns it since epoch {epoch}")
WITNESS_FORGOT = EventType(9403, _W, "this agent is no witness of group {group} any more: it was forgotten")
WITHDRAWAL_FAILED = EventType(
    9404, _W, "witness {witness} does not take back its vote for group {group}: {reason}"
)
VERIFY_STARTED = EventType(4058, _I, "connection {id}: verification started {how} ({text})")
VERIFY_PAUSED = EventType(4059, _I, "connection {id}: verification paused")
VERIFY_RESUMED = EventType(4060, _I, "connection {id}: verification resumed")
VERIFY_STOPPED = EventType(4061, _I, "connection {id}: verification stopped")
VERIFY_COMPLETED = EventType(4062, _I, "connection {id}: verification completed: {text}")
VERIFY_DIFFERS = EventType(
    9097, _W, "connection {id}: {target} differs from its source: {text} (dtctl verify status {id})"
)
CHILD_STARTED = EventType(9020, _I, "{role} {id} started (pid {pid})")
CHILD_ADOPTED = EventType(9021, _I, "{role} {id} goes on (pid {pid})")
CHILD_ENDED = EventType(
    9022, _W, "{role} {id} ended unexpectedly ({how}); next start in {delay_s:.1f} s; see {log}"
)
CHILD_SILENT = EventType(9023, _E, "{role} {id} does not answer: {reason}; see {log}")
CHILD_STOPPED = EventType(9024, _I, "{role} {id} stopped")
# Who uses the agent, and what for (SC-04).
ACCESS_GRANTED = EventType(600002, _I, "{user} from {origin} is let in by {how}: access level {level}")
LOGIN_FAILED = EventType(9150, _W, "login of {user} from {origin} failed: {reason}")
ACCESS_REFUSED = EventType(9151, _W, "{user} from {origin} ({level}) is refused: {command}")
CHANGED = EventType(9152, _I, "{user} from {origin}: {command}: {result}")
NOT_CHANGED = EventType(9153, _I, "{user} from {origin}: {command}: failed: {result}")
LOGGED_OUT = EventType(9154, _I, "{user} from {origin} logged out")
REMOTE_CONTROL = EventType(9155, _I, "remote control listens on {listen}, certificate {fingerprint}")
REMOTE_CONTROL_FAILED = EventType(9157, _E, "there is no remote control: {reason}")
CONTROL_CLOSED = EventType(9156, _W, "control: closed a connection from {peer}: {reason}")
PEER_ACCEPTED = EventType(72, _I, "source {peer} connects as {connection}")
PEER_REFUSED = EventType(9031, _W, "closed a socket from {peer}: {reason}")
PLAIN_ALLOWED = EventType(9200, _W, "plain text is spoken with {peers}: anybody there may read and change it")
PLAIN_SESSION = EventType(9201, _W, "source {peer} connects in plain text, as the configuration allows")
IDENTITY_MADE = EventType(
    9202, _I, "this agent has made its key; fingerprint of its certificate: {fingerprint}"
)
PAIRING_OPENED = EventType(9203, _I, "pairing is open for {minutes:.0f} minutes")
PAIRING_CLOSED = EventType(9204, _I, "pairing is closed: {reason}")
PAIRING_FAILED = EventType(9205, _W, "pairing with {peer} failed: {reason}")
PAIRED = EventType(9206, _I, "paired with {name} ({fingerprint}) at {peer}")
REVOKED = EventType(
    9207, _W, "the certificate of {name} ({fingerprint}) is revoked: nothing of it is accepted"
)
REVOKED_BY_AUTHORITY = EventType(
    9212, _W, "agent {uuid}: {reason}: its sessions end, and nothing of it is accepted"
)
GRANTED = EventType(9208, _W, "{name} may {what}")
RENEWAL_BEGINS = EventType(
    9209, _I, "a new certificate was made ({fingerprint}); paired agents are told of it"
)
RENEWED = EventType(9210, _I, "this agent shows its new certificate now: {fingerprint}")
PEER_RENEWED = EventType(9211, _I, "{name} has a new certificate ({fingerprint}), signed by its old key")
TARGET_NOT_TOLD = EventType(
    9032, _W, "connection {id}: {target} could not be told; there: dtctl target forget {uuid}"
)
STRAY = EventType(9025, _W, "{role} {id} (pid {pid}) runs, but nothing is known of it here: {reason}")
UNDO_FAILED = EventType(9041, _W, "what was begun could not be undone completely: {reason}")
ADVICE = EventType(9050, _I, "{text}")


class Event(msgspec.Struct, frozen=True):
    """One event. `time` in seconds since the epoch."""

    sequence: int
    time: float
    id: int
    severity: Severity
    text: str

    def line(self) -> str:
        """The event as the log shows it: local time with its offset, id, severity, text; always one line."""
        when = datetime.fromtimestamp(self.time).astimezone().isoformat(sep=" ", timespec="milliseconds")
        return f"{when} {self.id:>5} {self.severity:<7} {' '.join(self.text.split())}"


class EventRing:
    """Recent events. Each new one goes to `sink` too, which must not raise."""

    def __init__(
        self, wall_ns: Callable[[], int], sink: Callable[[Event], None], kept: int = limits.EVENTS_KEPT
    ) -> None:
        self._wall_ns = wall_ns
        self._sink = sink
        self._events: deque[Event] = deque(maxlen=kept)
        self._sequence = 0

    def add(self, type_: EventType, **fields: object) -> Event:
        """Remember and log an event of this type."""
        self._sequence += 1
        text = type_.text.format(**fields)
        event = Event(self._sequence, self._wall_ns() / 1e9, type_.id, type_.severity, text)
        self._events.append(event)
        self._sink(event)
        return event

    def since(self, sequence: int = 0, count: int | None = None) -> list[Event]:
        """Events after `sequence`, oldest first; with `count` the newest so many of them."""
        found = [event for event in self._events if event.sequence > sequence]
        return found if count is None else found[max(0, len(found) - count) :]
