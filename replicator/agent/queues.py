"""The queues of an agent: how full they are, what they can still take, what is wrong with them (QU-07…10)."""

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from replicator import limits
from replicator.agent.core import Core
from replicator.errors import ReplicatorError
from replicator.queue.settings import JournalSettings
from replicator.queue.statistics import JournalStatistics
from replicator.status import QueueView


def room_bytes(
    settings: JournalSettings,
    memory_bytes: int,
    disk_bytes: int,
    disk_free_bytes: int | None,
    memory_free_bytes: int | None = None,
) -> int:
    """What a queue that has so much in memory and on disk can still take.

    `…_free_bytes`: of the file system of that tier; None: nobody knows, so the limit alone counts, and
    without one there is no room. Without a limit the disk has what is left beside the free space for others.
    """
    memory = settings.memory_bytes - memory_bytes
    if memory_free_bytes is not None:
        memory = min(memory, memory_free_bytes)
    disk = 0 if disk_free_bytes is None else disk_free_bytes - settings.disk_free_min_bytes
    if settings.disk_bytes is not None:
        left = settings.disk_bytes - disk_bytes
        disk = left if disk_free_bytes is None else min(disk, left)
    return max(memory, 0) + max(disk, 0)


def percent(used_bytes: int, room: int) -> float:
    """Of what it could hold now: others who fill its disk make it fuller."""
    return 100.0 * used_bytes / max(used_bytes + room, 1)


def alerts(now_percent: float, alert_percent: int, before: bool) -> bool:
    """QU-10. An alert is over when it is well below: a queue that is about so full would tell of it all the
    time.
    """
    over_percent = alert_percent * limits.QUEUE_ALERT_OVER_PERCENT / 100
    return now_percent >= (over_percent if before else alert_percent)


def view(
    statistics: JournalStatistics,
    *,
    id: str,
    role: str,
    name: str,
    alert_percent: int,
    memory_free_bytes: int | None,
    disk_free_bytes: int | None,
    full: bool,
) -> QueueView:
    settings = statistics.settings
    room = room_bytes(
        settings, statistics.memory_bytes, statistics.disk_bytes, disk_free_bytes, memory_free_bytes
    )
    used_percent = percent(statistics.memory_bytes + statistics.disk_bytes, room)
    return QueueView(
        id=id,
        role=role,
        name=name,
        memory_directory=settings.memory_directory,
        memory_bytes=statistics.memory_bytes,
        memory_max_bytes=settings.memory_bytes,
        memory_free_bytes=memory_free_bytes,
        disk_directory=settings.disk_directory,
        disk_bytes=statistics.disk_bytes,
        disk_max_bytes=settings.disk_bytes,
        disk_free_min_bytes=settings.disk_free_min_bytes,
        disk_free_bytes=disk_free_bytes,
        room_bytes=room,
        percent=used_percent,
        alert_percent=alert_percent,
        alert=used_percent >= alert_percent,
        full=full,
        segments=statistics.segments,
        lost_ops=statistics.lost_ops,
        problem=statistics.problem,
    )


class Queues:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def all(self) -> list[QueueView]:
        """Those whose processes answer: of mounts, then of copies."""
        children = self._core.children
        found = []
        for mount in self._core.state.mounts:
            status = await _status(children.capture(mount))
            if status is not None:
                full = bool(status["losing"])
                found.append(await self._view(status, id=mount.id, role="source", name=mount.path, full=full))
        for child in children.receivers():
            status = await _status(child)
            if status is not None:
                name = ", ".join(status["targets"]) or child.plan.id
                full = bool(status["spool_full"])
                found.append(await self._view(status, id=child.plan.id, role="target", name=name, full=full))
        return found

    async def _view(
        self, status: Mapping[str, Any], *, id: str, role: str, name: str, full: bool
    ) -> QueueView:
        statistics = msgspec.convert(status["queue"], JournalStatistics)
        settings = statistics.settings
        return view(
            statistics,
            id=id,
            role=role,
            name=name,
            alert_percent=self._core.config.queue.alert_percent,
            memory_free_bytes=await free_bytes(settings.memory_directory),
            disk_free_bytes=await free_bytes(settings.disk_directory),
            full=full,
        )


async def free_bytes(directory: str) -> int | None:
    """What an unprivileged user could still write there; None: nobody knows. Never blocks the agent."""

    def look() -> int | None:
        try:
            state = os.statvfs(directory)
        except OSError:
            return None
        return state.f_bavail * state.f_frsize

    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)


async def _status(child: Any) -> Mapping[str, Any] | None:
    if child is None:
        return None
    try:
        status: Mapping[str, Any] = await child.call("status")
    except ReplicatorError:
        return None  # not running: the supervisor says so
    return status if "queue" in status else None  # of an older software: it says less
