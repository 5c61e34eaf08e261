"""Opens a promoted copy for programs: it is captured, and a return connection tracks every change.

The order is what counts:

1. its receiver has the record: no source is let in, nothing is applied any more;
2. the state has the return connection and the mounts, so that a capture journals from its first request on,
   and knows the return connection as a reader before it mounts: nothing that is written through it is missed;
3. locks end, and the mounts come up. What is written below them, by whoever is faster, is seen by the watch
   on the copy, as ever;
4. that watch looks for the last time (`seal`): what others had changed before is noted with the connection;
5. only then its sender starts. It waits until the former owner says that its side is prepared.

Nobody is told before all of it is done. No step reads the copy, so its size does not matter.
"""

import time
from collections.abc import Sequence

import msgspec
import trio

from replicator import events
from replicator.agent import planning
from replicator.agent.copy_keeper import roots_of
from replicator.agent.core import Core
from replicator.agent.failover.return_way import ReturnWay, Way, returning_set, translated
from replicator.agent.mounts import Mounts
from replicator.agent.state import Connection, ConnectionOptions, Map, Mount, new_uuid
from replicator.agent.supervisor import Child
from replicator.errors import JournalError, ReplicatorError
from replicator.failovers import MonitorSettings, Promotion, return_of
from replicator.fs import target_lock
from replicator.net.frames import Connect
from replicator.queue.cursor import Cursor
from replicator.queue.dirty import DirtyMap
from replicator.receiver.replica_state import StateFile
from replicator.repset import ReplicationSet, is_inside
from replicator.restores import Root
from replicator.sender.arguments import Restored
from replicator.status import TargetLock
from replicator.world import World

WAITS = "the former owner has not prepared its side yet"


class Opening:
    """Of the copies of one agent."""

    def __init__(self, core: Core, mounts: Mounts) -> None:
        self._core = core
        self._mounts = mounts

    async def tell_receiver(self, record: Promotion, uuid: str) -> Child:
        """That its copy is promoted. Raises ReplicatorError."""
        child = self._core.children.receiver(uuid)
        if child is None:
            raise ReplicatorError(f"{self._core.identity.name} keeps no copy of connection {uuid}")
        await child.wait_running()
        await child.call("promote", record=msgspec.to_builtins(record))
        return child

    async def open(self, record: Promotion, uuid: str) -> Connection:
        """Returns the return connection. Raises ReplicatorError: to be done again."""
        await self.tell_receiver(record, uuid)
        connect = await self._connect_of(uuid)
        roots = roots_of(connect)
        async with self._core.change() as change:
            connection = self.find(uuid)
            if connection is None or connection.epoch < record.epoch:
                made = self._lacking_mounts(roots)
                connection = self._connection(record, uuid, connect, roots)
                state = self._core.state
                others = tuple(c for c in state.connections if c.uuid != connection.uuid)
                await change.save(
                    mounts=(*state.mounts, *made),
                    connections=(*others, connection),
                    away=tuple(away for away in state.away if away.copy != uuid),  # its mounts serve again
                    last_connection_id=max(state.last_connection_id, connection.id),
                )
            assert connection.restored is not None
            if connection.restored.opened:
                return connection
            await self._bring_up(connect, connection)
            await self._mounted(connection)
            child = await self.tell_receiver(record, uuid)  # another one: a capture that comes up replaces it
            lacking = await child.call("seal")
            restored = msgspec.structs.replace(
                connection.restored, differing=self._differing(connect, connection, lacking), opened=True
            )
            connection = msgspec.structs.replace(connection, restored=restored)
            connections = tuple(
                connection if c.uuid == connection.uuid else c for c in self._core.state.connections
            )
            await change.save(connections=connections)
            await self._core.children.start_sender(connection, patient=True)
        places = ", ".join(root.replica for root in roots)
        self._core.events.add(
            events.COPY_OPENED, repset=connect.repset, places=places, epoch=record.epoch, id=connection.id
        )
        return connection

    def find(self, uuid: str) -> Connection | None:
        """The return connection of this copy, if there is one."""
        return next((c for c in self._core.state.connections if c.uuid == return_of(uuid)), None)

    async def _connect_of(self, uuid: str) -> Connect:
        directory = self._core.home.target(uuid)
        state = await trio.to_thread.run_sync(lambda: StateFile(World(), directory).load())
        if state is None or state.connect is None:
            raise ReplicatorError(f"nothing of connection {uuid} has come here yet")
        return state.connect

    def _lacking_mounts(self, roots: Sequence[Root]) -> list[Mount]:
        """Those that are to be made: a root of a chain is captured already."""
        captured = [place for m in self._core.state.mounts for place in (m.path, m.mountpoint)]
        return [
            Mount(id=new_uuid(), path=root.replica, mountpoint=root.replica)
            for root in roots
            if not any(is_inside(root.replica, place) for place in captured)
        ]

    def _connection(
        self, record: Promotion, uuid: str, connect: Connect, roots: Sequence[Root]
    ) -> Connection:
        state = self._core.state
        known = self.find(uuid)
        definition = msgspec.json.decode(connect.set_definition, type=ReplicationSet)
        taken = {s.name for s in state.repsets} | {c.repset.name for c in state.connections}
        monitor = next((m for m in state.monitors if m.uuid == record.group), None)
        return Connection(
            uuid=return_of(uuid),
            id=known.id if known is not None else state.last_connection_id + 1,
            repset=returning_set(definition, roots, taken),
            target_host=monitor.settings.source_host if monitor is not None else "",
            target_port=monitor.settings.source_port if monitor is not None else 0,
            maps=tuple(Map(root.replica, root.source) for root in roots),
            options=ConnectionOptions(
                mirror=None,
                remap_links=connect.remap_links,
                lock=connect.lock if connect.lock != TargetLock.NONE else TargetLock.READ_ONLY,
            ),
            created=time.time(),
            epoch=record.epoch,
            restored=Restored(f"{record.group} {record.epoch}", opened=False, waits=WAITS),
        )

    def _register(self, mount: Mount, reader: str) -> None:
        """All that its journal, which is open, gets from here on is kept for this reader."""
        settings = self._core.children.journal_settings(mount)
        try:
            Cursor.open(World(), settings, mount.id, reader, create=True).close()
        except JournalError as error:
            raise ReplicatorError(f"{mount.path}: {error}") from error

    async def _bring_up(self, connect: Connect, connection: Connection) -> None:
        """The lock ends, and what is not captured yet is, at once."""
        assert connection.restored is not None
        targets = [path_map.target for path_map in connect.maps]
        await trio.to_thread.run_sync(target_lock.release, targets)
        for journal in self._core.children.journals(connection):
            if self._core.children.capture(journal.mount) is None:
                await self._core.children.start_capture(journal.mount)
                self._core.events.add(
                    events.MOUNT_ADDED, path=journal.mount.path, mountpoint=journal.mount.mountpoint
                )
            else:
                await self._mounts.tell_active(journal.mount)
                await trio.to_thread.run_sync(self._register, journal.mount, connection.uuid)

    async def _mounted(self, connection: Connection) -> None:
        """Raises ReplicatorError: one of its mounts does not serve."""
        journals = self._core.children.journals(connection)
        if not journals:
            raise ReplicatorError(f"connection {connection.id} has nothing to read")
        for journal in journals:
            child = self._core.children.capture(journal.mount)
            if child is None:
                raise ReplicatorError(f"{journal.mount.path} is not captured")
            await child.wait_running()
            await child.call("status")

    def _differing(
        self, connect: Connect, connection: Connection, lacking: dict[str, str | None]
    ) -> dict[str, bytes]:
        """What others had changed in the copy before it was opened, by journal of the return connection."""
        ways = self.ways(connect, connection)
        found: dict[str, DirtyMap] = {}
        for index, journal in enumerate(connect.journals):
            if journal.journal_id not in lacking:
                continue
            encoded = msgspec.convert(lacking[journal.journal_id], bytes | None, strict=False)
            dirty = None if encoded is None else DirtyMap.decode(encoded)
            for there, part in translated(dirty, ways[index]).items():
                known = found.setdefault(there, DirtyMap())
                if part is None:
                    known.make_everything()
                else:
                    known.merge(part)
        return {there: known.encode() for there, known in found.items() if not known.is_empty}

    def ways(self, connect: Connect, connection: Connection) -> list[list[Way]]:
        """By journal of the forward connection: where its paths lie in those of the return connection."""
        found: list[list[Way]] = [[] for _ in connect.journals]
        for path_map in connect.maps:
            for journal in self._core.children.journals(connection):
                target = path_map.target.decode(errors="surrogateescape")
                if is_inside(target, journal.root):
                    below = target[len(journal.root.rstrip("/")) :].strip("/")
                    path = below.encode(errors="surrogateescape")
                    found[path_map.journal].append(Way(path_map.source, journal.mount.id, path))
        return found

    def return_way(self, uuid: str, group: str) -> ReturnWay | None:
        """What the former owner of this copy has to know; None: it is not opened yet."""
        connection = self.find(uuid)
        if connection is None or connection.restored is None or not connection.restored.opened:
            return None
        journals = self._core.children.journals(connection)
        monitor = next((m for m in self._core.state.monitors if m.uuid == group), None)
        settings = monitor.settings if monitor is not None else MonitorSettings(source_host="")
        return ReturnWay(
            policy=settings.policy,
            prefer_node=settings.prefer_node,
            connection=uuid,
            copy=connection.uuid,
            owner_uuid=self._core.identity.uuid,
            owner_name=self._core.identity.name,
            journals=tuple((journal.mount.id, journal.root) for journal in journals),
            maps=tuple(
                (index, source, target)
                for index, journal in enumerate(journals)
                for source, target in planning.journal_maps(journal.root, connection.maps)
            ),
        )
