"""What an agent does when it is asked: mounts, replication sets, connections, protect. The API only
translates to this.

`state` is what should be; the supervisor makes it so. A change is checked first, saved, and then carried out;
what fails half-way is undone. One change at a time: `_changes` is held over each of them.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio

import replicator
from replicator import events, limits
from replicator import repset as sets
from replicator.addresses import Address, Destination, normalise_path, parse_destination, parse_host_port
from replicator.agent import bindings, planning, thishost
from replicator.agent.children import Children
from replicator.agent.state import (
    AgentIdentity,
    Connection,
    ConnectionOptions,
    Map,
    Mount,
    State,
    new_uuid,
    save,
)
from replicator.agent.supervisor import ChildError
from replicator.config import Config
from replicator.errors import ExitCode, ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.paths import Home
from replicator.repset import Place, ReplicationSet, Rule
from replicator.status import ConnectionState, ConnectionStatus

T = TypeVar("T")


class NotFoundError(ReplicatorError):
    """There is no mount, set, rule or connection of that name."""

    exit_code = ExitCode.USAGE


class WaitTimeoutError(ReplicatorError):
    """The target did not catch up in time."""


# --- what clients see ---


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    version: str
    pid: int
    home: str
    listen: str
    insecure: bool
    started: float
    mounts: int
    repsets: int
    connections: int
    receivers: int


class MountView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    path: str
    mountpoint: str
    binding: str
    pid: int | None
    state: str  # serving, starting, failed
    problem: str


class RepsetView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    generation: int
    rules: tuple[Rule, ...]
    connections: tuple[int, ...]
    advice: str = ""


class TargetView(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver: a copy that is kept here."""

    uuid: str
    pid: int | None
    problem: str
    status: Any


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


class Service:
    """The agent. `listen` is where it accepts sources."""

    def __init__(
        self,
        home: Home,
        identity: AgentIdentity,
        config: Config,
        state: State,
        listen: Address,
        ring: EventRing,
        children: Children,
    ) -> None:
        self.home = home
        self.identity = identity
        self.config = config
        self.state = state
        self.listen = listen
        self.events = ring
        self.children = children
        self.stop_requested = trio.Event()
        self._started = time.time()
        self._changes = trio.Lock()
        self._up = trio.Event()

    # --- life ---

    async def start(self) -> None:
        """Bring everything up that should run. Returns when all mounts serve, or were tried.

        Whoever wants to change something meanwhile waits until then.
        """
        async with self._changes:
            await self._start()
        self._up.set()

    async def _start(self) -> None:
        await self.children.adopt_strays()
        async with trio.open_nursery() as nursery:
            for mount in self.state.mounts:
                nursery.start_soon(self._start_mount, mount)
        for connection in self.state.connections:
            await self.children.start_sender(connection, patient=True)
            self.events.add(
                events.AUTO_RECONNECTED,
                id=connection.id,
                repset=connection.repset.name,
                target=connection.target,
            )
        for uuid in self.children.receivers_known():
            await self.children.start_receiver(uuid, patient=True)

    async def _start_mount(self, mount: Mount) -> None:
        child = await self.children.start_capture(mount, patient=True)
        try:
            await child.wait_running()
        except ReplicatorError as error:
            self.events.add(events.MOUNT_FAILED, path=mount.path, reason=str(error))

    def agent(self) -> AgentView:
        return AgentView(
            uuid=self.identity.uuid,
            name=self.identity.name,
            version=replicator.__version__,
            pid=os.getpid(),
            home=self.home.path,
            listen=str(self.listen),
            insecure=not self.listen.is_loopback,
            started=self._started,
            mounts=len(self.state.mounts),
            repsets=len(self.state.repsets),
            connections=len(self.state.connections),
            receivers=len(self.children.receivers()),
        )

    async def stop(self, *, mounts: bool, force: bool) -> None:
        """Ask the agent to end.

        With `mounts` these are taken down first; raises ReplicatorError if one is in use.
        """
        if mounts:
            async with self._changes:
                await self.children.stop_flows()
                await self.children.stop_captures(force=force)
        self.stop_requested.set()

    # --- mounts ---

    async def mounts(self) -> list[MountView]:
        return [await self._mount_view(mount) for mount in self.state.mounts]

    async def add_mount(self, path: str, mountpoint: str | None, binding: str) -> MountView:
        async with self._changes:
            return await self._mount_view(await self._add_mount(path, mountpoint, binding))

    async def _add_mount(self, path: str, mountpoint: str | None, binding: str) -> Mount:
        path = await _real_path(path, "path")
        mountpoint = path if mountpoint is None else await _real_path(mountpoint, "mountpoint")
        bindings.choose(binding)
        queue = self.config.queue
        private = [self.home.path, queue.memory_directory, *filter(None, [queue.disk_directory])]
        planning.check_new_mount(path, mountpoint, self.state.mounts, private)
        mount = Mount(id=new_uuid(), path=path, mountpoint=mountpoint, binding=binding)
        try:
            await self.children.start_capture(mount)
            await self._save(mounts=(*self.state.mounts, mount))
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.children.stop_capture(mount, force=True, persist=False)
                await self.children.discard_journal(mount)
            raise
        self.events.add(events.MOUNT_ADDED, path=path, mountpoint=mountpoint)
        return mount

    async def remove_mount(self, path: str, *, force: bool) -> MountView:
        async with self._changes:
            return await self._remove_mount(self._find_mount(path), force=force)

    async def _remove_mount(self, mount: Mount, *, force: bool) -> MountView:
        used = [c for c in self.state.connections if self._needs(c, mount)]
        if used:
            numbers = ", ".join(str(c.id) for c in used)
            raise ReplicatorError(
                f"{mount.path} is needed by connection {numbers}: dtctl disconnect {used[0].id} first"
            )
        view = await self._mount_view(mount)
        await self.children.stop_capture(mount, force=force, persist=False)
        await self._save(mounts=tuple(m for m in self.state.mounts if m.id != mount.id))
        await self.children.discard_mount(mount)
        self.events.add(events.MOUNT_REMOVED, path=mount.path)
        return view

    def _find_mount(self, path: str) -> Mount:
        path = normalise_path(path, "path")
        for mount in self.state.mounts:
            if path in (mount.path, mount.mountpoint):
                return mount
        known = ", ".join(mount.path for mount in self.state.mounts) or "none"
        raise NotFoundError(f"{path} is not captured; captured directories: {known}")

    async def _mount_view(self, mount: Mount) -> MountView:
        child = self.children.capture(mount)
        pid = child.pid if child is not None else None
        problem = child.problem if child is not None else ""
        binding = mount.binding
        try:
            if child is not None and pid is not None:
                binding = (await child.call("status"))["binding"]
        except ReplicatorError as error:
            problem = str(error)
        return MountView(
            id=mount.id,
            path=mount.path,
            mountpoint=mount.mountpoint,
            binding=binding,
            pid=pid,
            state="serving" if pid is not None else "failed" if problem else "starting",
            problem=problem,
        )

    def _needs(self, connection: Connection, mount: Mount) -> bool:
        return any(journal.mount.id == mount.id for journal in self.children.journals(connection))

    async def _tell_active(self, mount: Mount) -> None:
        child = self.children.capture(mount)
        if child is not None:
            await child.call("set_active", prefixes=self.children.active_prefixes(mount))

    # --- replication sets ---

    def repsets(self) -> list[RepsetView]:
        return [self._repset_view(repset) for repset in self.state.repsets]

    def repset(self, name: str) -> RepsetView:
        return self._repset_view(self._find_repset(name))

    async def create_repset(self, name: str, rules: Sequence[Rule]) -> RepsetView:
        async with self._changes:
            return self._repset_view(await self._create_repset(name, rules))

    async def _create_repset(self, name: str, rules: Sequence[Rule]) -> ReplicationSet:
        sets.check_name(name)
        sets.check_unique(name, self._names())
        return await self._store(None, ReplicationSet(name, 0, tuple(rules)))

    async def set_rules(self, name: str, rules: Sequence[Rule], generation: int | None) -> RepsetView:
        return await self._change(name, generation, lambda current: sets.with_rules(current, rules))

    async def add_rule(self, name: str, rule: Rule, generation: int | None) -> RepsetView:
        return await self._change(name, generation, lambda current: sets.add_rule(current, rule))

    async def remove_rule(self, name: str, path: str, generation: int | None) -> RepsetView:
        return await self._change(name, generation, lambda current: sets.remove_rule(current, path))

    async def _change(
        self, name: str, generation: int | None, change: Callable[[ReplicationSet], ReplicationSet]
    ) -> RepsetView:
        async with self._changes:
            current = self._find_repset(name)
            changed = change(current)
            if generation is not None:
                changed = msgspec.structs.replace(changed, generation=generation)
            if changed == current:
                return self._repset_view(current)
            stored = await self._store(current, changed)
            view = self._repset_view(stored)
            return msgspec.structs.replace(view, advice=sets.advice_after_save(stored, view.connections))

    async def copy_repset(self, name: str, new_name: str) -> RepsetView:
        async with self._changes:
            copy = sets.renamed(self._find_repset(name), new_name, self._names())
            return self._repset_view(await self._store(None, copy))

    async def rename_repset(self, name: str, new_name: str) -> RepsetView:
        async with self._changes:
            current = self._find_repset(name)
            sets.check_deletable(current, self._connection_ids(name))
            renamed = sets.renamed(current, new_name, self._names())
            return self._repset_view(await self._store(current, renamed, replaces=name))

    async def delete_repset(self, name: str) -> RepsetView:
        async with self._changes:
            return await self._delete_repset(name)

    async def _delete_repset(self, name: str) -> RepsetView:
        current = self._find_repset(name)
        sets.check_deletable(current, self._connection_ids(name))
        await self._save(repsets=tuple(s for s in self.state.repsets if s.name != name))
        self.events.add(events.REPSET_DELETED, repset=name)
        return self._repset_view(current)

    async def _store(
        self, current: ReplicationSet | None, changed: ReplicationSet, *, replaces: str = ""
    ) -> ReplicationSet:
        stored = sets.save(None if replaces else current, changed)
        others = [s for s in self.state.repsets if s.name != (replaces or changed.name)]
        await self._save(repsets=tuple(sorted([*others, stored], key=lambda s: s.name)))
        self.events.add(events.REPSET_MODIFIED, repset=stored.name, generation=stored.generation)
        return stored

    def _find_repset(self, name: str) -> ReplicationSet:
        for repset in self.state.repsets:
            if repset.name == name:
                return repset
        known = ", ".join(sorted(self._names())) or "none"
        raise NotFoundError(f"no replication set {name!r}; sets: {known}")

    def _names(self) -> set[str]:
        return {repset.name for repset in self.state.repsets}

    def _connection_ids(self, repset: str) -> list[int]:
        return [c.id for c in self.state.connections if c.repset.name == repset]

    def _repset_view(self, repset: ReplicationSet) -> RepsetView:
        return RepsetView(
            name=repset.name,
            generation=repset.generation,
            rules=repset.rules,
            connections=tuple(self._connection_ids(repset.name)),
        )

    # --- connections ---

    async def connections(self) -> list[ConnectionStatus]:
        found: dict[int, ConnectionStatus] = {}

        async def look(connection: Connection) -> None:
            found[connection.id] = await self._status(connection)

        async with trio.open_nursery() as nursery:
            for connection in self.state.connections:
                nursery.start_soon(look, connection)
        return [found[number] for number in sorted(found)]

    async def connection(self, key: str) -> ConnectionStatus:
        return await self._status(self._find_connection(key))

    async def connect(self, request: ConnectRequest) -> ConnectionStatus:
        async with self._changes:
            return await self._status(await self._connect(request))

    async def _connect(self, request: ConnectRequest) -> Connection:
        repset = self._find_repset(request.repset)
        address = parse_host_port(request.target) if request.target else None
        journals = planning.journals_of(repset, self.state.mounts)
        sources = [source for journal in journals for source in journal.sources]
        maps = self._maps(request, repset, sources)
        options = _options(request, remap_links=self.config.mirror.remap_links)
        host = await self._host_of(address)
        wanted = planning.places_of(repset.name, sources, maps, host)
        existing = await self._places()
        sets.check_no_loop(wanted, existing, {_THIS_HOST})
        sets.check_places(wanted, existing)
        number = self.state.last_connection_id + 1
        connection = Connection(
            uuid=new_uuid(),
            id=number,
            repset=repset,
            target_host=address.host if address is not None else "",
            target_port=address.port if address is not None else self.listen.port,
            maps=maps,
            options=options,
            created=time.time(),
        )
        # Saved first: whatever happens from here on, the next start knows of it.
        await self._save(connections=(*self.state.connections, connection), last_connection_id=number)
        try:
            for journal in journals:
                await self._tell_active(journal.mount)
            await self.children.start_sender(connection)
            await self._wait_established(connection)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._remove_connection(connection)
            raise
        self.events.add(events.CONNECTED, id=number, repset=repset.name, target=self._target_name(connection))
        return connection

    def _maps(self, request: ConnectRequest, repset: ReplicationSet, sources: list[str]) -> tuple[Map, ...]:
        if request.maps and request.one_to_one:
            raise UsageError("maps and one_to_one exclude each other: give one of them")
        if request.one_to_one:
            return planning.one_to_one(sources)
        if not request.maps:
            return planning.all_to_one(sources, self.config.target.root, self.identity.name, repset.name)
        maps = tuple(
            Map(normalise_path(m.source, "map source"), normalise_path(m.target, "map target"))
            for m in request.maps
        )
        planning.check_custom(maps, sources)
        return maps

    async def _host_of(self, address: Address | None) -> str:
        """The name of a target's host in `Place.agent`: agents of one host share its file system."""
        if address is None:
            return _THIS_HOST
        here = await trio.to_thread.run_sync(thishost.reaches_this_host, address, abandon_on_cancel=True)
        return _THIS_HOST if here else address.host.lower()

    async def _places(self) -> list[Place]:
        found: list[Place] = []
        for connection in self.state.connections:
            address = (
                None
                if not connection.target_host
                else Address(connection.target_host, connection.target_port)
            )
            host = await self._host_of(address)
            sources = [source for journal in self.children.journals(connection) for source in journal.sources]
            found += planning.places_of(connection.repset.name, sources, connection.maps, host)
        return found

    async def _wait_established(self, connection: Connection) -> None:
        """Until the first session is up. Raises ReplicatorError with the reason if it is not."""
        with trio.move_on_after(limits.ESTABLISH_TIMEOUT_S):
            while True:
                status = await self._status(connection)
                if status.state is ConnectionState.STARTED:
                    return
                if status.state is ConnectionState.ERROR:
                    name = self._target_name(connection)
                    raise ReplicatorError(
                        f"cannot connect to {name}: {status.state_reason.removeprefix(f'{name}: ')}"
                    )
                await trio.sleep(limits.CHILD_POLL_S)
        raise ReplicatorError(
            f"cannot connect to {self._target_name(connection)}: no answer within"
            f" {limits.ESTABLISH_TIMEOUT_S:.0f} s"
        )

    async def disconnect(self, key: str) -> ConnectionStatus:
        async with self._changes:
            connection = self._find_connection(key)
            status = await self._status(connection)
            await self._remove_connection(connection)
            self.events.add(
                events.DISCONNECTED,
                id=connection.id,
                repset=connection.repset.name,
                target=self._target_name(connection),
            )
            return status

    async def _remove_connection(self, connection: Connection) -> None:
        journals = self.children.journals(connection)
        await self._save(connections=tuple(c for c in self.state.connections if c.uuid != connection.uuid))
        if not await self.children.end_sender(connection, [journal.mount for journal in journals]):
            self.events.add(
                events.TARGET_NOT_TOLD,
                id=connection.id,
                target=self._target_name(connection),
                uuid=connection.uuid,
            )
        for journal in journals:
            try:
                await self._tell_active(journal.mount)
            except ReplicatorError as error:
                # It journals more than is needed until it is told again: a waste, not an error of this
                # request.
                self.events.add(events.ADVICE, text=f"{journal.mount.path}: {error}")

    async def mirror(
        self, key: str, action: str, *, kind: str, newer: bool, checksum: bool, orphans: str
    ) -> ConnectionStatus:
        connection = self._find_connection(key)
        if action == "start":
            _check_mirror(kind, newer=newer, checksum=checksum, orphans=orphans)
            await self._ask(connection, "mirror_start", kind=kind, orphans=orphans)
        else:
            await self._ask(connection, f"mirror_{action}")
        self.events.add(_MIRROR_EVENTS[action], id=connection.id, kind=kind)
        return await self._status(connection)

    async def replicate(self, key: str, action: str) -> ConnectionStatus:
        connection = self._find_connection(key)
        await self._ask(connection, f"replicate_{action}")
        started = action == "start"
        self.events.add(
            events.REPLICATION_STARTED if started else events.REPLICATION_STOPPED, id=connection.id
        )
        return await self._status(connection)

    async def transmit(self, key: str, action: str) -> ConnectionStatus:
        connection = self._find_connection(key)
        await self._ask(connection, f"transmit_{action}")
        if action in ("start", "resume"):
            self.events.add(events.TRANSMISSION_STARTED, id=connection.id)
        else:
            how = "paused" if action == "pause" else "stopped"
            self.events.add(events.TRANSMISSION_STOPPED, id=connection.id, how=how)
        return await self._status(connection)

    async def wait(self, key: str, timeout_s: float | None) -> ConnectionStatus:
        """Until everything captured before the call is applied on the target and no mirror runs.

        Raises WaitTimeoutError after `timeout_s`. Survives a restart of the sender meanwhile.
        """
        connection = self._find_connection(key)
        with trio.move_on_after(limits.WAIT_TIMEOUT_MAX_S if timeout_s is None else timeout_s):
            await self._up.wait()
            sequences = {}
            for journal in self.children.journals(connection):
                child = self.children.capture(journal.mount)
                if child is None:
                    raise ChildError(f"{journal.mount.path} is not captured at the moment")
                await child.wait_running(limits.WAIT_TIMEOUT_MAX_S)
                sequences[journal.mount.id] = (await child.call("settle"))["sequence"]
            while True:
                sender = self.children.sender(connection)
                if sender is None:
                    raise ReplicatorError(f"connection {connection.id} was disconnected while waiting for it")
                try:
                    await sender.wait_running(limits.WAIT_TIMEOUT_MAX_S)
                    # With the time-out: a sender does not notice that we have stopped listening.
                    caught_up = await sender.call(
                        "wait", limits.WAIT_TIMEOUT_MAX_S, sequences=sequences, timeout_s=timeout_s
                    )
                    if caught_up:
                        return await self._status(connection)
                except ChildError:
                    await trio.sleep(limits.CHILD_POLL_S)  # it ended; its successor is asked again
        status = await self._status(connection)
        raise WaitTimeoutError(_behind(connection, status, timeout_s))

    async def _ask(self, connection: Connection, name: str, **arguments: object) -> Any:
        await self._up.wait()
        child = self.children.sender(connection)
        if child is None:
            raise ChildError(f"connection {connection.id} does not run")
        await child.wait_running()
        return await child.call(name, **arguments)

    async def _status(self, connection: Connection) -> ConnectionStatus:
        """The sender's snapshot, completed; if it does not answer, what is known without it."""
        child = self.children.sender(connection)
        name = self._target_name(connection)
        without = ConnectionStatus(
            id=connection.id,
            uuid=connection.uuid,
            repset=connection.repset.name,
            target=name,
            state_reason="is being started",
        )
        if child is None or (child.pid is None and not child.problem):
            return without
        try:
            status = msgspec.convert(await child.call("status"), ConnectionStatus)
        except ReplicatorError as error:
            return msgspec.structs.replace(without, state=ConnectionState.ERROR, state_reason=str(error))
        memory, disk = await self._queue_bytes(connection)
        return msgspec.structs.replace(
            status, id=connection.id, target=name, memory_queue_bytes=memory, disk_queue_bytes=disk
        )

    async def _queue_bytes(self, connection: Connection) -> tuple[int, int]:
        """Bytes the journals of a connection hold in memory and on disk."""
        memory = disk = 0
        for journal in self.children.journals(connection):
            child = self.children.capture(journal.mount)
            try:
                status = await child.call("status") if child is not None else {}
            except ReplicatorError:
                continue  # shown at the mount; the rest of the status is still of use
            memory += status.get("memory_bytes", 0)
            disk += status.get("disk_bytes", 0)
        return memory, disk

    def _target_name(self, connection: Connection) -> str:
        return str(Address(connection.target_host or self.listen.host, connection.target_port))

    def _find_connection(self, key: str) -> Connection:
        """By number, uuid, or the name of a set that is connected once."""
        found = [c for c in self.state.connections if key in (str(c.id), c.uuid)]
        found = found or [c for c in self.state.connections if key == c.repset.name]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(c.id) for c in found)
            raise UsageError(f"replication set {key!r} has several connections: name one of {numbers}")
        known = ", ".join(str(c.id) for c in self.state.connections) or "none"
        raise NotFoundError(f"no connection {key!r}; connections: {known}")

    # --- protect ---

    async def protect(self, source: str, destination: str) -> ConnectionStatus:
        """Capture, make a set, connect, mirror, replicate; if a step fails, what was made before it is
        undone.
        """
        target = parse_destination(destination)
        async with self._changes, AsyncExitStack() as undo:
            source = await _real_path(source, "source")
            if not any(
                sets.is_inside(source, root) for m in self.state.mounts for root in (m.mountpoint, m.path)
            ):
                await self._check_destination(source, target)
                mount = await self._add_mount(source, None, "auto")
                undo.push_async_callback(self._undo, self._remove_mount, mount, force=False)
            name = sets.unique_name(source.strip("/").replace("/", "-"), self._names())
            repset = await self._create_repset(name, [Rule(sets.escape(source))])
            undo.push_async_callback(self._undo, self._delete_repset, name)
            connection = await self._connect(
                ConnectRequest(
                    repset=repset.name,
                    target=str(target.address) if target.address is not None else "",
                    maps=(Map(source, target.path),),
                    mirror=await self._first_mirror(target),
                )
            )
            undo.pop_all()
            return await self._status(connection)

    async def _check_destination(self, source: str, target: Destination) -> None:
        """Refuse a loop before anything is mounted for it."""
        host = await self._host_of(target.address)
        sets.check_no_loop([Place("", source, host, target.path)], await self._places(), {_THIS_HOST})

    async def _first_mirror(self, target: Destination) -> str:
        """A full mirror into an empty place; what is there already need not be sent again."""
        if target.address is not None:
            return "difference"  # on an empty place it sends everything, too
        return await trio.to_thread.run_sync(
            lambda: "difference" if os.path.isdir(target.path) and os.listdir(target.path) else "full"
        )

    async def _undo(
        self, step: Callable[..., Awaitable[object]], *arguments: object, **options: object
    ) -> None:
        with trio.CancelScope(shield=True):
            try:
                await step(*arguments, **options)
            except ReplicatorError as error:
                self.events.add(events.UNDO_FAILED, reason=str(error))

    # --- targets ---

    async def targets(self) -> list[TargetView]:
        found = []
        for child in self.children.receivers():
            try:
                status = await child.call("status")
            except ReplicatorError:
                status = None
            found.append(TargetView(uuid=child.plan.id, pid=child.pid, problem=child.problem, status=status))
        return found

    async def target(self, key: str | None, action: str) -> int:
        """`pause`, `resume` or `forget` receivers of this agent: one by its uuid or its connection here, or
        all.

        Returns how many.
        """
        uuid = key
        if key is not None and self.children.receiver(key) is None:
            connection = self._find_connection(key)
            uuid = connection.uuid
            if self.children.receiver(uuid) is None:
                raise ReplicatorError(
                    f"connection {connection.id} is applied by another agent: ask that one"
                    f" (on {connection.target_host}: dtctl target {action} {uuid})"
                )
        chosen = [child for child in self.children.receivers() if uuid in (None, child.plan.id)]
        for child in chosen:
            await child.call(action)
        if action in _TARGET_EVENTS:
            self.events.add(_TARGET_EVENTS[action], count=len(chosen))
        return len(chosen)

    # --- state ---

    async def _save(self, **changes: Any) -> None:
        """Make a changed state durable, then believe in it."""
        state = msgspec.structs.replace(self.state, **changes)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(save, self.home.state, state))
            self.state = state


_THIS_HOST = "this host"
_MIRROR_EVENTS = {
    "start": events.MIRROR_STARTED,
    "stop": events.MIRROR_STOPPED,
    "pause": events.MIRROR_PAUSED,
    "resume": events.MIRROR_RESUMED,
}
_TARGET_EVENTS = {"pause": events.TARGET_PAUSED, "resume": events.TARGET_RESUMED}


def _options(request: ConnectRequest, *, remap_links: bool) -> ConnectionOptions:
    if request.mirror is not None:
        _check_mirror(request.mirror, newer=request.newer, checksum=request.checksum, orphans=request.orphans)
    return ConnectionOptions(
        mirror=request.mirror,
        newer=request.newer,
        checksum=request.checksum,
        replicate=request.replicate,
        remap_links=remap_links,
        orphans=request.orphans,
    )


def _check_mirror(kind: str, *, newer: bool, checksum: bool, orphans: str) -> None:
    if kind not in ("full", "difference"):
        raise UsageError(f"mirror {kind!r}: must be full or difference")
    if orphans not in ("keep", "delete"):
        raise UsageError(f"orphans {orphans!r}: must be keep or delete")
    for name, wanted in (("newer", newer), ("checksum", checksum)):
        if wanted:
            raise UsageError(f"{name}: mirrors of this release do not compare in this way yet; leave it out")


async def _real_path(path: str, what: str) -> str:
    """An absolute path without symbolic links: what a mount is, and what rules compare with."""
    path = normalise_path(path, what)
    return await trio.to_thread.run_sync(os.path.realpath, path)


def _behind(connection: Connection, status: ConnectionStatus, timeout_s: float | None) -> str:
    why = status.state_reason or status.target_status_reason
    return (
        f"connection {connection.id}: the target did not catch up within {timeout_s or 0:g} s"
        f" ({status.state}, mirror {status.mirror_status}, {status.queued_ops} operations queued"
        + (f"; {why}" if why else "")
        + ")"
    )
