"""Connections: made, ended, watched, and told what to do."""

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import trio

from replicator import events, limits, transmission
from replicator import repset as sets
from replicator.addresses import Address, normalise_path, parse_host_port
from replicator.agent import forecast, planning, thishost
from replicator.agent.core import Change, Core, NotFoundError
from replicator.agent.mounts import Mounts
from replicator.agent.queues import free_bytes, room_bytes
from replicator.agent.repsets import Repsets
from replicator.agent.state import Connection, ConnectionOptions, Map, Mount, new_uuid
from replicator.agent.supervisor import ChildError
from replicator.diagnostics import NOWHERE, is_nowhere
from replicator.errors import ReplicatorError, UsageError
from replicator.repset import Place, ReplicationSet
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    Lag,
    PathConnection,
    PathReport,
    RecoveryStatus,
    StoryEntry,
    TargetLock,
)
from replicator.synchrony import SyncView, worst
from replicator.transmission import TransmissionSettings


class WaitTimeoutError(ReplicatorError):
    """The target did not catch up in time."""


class ConnectRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    repset: str
    target: str = ""  # HOST[:PORT]; "": this same agent
    maps: tuple[Map, ...] = ()
    one_to_one: bool = False
    mirror: str | None = "difference"  # full, difference; None: no mirror
    replicate: bool = True
    newer: bool = False
    checksum: bool = False
    orphans: str = "keep"
    lock: str = TargetLock.NONE
    route: str = ""  # HOST[:PORT], another address of the target, for the data; "": the target
    compression: str = ""  # of its own; "": as the target's
    bandwidth: str = ""  # the same, beside that of the target; "": no limit


class _Queues(NamedTuple):
    """The journals of one connection: bytes in memory and on disk, and what the fullest can still take."""

    memory_bytes: int
    disk_bytes: int
    room_bytes: int | None
    synchrony: SyncView | None


def _with_synchrony(status: ConnectionStatus, view: SyncView | None) -> ConnectionStatus:
    if view is None:
        return status
    return msgspec.structs.replace(
        status, synchrony=view.state, synchrony_since=view.since, synchrony_reason=view.reason
    )


THIS_HOST = "this host"
_DONE = {"start": "started", "resume": "resumed", "pause": "paused", "stop": "stopped"}
_MIRROR_EVENTS = {
    "start": events.MIRROR_STARTED,
    "stop": events.MIRROR_STOPPED,
    "pause": events.MIRROR_PAUSED,
    "resume": events.MIRROR_RESUMED,
}


class Connections:
    """The connections whose source this agent is."""

    def __init__(self, core: Core, mounts: Mounts, repsets: Repsets) -> None:
        self._core = core
        self._mounts = mounts
        self._repsets = repsets

    async def all(self) -> list[ConnectionStatus]:
        found: dict[int, ConnectionStatus] = {}

        async def look(connection: Connection) -> None:
            found[connection.id] = await self.status(connection)

        async with trio.open_nursery() as nursery:
            for connection in self._core.state.connections:
                nursery.start_soon(look, connection)
        return [found[number] for number in sorted(found)]

    async def get(self, key: str) -> ConnectionStatus:
        return await self.status(self.find(key))

    async def connect(self, request: ConnectRequest) -> ConnectionStatus:
        async with self._core.change() as change:
            connection = await self.make(change, request)
        return await self.status(connection)

    def _with_defaults(self, request: ConnectRequest, address: Address | None) -> ConnectRequest:
        """With what [transmission] says, where neither the request does nor its target has a word on it."""
        settings = self._core.config.transmission
        said = self._core.state.transmission_of(address.host.lower() if address is not None else "localhost")
        compression = request.compression or ("" if said.compression else settings.compression)
        bandwidth = request.bandwidth or ("" if said.bandwidth else settings.bandwidth)
        return msgspec.structs.replace(request, compression=compression, bandwidth=bandwidth)

    async def make(self, change: Change, request: ConnectRequest) -> Connection:
        """A step of a change."""
        repset = self._repsets.find(request.repset)
        address = parse_host_port(request.target) if request.target else None
        journals = planning.journals_of(repset, self._core.state.mounts)
        sources = [source for journal in journals for source in journal.sources]
        maps = self._maps(request, repset, sources)
        if is_nowhere(request.target) and request.mirror is not None:
            request = msgspec.structs.replace(request, mirror="full", newer=False, checksum=False)
        request = self._with_defaults(request, address)
        options = _options(request, address, remap_links=self._core.config.mirror.remap_links)
        host = await self.host_of(address)
        wanted = planning.places_of(repset.name, sources, maps, host)
        existing = await self.places()
        sets.check_no_loop(wanted, existing, {THIS_HOST})
        sets.check_places(wanted, existing)
        number = self._core.state.last_connection_id + 1
        connection = Connection(
            uuid=new_uuid(),
            id=number,
            repset=repset,
            target_host=address.host if address is not None else "",
            target_port=address.port if address is not None else self._core.listen.port,
            maps=maps,
            options=options,
            created=time.time(),
        )
        # Saved first: whatever happens from here on, the next start knows of it.
        await change.save(connections=(*self._core.state.connections, connection), last_connection_id=number)
        change.undo(self._remove, change, connection)
        for journal in journals:
            await self._mounts.tell_active(journal.mount)
        await self._core.children.start_sender(connection)
        await self._wait_established(connection)
        self._core.events.add(
            events.CONNECTED, id=number, repset=repset.name, target=self._target_name(connection)
        )
        return connection

    def _maps(self, request: ConnectRequest, repset: ReplicationSet, sources: list[str]) -> tuple[Map, ...]:
        if request.maps and request.one_to_one:
            raise UsageError("maps and one_to_one exclude each other: give one of them")
        if request.one_to_one:
            return planning.one_to_one(sources)
        if not request.maps and is_nowhere(request.target):
            return planning.one_to_one(sources)
        if not request.maps:
            return planning.all_to_one(
                sources, self._core.config.target.root, self._core.identity.name, repset.name
            )
        maps = tuple(
            Map(normalise_path(m.source, "map source"), normalise_path(m.target, "map target"))
            for m in request.maps
        )
        planning.check_custom(maps, sources)
        return maps

    async def host_of(self, address: Address | None) -> str:
        """The name of a target's host in `Place.agent`: agents of one host share its file system."""
        if address is None:
            return THIS_HOST
        if is_nowhere(address.host):
            return NOWHERE
        here = await trio.to_thread.run_sync(thishost.reaches_this_host, address, abandon_on_cancel=True)
        return THIS_HOST if here else address.host.lower()

    async def places(self) -> list[Place]:
        found: list[Place] = []
        for connection in self._core.state.connections:
            address = (
                None
                if not connection.target_host
                else Address(connection.target_host, connection.target_port)
            )
            host = await self.host_of(address)
            sources = [
                source for journal in self._core.children.journals(connection) for source in journal.sources
            ]
            found += planning.places_of(connection.repset.name, sources, connection.maps, host)
        return found

    async def _wait_established(self, connection: Connection) -> None:
        """Until the first session is up. Raises ReplicatorError with the reason if it is not."""
        with trio.move_on_after(limits.ESTABLISH_TIMEOUT_S):
            while True:
                rung = self._core.rung
                status = await self.status(connection)
                if status.state in (ConnectionState.STARTED, ConnectionState.PAUSED):
                    return
                if status.state is ConnectionState.ERROR:
                    name = self._target_name(connection)
                    raise ReplicatorError(
                        f"cannot connect to {name}: {status.state_reason.removeprefix(f'{name}: ')}"
                    )
                with trio.move_on_after(limits.ESTABLISH_CHECK_S):
                    await rung.wait()
        raise ReplicatorError(
            f"cannot connect to {self._target_name(connection)}: no answer within"
            f" {limits.ESTABLISH_TIMEOUT_S:.0f} s"
        )

    async def disconnect(self, key: str) -> ConnectionStatus:
        async with self._core.change() as change:
            connection = self.find(key)
            status = await self.status(connection)
            await self._remove(change, connection)
            self._core.events.add(
                events.DISCONNECTED,
                id=connection.id,
                repset=connection.repset.name,
                target=self._target_name(connection),
            )
            return status

    async def remove_quietly(self, uuid: str) -> None:
        """For good, without an event: what replaced it is told. Nothing, if it is gone."""
        async with self._core.change() as change:
            for connection in self._core.state.connections:
                if connection.uuid == uuid:
                    await self._remove(change, connection, quiet=True)

    async def _remove(self, change: Change, connection: Connection, *, quiet: bool = False) -> None:
        journals = self._core.children.journals(connection)
        await change.save(
            connections=tuple(c for c in self._core.state.connections if c.uuid != connection.uuid)
        )
        told = await self._core.children.end_sender(connection, [journal.mount for journal in journals])
        if not told and not quiet:
            self._core.events.add(
                events.TARGET_NOT_TOLD,
                id=connection.id,
                target=self._target_name(connection),
                uuid=connection.uuid,
            )
        for journal in journals:
            try:
                await self._mounts.tell_active(journal.mount)
            except ReplicatorError as error:
                # It journals more than is needed until it is told again: a waste, not an error of this
                # request.
                self._core.events.add(events.ADVICE, text=f"{journal.mount.path}: {error}")

    async def mirror(
        self, key: str, action: str, *, kind: str, newer: bool, checksum: bool, orphans: str
    ) -> ConnectionStatus:
        connection = self.find(key)
        if action == "start":
            if kind != "log":
                _check_mirror(kind, newer=newer, checksum=checksum, orphans=orphans)
            elif newer or checksum:
                raise UsageError("newer, checksum: a log mirror compares nothing; leave them out")
            options = {"newer": newer, "checksum": checksum}
            await self._ask(connection, "mirror_start", kind=kind, orphans=orphans, **options)
        else:
            await self._ask(connection, f"mirror_{action}")
        self._core.events.add(_MIRROR_EVENTS[action], id=connection.id, kind=kind)
        return await self.status(connection)

    async def replicate(self, key: str, action: str) -> ConnectionStatus:
        connection = self.find(key)
        await self._ask(connection, f"replicate_{action}")
        started = action == "start"
        self._core.events.add(
            events.REPLICATION_STARTED if started else events.REPLICATION_STOPPED, id=connection.id
        )
        return await self.status(connection)

    async def transmit(self, key: str, action: str) -> ConnectionStatus:
        connection = self.find(key)
        await self._ask(connection, f"transmit_{action}")
        type_ = events.TRANSMISSION_STARTED if action in ("start", "resume") else events.TRANSMISSION_STOPPED
        self._core.events.add(type_, id=connection.id, how=_DONE[action])
        return await self.status(connection)

    async def wait(self, key: str, timeout_s: float | None) -> ConnectionStatus:
        """Until everything captured before the call is applied on the target and no mirror runs.

        Raises WaitTimeoutError after `timeout_s`. Survives a restart of the sender meanwhile.
        """
        connection = self.find(key)
        with trio.move_on_after(limits.WAIT_TIMEOUT_MAX_S if timeout_s is None else timeout_s):
            await self._core.up.wait()
            sequences = {}
            for journal in self._core.children.journals(connection):
                child = self._core.children.capture(journal.mount)
                if child is None:
                    raise ChildError(f"{journal.mount.path} is not captured at the moment")
                await child.wait_running(limits.WAIT_TIMEOUT_MAX_S)
                sequences[journal.mount.id] = (await child.call("settle"))["sequence"]
            while True:
                sender = self._core.children.sender(connection)
                if sender is None:
                    raise ReplicatorError(f"connection {connection.id} was disconnected while waiting for it")
                try:
                    await sender.wait_running(limits.WAIT_TIMEOUT_MAX_S)
                    # With the time-out: a sender does not notice that we have stopped listening.
                    caught_up = await sender.call(
                        "wait", limits.WAIT_TIMEOUT_MAX_S, sequences=sequences, timeout_s=timeout_s
                    )
                    if caught_up:
                        return await self.status(connection)
                except ChildError:
                    await trio.sleep(limits.CHILD_POLL_S)  # it ended; its successor is asked again
        status = await self.status(connection)
        raise WaitTimeoutError(_behind(connection, status, timeout_s))

    async def story(self, key: str, since: int, count: int) -> list[StoryEntry]:
        """Steps of a connection's states after `since`, oldest first; the newest `count` of them."""
        answer = await self._ask(self.find(key), "story", sequence=since, count=count)
        return msgspec.convert(answer, list[StoryEntry])

    async def why(self, path: str) -> PathReport:
        """What becomes of a path here: whether it is captured, in which sets by which rule, and where the
        last operations on it are.
        """
        path = normalise_path(path, "path")
        found = _captured(path, self._core.state.mounts)
        if found is None:
            real = await trio.to_thread.run_sync(os.path.realpath, path)
            found = _captured(real, self._core.state.mounts)
        if found is None:
            return PathReport(path=path, note="it is not captured: no mount of this agent is above it")
        mount, relative = found
        views = []
        for connection in self._core.state.connections:
            if any(journal.mount.id == mount.id for journal in self._core.children.journals(connection)):
                views.append(await self._why(connection, mount, relative))
        note = "" if views else "it is captured, and no connection sends anything of this mount"
        return PathReport(path=path, mount=mount.path, note=note, connections=tuple(views))

    async def _why(self, connection: Connection, mount: Mount, relative: str) -> PathConnection:
        included, rule = sets.deciding_rule(connection.repset, os.fsencode(mount.path), os.fsencode(relative))
        known: dict[str, Any] = {}
        try:
            if included:
                known = await self._ask(connection, "why", mount_id=mount.id, path=relative)
        except ReplicatorError as error:
            known = {"note": f"its sender does not say: {error}"}
        view = {
            "id": connection.id,
            "repset": connection.repset.name,
            "target": self._target_name(connection),
            "included": included,
            "rule": str(rule) if rule is not None else "",
            **known,
        }
        return msgspec.convert(view, PathConnection)

    async def _ask(self, connection: Connection, name: str, **arguments: object) -> Any:
        await self._core.up.wait()
        child = self._core.children.sender(connection)
        if child is None:
            raise ChildError(f"connection {connection.id} does not run")
        await child.wait_running()
        return await child.call(name, **arguments)

    async def status(self, connection: Connection) -> ConnectionStatus:
        """The sender's snapshot, completed; if it does not answer, what is known without it."""
        child = self._core.children.sender(connection)
        name = self._target_name(connection)
        without = ConnectionStatus(
            id=connection.id,
            uuid=connection.uuid,
            repset=connection.repset.name,
            target=name,
            target_lock=TargetLock(connection.options.lock),
            state_reason=self._reason_of_nothing(connection),
            recovery=self._recovery_status(connection, RecoveryStatus(share=0.0)),
        )
        if self._is_synchronous(connection):  # else it says nothing of that
            without = _with_synchrony(without, (await self._queues(connection)).synchrony)
        if child is None or (child.pid is None and not child.problem):
            return without
        try:
            status = msgspec.convert(await child.call("status"), ConnectionStatus)
        except ReplicatorError as error:
            return msgspec.structs.replace(without, state=ConnectionState.ERROR, state_reason=str(error))
        memory, disk, room, synchrony = await self._queues(connection)
        return msgspec.structs.replace(
            _with_synchrony(status, synchrony),
            id=connection.id,
            target=name,
            target_lock=TargetLock(connection.options.lock),
            memory_queue_bytes=memory,
            disk_queue_bytes=disk,
            recovery=self._recovery_status(connection, status.recovery),
            lag=self._completed(connection, status.lag, room, status.state_reason),
        )

    def _reason_of_nothing(self, connection: Connection) -> str:
        if any(away.connection == connection.uuid for away in self._core.state.away):
            return "another host owns what it read since a failover: see `dtctl failover guards`"
        if self._core.state.is_restored(connection=connection.uuid):
            return "is being restored from its copy: see `dtctl restore status`"
        return "is being started"

    def _recovery_status(self, connection: Connection, known: RecoveryStatus) -> RecoveryStatus:
        """With what the agent has decided."""
        state = self._core.state
        return msgspec.structs.replace(
            known,
            automatic=connection.options.automatic_recovery,
            priority=state.priority_of(connection),
            speed=state.recovery_speed,
        )

    async def lag(self, key: str) -> Lag:
        """The meter of a connection, with its history."""
        connection = self.find(key)
        lag = msgspec.convert(await self._ask(connection, "lag"), Lag)
        status = await self.status(connection)
        room = (await self._queues(connection)).room_bytes
        return self._completed(connection, lag, room, status.state_reason)

    def _completed(self, connection: Connection, lag: Lag, room: int | None, waits_for: str) -> Lag:
        scheduled, meter = self._core.state.schedule_of(connection).holds, self._core.config.meter
        return forecast.completed(lag, meter, room, scheduled=scheduled, waits_for=waits_for)

    def _is_synchronous(self, connection: Connection) -> bool:
        journals = self._core.children.journals(connection)
        return any(journal.mount.options.sync != "async" for journal in journals)

    async def _queues(self, connection: Connection) -> _Queues:
        """What the captures say of the journals of a connection."""
        memory = disk = 0
        room: int | None = None
        views: list[SyncView] = []
        for journal in self._core.children.journals(connection):
            child = self._core.children.capture(journal.mount)
            try:
                status = await child.call("status") if child is not None else {}
            except ReplicatorError:
                continue  # shown at the mount; the rest of the status is still of use
            in_memory, on_disk = status.get("memory_bytes", 0), status.get("disk_bytes", 0)
            memory += in_memory
            disk += on_disk
            found = msgspec.convert(status.get("synchrony", []), list[SyncView])
            views += [view for view in found if view.connection == connection.uuid]
            settings = self._core.children.journal_settings(journal.mount)
            free = await free_bytes(settings.disk_directory)
            left = room_bytes(settings, in_memory, on_disk, free)
            room = left if room is None else min(room, left)
        return _Queues(memory, disk, room, worst(views))

    def _target_name(self, connection: Connection) -> str:
        if is_nowhere(connection.target_host):
            return NOWHERE
        return str(Address(connection.target_host or self._core.listen.host, connection.target_port))

    def find(self, key: str) -> Connection:
        """By number, uuid, or the name of a set that is connected once."""
        found = [c for c in self._core.state.connections if key in (str(c.id), c.uuid)]
        found = found or [c for c in self._core.state.connections if key == c.repset.name]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(c.id) for c in found)
            raise UsageError(f"replication set {key!r} has several connections: name one of {numbers}")
        known = ", ".join(str(c.id) for c in self._core.state.connections) or "none"
        raise NotFoundError(f"no connection {key!r}; connections: {known}")

    def find_copied(self, key: str) -> Connection:
        """The same, of those that have a copy. Raises UsageError for one that only measures."""
        connection = self.find(key)
        if is_nowhere(connection.target_host):
            raise UsageError(
                f"connection {connection.id} goes to {NOWHERE}: it measures, and there is no copy"
            )
        return connection


def _captured(path: str, mounts: Sequence[Mount]) -> tuple[Mount, str] | None:
    """The mount that captures a path, and the path relative to it."""
    for mount in mounts:
        for root in (mount.path, mount.mountpoint):
            if sets.is_inside(path, root):
                return mount, path[len(root) :].strip("/")
    return None


def _options(request: ConnectRequest, target: Address | None, *, remap_links: bool) -> ConnectionOptions:
    if request.mirror is not None:
        _check_mirror(request.mirror, newer=request.newer, checksum=request.checksum, orphans=request.orphans)
    if request.lock not in list(TargetLock):
        raise UsageError(f"lock {request.lock!r}: must be {', '.join(TargetLock)}")
    return ConnectionOptions(
        mirror=request.mirror,
        newer=request.newer,
        checksum=request.checksum,
        replicate=request.replicate,
        remap_links=remap_links,
        orphans=request.orphans,
        lock=request.lock,
        transmission=transmission.changed(TransmissionSettings(), request.compression, request.bandwidth),
        route=planning.check_route(request.route, target),
    )


def _check_mirror(kind: str, *, newer: bool, checksum: bool, orphans: str) -> None:
    if kind not in ("full", "difference"):
        raise UsageError(f"mirror {kind!r}: must be full, difference, or (to start one) log")
    if orphans not in ("keep", "delete"):
        raise UsageError(f"orphans {orphans!r}: must be keep or delete")
    if kind == "full" and (newer or checksum):
        raise UsageError("newer, checksum: a full mirror sends every file; leave them out, or use difference")


def _behind(connection: Connection, status: ConnectionStatus, timeout_s: float | None) -> str:
    why = status.state_reason or status.target_status_reason
    return (
        f"connection {connection.id}: the target did not catch up within {timeout_s or 0:g} s"
        f" ({status.state}, mirror {status.mirror_status}, {status.queued_ops} operations queued"
        + (f"; {why}" if why else "")
        + ")"
    )
