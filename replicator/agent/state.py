"""What an agent remembers across restarts: who it is, its mounts, replication sets and connections.

`agent.json` and `state.json` in the home directory are replaced as a whole, so that a crash leaves the old or
the new one. A damaged file is never overwritten: the agent refuses to start and says what to do.
"""

import os
import socket
import uuid
from datetime import tzinfo
from typing import TypeVar

import msgspec

from replicator.bounds import MALFORMED
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Monitor, Promotion
from replicator.limit_calendar import LimitEntry, limit_now
from replicator.mount_options import MountOptions
from replicator.orphans import OrphanSettings
from replicator.repset import ReplicationSet
from replicator.restores import Phase, RestoreRequest, RestoreView, Root
from replicator.sender.arguments import Restored
from replicator.shares import Priority, Speed
from replicator.transmission import TransmissionSettings
from replicator.transmission_schedule import TransmissionSchedule

VERSION = 1

T = TypeVar("T", bound="_Versioned")
S = TypeVar("S", bound=msgspec.Struct)


class StateError(ReplicatorError):
    """A state file cannot be read or written."""


class _Versioned(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION


class AgentIdentity(_Versioned, frozen=True, kw_only=True):
    """agent.json: made once, at the first start. Peers know an agent by its uuid; the name is for people."""

    uuid: str
    name: str


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that is captured. Both paths are absolute; equal when it is mounted over itself."""

    id: str  # uuid: names the journal and the control socket
    path: str
    mountpoint: str
    binding: str = "auto"
    options: MountOptions = MountOptions()


class Map(msgspec.Struct, frozen=True):
    """Objects at `source` and below go to `target`. Absolute paths on the two hosts."""

    source: str
    target: str


class ConnectionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for when the connection was made, and what of it was changed since."""

    mirror: str | None = None  # full, difference; None: no mirror at the first session
    newer: bool = False
    checksum: bool = False
    replicate: bool = True
    remap_links: bool = True
    orphans: str = "keep"
    automatic_recovery: bool = True  # recoveries begin by themselves
    lock: str = "none"
    schedule: TransmissionSchedule = TransmissionSchedule()
    limit_calendar: tuple[LimitEntry, ...] = ()
    transmission: TransmissionSettings = TransmissionSettings()
    route: str = ""  # HOST[:PORT] that data is sent to instead of the target (CN-04); "": the target


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One replication set and one target."""

    uuid: str
    id: int  # what users type; only unique on this agent
    repset: (
        ReplicationSet  # with the rules it was connected with: a later save needs a new connection (RS-19)
    )
    target_host: str  # "": this same agent
    target_port: int
    maps: tuple[Map, ...]
    options: ConnectionOptions = ConnectionOptions()
    created: float  # seconds since the epoch
    epoch: int = 0  # of the set, see `net.frames.Connect`
    restored: Restored | None = None  # the last restore from its copy

    @property
    def target(self) -> str:
        """The target as users see it."""
        return f"{self.target_host or 'localhost'}:{self.target_port}"

    @property
    def host(self) -> str:
        """The target's host, as `State.transmissions` names it."""
        return (self.target_host or "localhost").lower()


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """Data of a copy that is brought to this host, or was."""

    uuid: str
    id: int
    copy: str  # uuid of the connection it is the copy of
    host: str  # where the agent that keeps it listens
    port: int
    request: RestoreRequest
    definition: ReplicationSet  # of the copy, whole
    repset: ReplicationSet  # the part that is restored
    roots: tuple[Root, ...]
    places: tuple[str, ...]  # absolute directories here, one for each root
    epoch: int  # of the copy, before
    over_source: bool = False  # what is restored becomes the source of that connection, whose mounts are down
    mounts: tuple[str, ...] = ()  # ids of these
    phase: Phase = Phase.RUNNING
    reason: str = ""
    resumed: str = ""
    started: float
    finished: float = 0.0
    last: RestoreView | None = None  # as it was shown at its end

    @property
    def is_at_work(self) -> bool:
        return self.phase in (Phase.RUNNING, Phase.FINISHING)


class Away(msgspec.Struct, frozen=True, kw_only=True):
    """A connection whose data another host owns since a failover: what it read is a copy of what that has."""

    connection: str  # uuid
    copy: str  # uuid of the return connection, whose copy it is
    group: str
    epoch: int  # since which the other owns it
    mounts: tuple[str, ...] = ()  # ids of those that are down: the copy is written below
    told: bool = False  # the owner knows that it may send


class State(_Versioned, frozen=True, kw_only=True):
    """state.json."""

    mounts: tuple[Mount, ...] = ()
    repsets: tuple[ReplicationSet, ...] = ()
    connections: tuple[Connection, ...] = ()
    last_connection_id: int = (
        0  # ids are not given twice, so that a script's old id never means another connection
    )
    recovery_speed: Speed = Speed.NORMAL
    priorities: dict[str, Priority] = {}  # of sets, by name; without those that have the default
    transmissions: dict[str, TransmissionSettings] = {}  # of target hosts; without those that say nothing
    schedules: dict[str, TransmissionSchedule] = {}  # the same
    limit_calendars: dict[str, tuple[LimitEntry, ...]] = {}  # the same

    orphans: OrphanSettings = OrphanSettings()  # of the copies that are kept here
    restores: tuple[Restore, ...] = ()  # to this host; those at work, and the last that have ended
    monitors: tuple[Monitor, ...] = ()  # groups that this host is the target of
    guards: tuple[Guard, ...] = ()  # groups that this host is the source of
    away: tuple[Away, ...] = ()

    def superseding(self, connection: str) -> Promotion | None:
        """By which another agent owns the copy of this connection."""
        for guard in self.guards:
            if guard.is_held and connection in guard.copies:
                return guard.superseded
        return None

    def restore_of(self, uuid: str) -> Restore | None:
        """By its own uuid."""
        return next((restore for restore in self.restores if restore.uuid == uuid), None)

    def is_restored(self, *, connection: str = "", mount: str = "") -> bool:
        """Whether this connection, or mount, has to stay down: for a restore, or because another host owns
        what is there.
        """
        if any(away.connection == connection or mount in away.mounts for away in self.away):
            return True
        if any(c.uuid == connection and c.restored and not c.restored.opened for c in self.connections):
            return True
        return any(
            restore.over_source
            and restore.is_at_work
            and (restore.copy == connection or mount in restore.mounts)
            for restore in self.restores
        )

    def transmission_of(self, host: str) -> TransmissionSettings:
        return self.transmissions.get(host, TransmissionSettings())

    def schedule_of(self, connection: Connection) -> TransmissionSchedule:
        """Its own one, if it says anything, else that of its target (TX-03)."""
        own = connection.options.schedule
        nothing = TransmissionSchedule()
        return own if own != nothing else self.schedules.get(connection.host, nothing)

    def calendar_of(self, host: str) -> tuple[LimitEntry, ...]:
        """Of a target: it acts on the limit that all connections to it share."""
        return self.limit_calendars.get(host, ())

    def transmission_from(
        self, connection_uuid: str, host: str, now: float, zone: tzinfo
    ) -> tuple[TransmissionSettings, TransmissionSettings]:
        """What a restore from the copy of this connection, which `host` keeps, is to obey: (the connection's
        own, those of the host), for it is the same line. Limits are those that calendars say at this moment.
        """
        own, host = TransmissionSettings(), host.lower()
        entries: tuple[LimitEntry, ...] = ()
        for connection in self.connections:
            if connection.uuid == connection_uuid:
                own, entries = connection.options.transmission, connection.options.limit_calendar
                host = connection.host
        target = self.transmission_of(host)
        return (
            msgspec.structs.replace(own, bandwidth=limit_now(entries, now, zone, own.bandwidth)),
            msgspec.structs.replace(
                target, bandwidth=limit_now(self.calendar_of(host), now, zone, target.bandwidth)
            ),
        )

    def priority_of(self, connection: Connection) -> Priority:
        return self.priorities.get(connection.repset.name, Priority.REGULAR)


def new_uuid() -> str:
    return str(uuid.uuid4())


def load_state(path: str) -> State:
    """The state at `path`; an empty one if there is no file. Raises StateError if it is damaged."""
    state = _load(path, State)
    if state is None:
        return State()
    if not state.connections:
        # CN-12: numbers start at 1 again, once none of them is in use.
        state = msgspec.structs.replace(state, last_connection_id=0)
    _check(path, state)
    return state


def load_identity(path: str, name: str) -> AgentIdentity:
    """Who the agent is, made at the first call. `name` renames it; "" keeps its name (at first: the host
    name).
    """
    known = _load(path, AgentIdentity)
    if known is None:
        identity = AgentIdentity(uuid=new_uuid(), name=name or socket.gethostname() or "agent")
    else:
        identity = msgspec.structs.replace(known, name=name or known.name)
    if identity != known:
        save(path, identity)
    return identity


def load_document(path: str, type_: type[S]) -> S | None:
    """A small file of ours; None if there is none. Raises StateError if it is damaged."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=type_)
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        raise StateError(_damaged(path, str(error))) from error


def save_document(path: str, value: msgspec.Struct) -> None:
    """Replace it, as `save` does."""
    _save(path, value)


def save(path: str, value: State | AgentIdentity) -> None:
    """Replace the file at `path`, durably: the new content and its name are on the disk when this returns.

    The file it replaces stays beside it as `….previous`. Raises StateError; the old file is then still in
    place.
    """
    _save(path, value)


def _save(path: str, value: msgspec.Struct) -> None:
    temporary, previous = f"{path}.new", f"{path}.previous"
    data = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        try:
            os.unlink(previous)
        except FileNotFoundError:
            pass
        try:
            os.link(path, previous)
        except OSError:
            pass  # the first save, or a file system without links: only the copy for emergencies is missing
        os.replace(temporary, path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror}; nothing was changed") from error


def _load(path: str, type_: type[T]) -> T | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version > VERSION:
            raise StateError(
                f"{path}: written by a newer release (format {version}, this one knows {VERSION}): use that"
                " release"
            )
        return msgspec.json.decode(data, type=type_)
    except MALFORMED as error:
        raise StateError(_damaged(path, str(error))) from error


def _check(path: str, state: State) -> None:
    for what, keys in (
        ("mount", [m.id for m in state.mounts]),
        ("mountpoint", [m.mountpoint for m in state.mounts]),
        ("replication set", [s.name for s in state.repsets]),
        ("connection", [c.uuid for c in state.connections]),
        ("connection id", [str(c.id) for c in state.connections]),
        ("monitor", [m.uuid for m in state.monitors]),
        ("group", [g.group for g in state.guards]),
        ("name of a monitor", [m.name for m in state.monitors]),
    ):
        for key in keys:
            if keys.count(key) > 1:
                raise StateError(_damaged(path, f"{what} {key} is there twice"))


def _damaged(path: str, reason: str) -> str:
    return (
        f"{path}: damaged ({reason}); it was left as it is: put {os.path.basename(path)}.previous or a"
        " backup in its"
        f" place, or move it away to start without mounts and connections"
    )
