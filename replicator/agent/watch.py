"""Changes of state that an administrator wants to find in the log, noticed by looking at statuses: when a
sender rings, and from time to time.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
import trio

from replicator import config, events, limits
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.queues import Queues, alerts
from replicator.errors import ReplicatorError
from replicator.events import EventType
from replicator.failovers import Promotion
from replicator.orphans import OrphanPhase, described
from replicator.status import (
    ConnectionState,
    ConnectionStatus,
    MirrorStatus,
    QueueView,
    TargetStatus,
    TransmitMode,
    VerifyPhase,
)
from replicator.synchrony import SyncState
from replicator.transmission import OFF, TransmissionStatus
from replicator.transmission_schedule import BY_HAND
from replicator.world import FifoBell

Change = tuple[EventType, dict[str, object]]


_NO_MIRROR = (MirrorStatus.IDLE, MirrorStatus.VERIFYING)
_SYNC_EVENTS = {
    SyncState.SYNCHRONOUS: events.SYNC_BEGINS,
    SyncState.DEGRADED: events.SYNC_ENDS,
    SyncState.WAITING: events.SYNC_WAITS,
}
_LEVEL_EVENTS = {"": events.LAG_NORMAL, "warning": events.LAG_WARNING, "error": events.LAG_ERROR}


def connection_changes(before: ConnectionStatus, now: ConnectionStatus) -> Iterator[Change]:
    """What is worth an event between two looks at one connection."""
    names: dict[str, object] = {"id": now.id, "repset": now.repset, "target": now.target}
    if now.state is ConnectionState.ERROR and before.state is not ConnectionState.ERROR:
        yield events.CONNECTION_LOST, {**names, "reason": now.state_reason}
    elif now.state is ConnectionState.STARTED and before.state is ConnectionState.ERROR:
        yield events.CONNECTION_BACK, names
    yield from _transmission_changes(before, now)
    if now.tracking and not before.tracking:
        yield events.TRACKING_BEGINS, names
    if now.mirror_status in _NO_MIRROR and before.mirror_status not in _NO_MIRROR:
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
    if now.mirror.held and not before.mirror.held:
        yield events.MIRROR_HELD, names
    elif before.mirror.held and not now.mirror.held and now.mirror_status not in _NO_MIRROR:
        yield events.MIRROR_GOES_ON, names
    if now.target_status is TargetStatus.RETRYING and before.target_status is not TargetStatus.RETRYING:
        yield events.TARGET_RETRYING, {**names, "reason": now.target_status_reason}
    elif now.target_status is TargetStatus.OK and before.target_status is TargetStatus.RETRYING:
        yield events.TARGET_RECOVERED, names
    if now.orphans != before.orphans and not now.orphans.at_work and now.orphans.phase:
        if now.orphans.phase is OrphanPhase.HALTED:
            yield events.ORPHANS_HALTED, {**names, "reason": now.orphans.reason}
        elif now.orphans.phase is OrphanPhase.STOPPED:
            yield events.ORPHANS_STOPPED, {**names, "reason": now.orphans.reason}
        else:
            yield events.ORPHANS_COMPLETED, {**names, "text": described(now.orphans)}
    verify = now.verify
    if verify.scheduled and verify.run != before.verify.run:
        yield events.VERIFY_STARTED, {**names, "how": "by schedule", "text": verify.options_text}
    if verify.phase is VerifyPhase.COMPLETE and (verify.run, verify.phase) != (
        before.verify.run,
        before.verify.phase,
    ):
        text = f"{verify.files} files and {verify.directories} directories compared, "
        count = verify.difference_count
        text += f"{count} paths differ, {verify.bytes_out_of_sync} bytes" if count else "equal"
        if count or not verify.background:
            yield events.VERIFY_DIFFERS if count else events.VERIFY_COMPLETED, {**names, "text": text}
    if changes := _more(before.foreign_changes, now.foreign_changes):
        yield events.FOREIGN_CHANGES, {**names, "count": changes, "path": now.foreign_path}
    if now.target_queue_full is not before.target_queue_full:
        yield events.TARGET_QUEUE_FULL if now.target_queue_full else events.TARGET_QUEUE_ROOM, names
    if now.synchrony != before.synchrony and now.synchrony:
        yield _SYNC_EVENTS[SyncState(now.synchrony)], {**names, "reason": now.synchrony_reason}
    if now.lag.level != before.lag.level:
        seconds = now.lag.recovery_point_seconds
        yield _LEVEL_EVENTS[now.lag.level], {**names, "seconds": seconds}


def _transmission_changes(before: ConnectionStatus, now: ConnectionStatus) -> Iterator[Change]:
    """TX-14, of sessions of a schedule; what a person does is told when he does it. And CP-02."""
    began, ended = now.schedule.session_began, before.schedule.session_began
    if ended is not None and ended != began and now.transmit_mode is TransmitMode.SCHEDULED:
        yield events.TRANSMISSION_STOPPED, {"id": now.id, "how": f"stopped: {now.schedule.last_end}"}
    if began is not None and began != ended and now.schedule.session_why != BY_HAND:
        yield events.TRANSMISSION_STARTED, {"id": now.id, "how": f"started: {now.schedule.session_why}"}
    if _is_not_understood(now.transmission) and not _is_not_understood(before.transmission):
        yield events.LEVELS_UNAVAILABLE, {"id": now.id, "target": now.target}


def _is_not_understood(transmission: TransmissionStatus) -> bool:
    return transmission.peer_understands is False and transmission.compression != OFF


def _more(before: int, now: int) -> int:
    """How many came to a count that begins at 0 with a new process."""
    return now - before if now >= before else now


def queue_changes(before: QueueView | None, now: QueueView) -> Iterator[Change]:
    """What is worth an event between two looks at one queue (QU-10, AD-02, AD-03). None: the first look."""
    name = f"of {now.name}" if now.role == "source" else f"of the copy in {now.name}"
    alert, full, problem, lost_ops = (
        (before.alert, before.full, before.problem, before.lost_ops)
        if before is not None
        else (False, False, "", now.lost_ops)
    )
    if now.alert and not alert:
        used_bytes = now.memory_bytes + now.disk_bytes
        yield events.QUEUE_ALERT, {"name": name, "percent": now.percent, "bytes": used_bytes}
    elif alert and not now.alert:
        yield events.QUEUE_NORMAL, {"name": name, "percent": now.percent}
    if now.role == "target" and now.full is not full:
        yield events.QUEUE_FULL if now.full else events.QUEUE_ROOM, {"name": name}
    if now.problem and now.problem != problem:
        yield events.QUEUE_FAILED, {"name": name, "reason": now.problem}
    elif problem and not now.problem:
        yield events.QUEUE_WORKS, {"name": name}
    if now.role == "source" and now.lost_ops > lost_ops:
        yield events.OPERATIONS_LOST, {"name": name, "count": now.lost_ops - lost_ops}


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

    def __init__(
        self,
        core: Core,
        connections: Connections,
        queues: Queues,
        superseded: Callable[[str, Promotion], Awaitable[None]] | None = None,
    ) -> None:
        """`superseded(connection, record)`: its target says that another agent owns the copy."""
        self._superseded = superseded
        self._core = core
        self._connections = connections
        self._seen: dict[str, ConnectionStatus] = {}
        self._queues = queues
        self._seen_queues: dict[str, QueueView] = {}
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
            if status.promotion is not None and self._superseded is not None:
                with suppress(ReplicatorError):  # it cannot be saved now: fences are closed, it is said again
                    await self._superseded(uuid, status.promotion)
        self._seen = connections
        seen: dict[str, QueueView] = {}
        for queue in await self._queues.all():
            before = self._seen_queues.get(queue.id)
            alert = alerts(queue.percent, queue.alert_percent, before is not None and before.alert)
            seen[queue.id] = queue = msgspec.structs.replace(queue, alert=alert)
            self._add(queue_changes(before, queue))
        self._seen_queues = {**self._seen_queues, **seen}  # a process that does not answer is still known

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
