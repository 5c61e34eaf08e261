"""The data of an owner that was superseded: its connections are held, its tail is kept, and its directories
become copies of what the new owner has.

    tails = await former.tails(record)               # what this side wrote behind the fork point
    await former.prepare(record, save=keep_bundle)   # the return connections go on
    await former.end(record)                         # it owns the group again

Every step may be done again. `prepare` needs the new owner; all else does not. The order in it is what
counts: tails are durable, and a bundle has them, before anything is overwritten; mounts are down, and their
directories locked, before something else writes there; the new owner is told last.

Why mounts go down: what is written below a mount is unseen by its page cache, and what is written through it
would be captured for the connection that is held. What a program uses stays up, and says so; so does what
another connection reads: its target is for the new owner (`siblings.py`).
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Caller, Calls, Nothing
from replicator.agent.failover.copies_again import CopiesAgain
from replicator.agent.failover.opening import Opening
from replicator.agent.failover.return_way import ReturnWay, Way, translated
from replicator.agent.state import Away, Connection, load_document, save_document
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError
from replicator.failovers import CopyFork, Promotion, return_of, superseded_reason
from replicator.fs import target_lock
from replicator.queue.dirty import DirtyMap
from replicator.receiver import prepared
from replicator.receiver.replica_state import StateFile
from replicator.repset import is_inside
from replicator.sender.tail import Tail
from replicator.status import TargetLock
from replicator.world import World

T = TypeVar("T")

WAY, READY = "return-way", "return-ready"

Tails = Mapping[str, DirtyMap | None]
"""By mount id: what may differ from the fork point, paths relative to the captured directory. None: nobody
knows, it may be anything. An empty map: nothing was written.
"""

Save = Callable[[Promotion, str, Tails], Awaitable[None]]
"""Keeps a bundle of the tail of one connection (its uuid). Returns when it is durable. Nothing of the tail is
overwritten before; raises ReplicatorError if it cannot be kept.
"""


class AboutCopy(msgspec.Struct, frozen=True, kw_only=True):
    """Calls `return-way` and `return-ready`, former owner → owner."""

    connection: str  # forward
    epoch: int


class _KeptTails(msgspec.Struct, frozen=True, kw_only=True):
    """home/failover/<group>/tails.json, from when they are known until the copies are prepared."""

    epoch: int
    connections: dict[str, Tail]


class FormerOwner:
    """Of one agent, and what it answers to former owners."""

    def __init__(self, core: Core, calls: Calls, opening: Opening) -> None:
        self._core = core
        self._calls = calls
        self._opening = opening
        self._copies = CopiesAgain(core)
        self.met: dict[str, str] = {}  # by group: the address from which its former owner called last
        calls.register(WAY, AboutCopy, self._way)
        calls.register(READY, AboutCopy, self._ready)

    # --- what was written behind the fork point ---

    async def tails(self, record: Promotion) -> dict[str, Tails]:
        """By connection. The mounts must be fenced. Raises ReplicatorError: a sender does not answer."""
        kept = await self._kept(record)
        return {uuid: _decoded(tail) for uuid, tail in kept.connections.items()}

    async def _kept(self, record: Promotion) -> _KeptTails:
        path = self._core.home.tails(record.group)
        known = load_document(path, _KeptTails)
        if known is not None and known.epoch == record.epoch:
            return known
        found = {}
        for connection, fork in self._forks(record):
            if self._away(connection.uuid) is None:
                found[connection.uuid] = await self._tail(connection, fork, record)
            else:
                found[connection.uuid] = await trio.to_thread.run_sync(self._tail_of_copy, connection, record)
        kept = _KeptTails(epoch=record.epoch, connections=found)

        def save() -> None:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            save_document(path, kept)

        await trio.to_thread.run_sync(save)
        return kept

    def _forks(self, record: Promotion) -> list[tuple[Connection, CopyFork]]:
        forks = {fork.connection: fork for fork in record.copies}
        return [(c, forks[c.uuid]) for c in self._core.state.connections if c.uuid in forks]

    async def _tail(self, connection: Connection, fork: CopyFork, record: Promotion) -> Tail:
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run")
        for journal in self._core.children.journals(connection):
            capture = self._core.children.capture(journal.mount)
            if capture is None:
                raise ReplicatorError(f"{journal.mount.path} is not captured now")
            await capture.wait_running()
            await capture.call("settle")  # what was to be told later is in the journal
        await child.wait_running()
        await child.call("supersede", reason=superseded_reason(record))
        found = await child.call("tail", limits.RESTORE_CALL_S, marks=fork.marks, exact=fork.exact)
        return msgspec.convert(found, Tail, strict=False)

    def _tail_of_copy(self, connection: Connection, record: Promotion) -> Tail:
        """It was a copy of an owner in an earlier term, and nothing was written here since. Whether it has
        all that the new owner began with is known where it stood still for a hand-over that came to no end:
        then both were found equal, and neither has moved since.
        """
        state = StateFile(World(), self._core.home.target(return_of(connection.uuid))).load()
        own = state.promotion if state is not None else None
        is_level = state is not None and (
            state.restoring == record.group or (own is not None and own.epoch == record.parent_epoch)
        )
        same = DirtyMap().encode() if is_level else None
        journals = {journal.mount.id: same for journal in self._core.children.journals(connection)}
        return Tail(journals=journals, since_ns=0)

    # --- a copy of what the new owner has ---

    def is_prepared(self, record: Promotion) -> bool:
        """Whether `prepare` has ended, durably."""
        known = {away.connection: away for away in self._core.state.away}
        mine = [known.get(connection.uuid) for connection, _ in self._forks(record)]
        return all(away is not None and away.told and away.epoch >= record.epoch for away in mine)

    async def ways(self, record: Promotion) -> list[ReturnWay]:
        """What the new owner says of the return connections. Raises UnreachableError, ReplicatorError."""
        return [await self._ask(c, WAY, record, ReturnWay) for c, _ in self._forks(record)]

    async def prepare(self, record: Promotion, save: Save) -> None:
        """Bundles are kept, mounts go down, the copies of the return connections know of the tails, and the
        new owner is told that it may send. Raises ReplicatorError, UnreachableError: to be done again.
        """
        for connection, fork in self._forks(record):
            await self._prepare(record, connection, fork, save)

    async def _prepare(self, record: Promotion, connection: Connection, fork: CopyFork, save: Save) -> None:
        away = self._away(connection.uuid)
        if away is not None and away.epoch >= record.epoch and away.told:
            return
        way = await self._ask(connection, WAY, record, ReturnWay)
        if away is None or away.epoch < record.epoch:
            tail = (await self._kept(record)).connections[connection.uuid]
            await save(record, connection.uuid, _decoded(tail))
            await self._step_back(record, connection)
        tail = (await self._kept(record)).connections[connection.uuid]
        await self._make_copy(record, connection, fork, way, tail)
        await self._ask(connection, READY, record, Nothing)
        away = self._away(connection.uuid)
        assert away is not None
        await self._save_away(msgspec.structs.replace(away, told=True))
        places = ", ".join(entry.source for entry in connection.maps)
        differs = any(dirty is None or dirty for dirty in tail.journals.values())
        text = "what it wrote since is in a bundle" if differs else "nothing was written here since"
        self._core.events.add(
            events.COPY_FOLLOWS, id=connection.id, places=places, owner=record.owner_name, text=text
        )

    async def _ask(self, connection: Connection, action: str, record: Promotion, answer: type[T]) -> T:
        host = connection.target_host or self._core.listen.connectable_host
        address = Address(host, connection.target_port)
        about = AboutCopy(connection=connection.uuid, epoch=record.epoch)
        return await self._calls.ask(address, action, record.group, about, answer)

    def _away(self, connection: str) -> Away | None:
        return next((away for away in self._core.state.away if away.connection == connection), None)

    async def _save_away(self, away: Away) -> None:
        async with self._core.change() as change:
            others = tuple(a for a in self._core.state.away if a.connection != away.connection)
            await change.save(away=(*others, away))

    async def _step_back(self, record: Promotion, connection: Connection) -> None:
        """The sender ends, mounts go down, their directories are locked. Raises ReplicatorError: a program,
        or another connection, uses one of them.
        """
        children = self._core.children
        mounts = [journal.mount for journal in children.journals(connection)]
        for other in self._core.state.connections:
            if other.uuid != connection.uuid and any(j.mount in mounts for j in children.journals(other)):
                raise ReplicatorError(
                    f"connection {other.id} reads what is to become a copy: dtctl disconnect {other.id}"
                    f" first, and give {other.target} to the new owner (there: dtctl failover adopt)"
                )
        await children.stop_sender(connection.uuid)
        for mount in mounts:
            if children.capture(mount) is None:
                continue
            try:
                await children.stop_capture(mount, force=False, persist=False)
            except ReplicatorError as error:
                await children.start_sender(connection, patient=True)
                raise ReplicatorError(
                    f"{error}; end what uses it (fuser -vm {mount.mountpoint}): until then"
                    f" {record.owner_name} cannot send what was changed there"
                ) from None
        roots = [j.root for j in children.journals(connection) if j.mount in mounts]
        await trio.to_thread.run_sync(
            target_lock.hold, TargetLock.READ_ONLY, self._sources(connection, roots)
        )
        await self._save_away(
            Away(
                connection=connection.uuid,
                copy=return_of(connection.uuid),
                group=record.group,
                epoch=record.epoch,
                mounts=tuple(mount.id for mount in mounts),
            )
        )

    def _sources(self, connection: Connection, roots: Sequence[str]) -> list[str]:
        """The directories below these roots that are written for the return connection."""
        return [entry.source for entry in connection.maps if any(is_inside(entry.source, r) for r in roots)]

    async def _make_copy(
        self, record: Promotion, connection: Connection, fork: CopyFork, way: ReturnWay, tail: Tail
    ) -> None:
        children, world = self._core.children, World()
        directory = self._core.home.target(way.copy)
        if await trio.to_thread.run_sync(prepared.is_prepared, world, directory, record.epoch):
            if children.receiver(way.copy) is None:
                await children.start_receiver(way.copy, patient=True)
            return
        await self._copies.discard(way.copy)  # of a former time, or of an owner that came too early
        tails: dict[str, DirtyMap | None] = {journal: DirtyMap() for journal, _ in way.journals}
        for journal in children.journals(connection):
            encoded = tail.journals.get(journal.mount.id)
            dirty = None if encoded is None else DirtyMap.decode(encoded)
            for there, part in translated(dirty, _ways(journal.root, way)).items():
                known = tails[there]
                if part is None or known is None:
                    tails[there] = None
                else:
                    known.merge(part)
        since_ns = min(tail.since_ns, int((fork.applied_until or 0) * 1e9))

        def write() -> None:
            prepared.prepare(
                world,
                directory,
                way.copy,
                source_uuid=way.owner_uuid,
                source_name=way.owner_name,
                epoch=record.epoch,
                tails=tails,
                suspect_since_ns=since_ns,
            )

        await trio.to_thread.run_sync(write)
        await children.start_receiver(way.copy, patient=True)

    # --- it owns the group again ---

    async def end(self, record: Promotion) -> None:
        """It is no former owner any more: locks end, and mounts may come up."""
        ended = [away for away in self._core.state.away if away.group == record.group]
        for away in ended:
            connection = next((c for c in self._core.state.connections if c.uuid == away.connection), None)
            if connection is not None:
                places = [entry.source for entry in connection.maps]
                await trio.to_thread.run_sync(target_lock.release, places)
        async with self._core.change() as change:
            await change.save(away=tuple(a for a in self._core.state.away if a not in ended))
        await trio.to_thread.run_sync(_remove, self._core.home.tails(record.group))

    # --- the new owner's side ---

    async def _way(self, group: str, about: AboutCopy, caller: Caller) -> ReturnWay:
        await self._check(about.connection, caller)
        self.met[group] = caller.host
        way = self._opening.return_way(about.connection, group)
        if way is None:
            raise UnreachableError("the copy is not open yet")
        return way

    async def _ready(self, group: str, about: AboutCopy, caller: Caller) -> Nothing:
        """The former owner is prepared: the return connection may send."""
        await self._check(about.connection, caller)
        self.met[group] = caller.host
        async with self._core.change() as change:
            connection = self._opening.find(about.connection)
            if connection is None or connection.restored is None or connection.epoch != about.epoch:
                raise ReplicatorError(f"there is no return connection of epoch {about.epoch}")
            host = self._host_of(connection, group, caller)
            moved = host != connection.target_host
            if connection.restored.waits or moved:
                restored = msgspec.structs.replace(connection.restored, waits="")
                connection = msgspec.structs.replace(connection, restored=restored, target_host=host)
                known = self._core.state.connections
                await change.save(
                    connections=tuple(connection if c.uuid == connection.uuid else c for c in known)
                )
        if moved:
            await self._core.children.stop_sender(connection.uuid)
            await self._core.children.start_sender(connection, patient=True)
        child = self._core.children.sender(connection)
        if child is None:
            raise ReplicatorError(f"connection {connection.id} does not run yet")
        await child.wait_running()
        await child.call("transmit_start")
        self._core.events.add(events.RETURN_BEGINS, id=connection.id)
        return Nothing()

    def _host_of(self, connection: Connection, group: str, caller: Caller) -> str:
        """Where the former owner is (FB-03): the address by which it was known may be this host's by now."""
        monitor = next((m for m in self._core.state.monitors if m.uuid == group), None)
        taken = {a.address.partition("/")[0] for a in monitor.settings.addresses} if monitor else set()
        return caller.host if caller.host and connection.target_host in taken else connection.target_host

    async def _check(self, copy: str, caller: Caller) -> None:
        """Raises NotPermittedError: whoever asks is not the former source."""
        child = self._core.children.receiver(copy)
        if child is None:
            raise ReplicatorError(f"{self._core.identity.name} keeps no copy of connection {copy}")
        await child.wait_running(limits.FAILOVER_CALL_S / 2)  # it may just be starting
        status = await child.call("status")
        if caller.peer is not None and caller.peer.uuid != status["source_uuid"]:
            raise NotPermittedError(f"copy {copy} belongs to another source")


def _decoded(tail: Tail) -> dict[str, DirtyMap | None]:
    return {mount: None if data is None else DirtyMap.decode(data) for mount, data in tail.journals.items()}


def _ways(root: str, way: ReturnWay) -> list[Way]:
    """Where what a journal of the forward connection has read lies in those of the return connection."""
    found = []
    for index, source, target in way.maps:
        if is_inside(target, root):
            below = target[len(root.rstrip("/")) :].strip("/")
            found.append(Way(os.fsencode(below), way.journals[index][0], os.fsencode(source)))
    return found


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
