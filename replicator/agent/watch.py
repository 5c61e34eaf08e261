"""Changes of state that an administrator wants to find in the log, noticed by looking at statuses: when a
sender rings, and from time to time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import trio

from replicator import config, events, limits
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.supervisor import Child
from replicator.errors import ReplicatorError
from replicator.events import EventType
from replicator.status import ConnectionState, ConnectionStatus, MirrorStatus, TargetStatus
from replicator.world import FifoBell

Change = tuple[EventType, dict[str, object]]


class Queue(NamedTuple):
    """How full a journal or spool is. Sizes in bytes; `disk_max` None: as much as the disk has."""

    name: str
    memory: int
    disk: int
    memory_max: int
    disk_max: int | None
    lost_ops: int = 0

    @property
    def percent(self) -> float:
        """Of the size it may have; of its memory while the disk is unlimited: then an alert says that it
        grows.
        """
        return 100.0 * (self.memory + self.disk) / max(self.memory_max + (self.disk_max or 0), 1)


_LEVEL_EVENTS = {"": events.LAG_NORMAL, "warning": events.LAG_WARNING, "error": events.LAG_ERROR}


def connection_changes(before: ConnectionStatus, now: ConnectionStatus) -> Iterator[Change]:
    """What is worth an event between two looks at one connection."""
    names: dict[str, object] = {"id": now.id, "repset": now.repset, "target": now.target}
    if now.state is ConnectionState.ERROR and before.state is not ConnectionState.ERROR:
        yield events.CONNECTION_LOST, {**names, "reason": now.state_reason}
    elif now.state is ConnectionState.STARTED and before.state is ConnectionState.ERROR:
        yield events.CONNECTION_BACK, names
    if now.mirror_status is MirrorStatus.IDLE and before.mirror_status is not MirrorStatus.IDLE:
        mirror = now.mirror
        if mirror.complete:
            counts = {
                "files": mirror.done_files,
                "bytes": mirror.sent_bytes,
                "problems": mirror.problem_count,
            }
            yield events.MIRROR_COMPLETED, {**names, **counts}
        else:
            yield events.MIRROR_INCOMPLETE, names
    if now.target_status is TargetStatus.RETRYING and before.target_status is not TargetStatus.RETRYING:
        yield events.TARGET_RETRYING, {**names, "reason": now.target_status_reason}
    elif now.target_status is TargetStatus.OK and before.target_status is TargetStatus.RETRYING:
        yield events.TARGET_RECOVERED, names
    if changes := _more(before.foreign_changes, now.foreign_changes):
        yield events.FOREIGN_CHANGES, {**names, "count": changes, "path": now.foreign_path}
    if now.lag.level != before.lag.level:
        seconds = now.lag.recovery_point_seconds
        yield _LEVEL_EVENTS[now.lag.level], {**names, "seconds": seconds}


def _more(before: int, now: int) -> int:
    """How many came to a count that begins at 0 with a new process."""
    return now - before if now >= before else now


def queue_changes(before: Queue, now: Queue, alert_percent: int) -> Iterator[Change]:
    """What is worth an event between two looks at one queue (QU-10)."""
    if now.percent >= alert_percent > before.percent:
        yield events.QUEUE_ALERT, {"name": now.name, "percent": now.percent, "bytes": now.memory + now.disk}
    elif before.percent >= alert_percent > now.percent:
        yield events.QUEUE_NORMAL, {"name": now.name, "percent": now.percent}
    if now.lost_ops > before.lost_ops:
        yield events.OPERATIONS_LOST, {"name": now.name, "count": now.lost_ops - before.lost_ops}


class Copy(NamedTuple):
    """What is known of the watch over a copy that is kept here (see `ReceiverStatus`)."""

    uuid: str
    watch: str
    changes: int
    path: str


def copy_changes(before: Copy, now: Copy, *, must_watch: bool) -> Iterator[Change]:
    """What is worth an event between two looks at one copy (AD-09). `must_watch`: it was asked for."""
    if changes := _more(before.changes, now.changes):
        yield events.FOREIGN_CHANGES_HERE, {"uuid": now.uuid, "count": changes, "path": now.path}
    if must_watch and now.watch != before.watch and now.watch not in config.WATCHES:
        yield events.NOT_WATCHED, {"uuid": now.uuid, "reason": now.watch}


class Watch:
    """Looks at everything when the agent's bell rings, and every `limits.WATCH_INTERVAL_S`."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections
        self._seen: dict[str, ConnectionStatus] = {}
        self._queues: dict[str, Queue] = {}
        self._copies: dict[str, Copy] = {}

    async def run(self) -> None:
        """Until cancelled."""
        bell = FifoBell(self._core.home.bell)
        try:
            while True:
                await self.look()
                with trio.move_on_after(limits.WATCH_INTERVAL_S):
                    await bell.wait()
                rung, self._core.rung = self._core.rung, trio.Event()
                rung.set()
        finally:
            bell.close()

    async def look(self) -> None:
        """One look at every connection and queue."""
        connections = {status.uuid: status for status in await self._connections.all()}
        for uuid, status in connections.items():
            if uuid in self._seen:
                self._add(connection_changes(self._seen[uuid], status))
        self._seen = connections
        queues = {queue.name: queue for queue in await self._look_at_queues()}
        for name, queue in queues.items():
            before = self._queues.get(name) or queue._replace(memory=0, disk=0)
            self._add(queue_changes(before, queue, self._core.config.queue.alert_percent))
        self._queues = queues

        copies = {copy.uuid: copy for copy in await self._look_at_copies()}
        must_watch = self._core.config.target.watch == config.WATCH_ON
        for uuid, copy in copies.items():
            known = self._copies.get(uuid) or Copy(uuid, config.WATCH_OFF, 0, "")
            self._add(copy_changes(known, copy, must_watch=must_watch))
        self._copies = copies

    async def _look_at_copies(self) -> list[Copy]:
        found = []
        for child in self._core.children.receivers():
            try:
                status = await child.call("status")
            except ReplicatorError:
                continue  # not running: the supervisor says so
            uuid, path = child.plan.id, status["foreign_path"]
            found.append(Copy(uuid, status["watch"], status["foreign_changes"], path))
        return found

    def _add(self, changes: Iterator[Change]) -> None:
        for type_, fields in changes:
            self._core.events.add(type_, **fields)

    async def _look_at_queues(self) -> list[Queue]:
        core, settings = self._core, self._core.config.queue
        found = []

        async def look(name: str, child: Child, memory: str, disk: str) -> None:
            try:
                status = await child.call("status")
            except ReplicatorError:
                return  # not running: the supervisor says so
            found.append(
                Queue(
                    name,
                    status[memory],
                    status[disk],
                    settings.memory_size,
                    settings.disk_size_max,
                    status.get("lost_ops", 0),
                )
            )

        for mount in core.state.mounts:
            child = core.children.capture(mount)
            if child is not None:
                await look(f"of {mount.path}", child, "memory_bytes", "disk_bytes")
        for child in core.children.receivers():
            name = f"of the copy of connection {child.plan.id}"
            await look(name, child, "memory_queue_bytes", "disk_queue_bytes")
        return found
