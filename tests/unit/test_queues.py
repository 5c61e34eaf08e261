"""How full a queue is, what it can still take, and which changes of it are told."""

import msgspec
import pytest

from replicator import events
from replicator.agent.queues import alerts, percent, room_bytes, view
from replicator.agent.watch import queue_changes
from replicator.limits import MIB
from replicator.queue.settings import JournalSettings
from replicator.queue.statistics import JournalStatistics
from replicator.status import QueueView

GIB = 1024 * MIB
Settings = JournalSettings


def settings(disk_mib: int | None, free_min_mib: int = 50) -> Settings:
    disk = None if disk_mib is None else disk_mib * MIB
    return Settings(
        "/m", "/d", memory_bytes=100 * MIB, disk_bytes=disk, disk_free_min_bytes=free_min_mib * MIB
    )


@pytest.mark.parametrize(
    ("disk_max", "memory", "disk", "free", "room"),
    [
        (None, 0, 0, 1050, 1100),
        (None, 100, 30, 1050, 1000),
        (None, 120, 30, 20, 0),  # others have filled the disk
        (200, 100, 50, 1050, 150),
        (200, 100, 50, 100, 50),
        (200, 100, 250, 1050, 0),
        (0, 60, 0, 1050, 40),
        (0, 60, 10, 1050, 40),  # it was larger once
    ],
)
def test_room(disk_max: int | None, memory: int, disk: int, free: int, room: int) -> None:
    assert room_bytes(settings(disk_max), memory * MIB, disk * MIB, free * MIB) == room * MIB


def test_limit_and_free_space_work_together() -> None:
    """QU-09: a disk of 10 GB, at most 10, 500 MB always free, others use 5: 4.5 are usable."""
    limits = Settings("/m", "/d", memory_bytes=0, disk_bytes=10_000, disk_free_min_bytes=500)
    assert room_bytes(limits, 0, 0, 10_000 - 5_000) == 4_500
    assert room_bytes(limits, 0, 4_500, 10_000 - 5_000 - 4_500) == 0
    assert percent(2_250, room_bytes(limits, 0, 2_250, 10_000 - 5_000 - 2_250)) == 50


def test_memory_that_is_not_there_is_no_room() -> None:
    assert room_bytes(settings(0), 60 * MIB, 0, 0, memory_free_bytes=10 * MIB) == 10 * MIB


@pytest.mark.parametrize(("disk_max", "room"), [(None, 0), (0, 0), (200, 150)])
def test_a_disk_that_does_not_answer(disk_max: int | None, room: int) -> None:
    assert room_bytes(settings(disk_max), 100 * MIB, 50 * MIB, None) == room * MIB


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [(49.9, False, False), (50, False, True), (45, True, True), (40, True, True), (39.9, True, False)],
)
def test_an_alert_is_over_when_it_is_well_below(now: float, before: bool, expected: bool) -> None:
    assert alerts(now, 50, before) is expected


def queue(used_mib: int = 0, role: str = "source", lost: int = 0, problem: str = "") -> QueueView:
    statistics = JournalStatistics(
        memory_bytes=min(used_mib, 100) * MIB,
        disk_bytes=max(used_mib - 100, 0) * MIB,
        head_sequence=1,
        lost_ops=lost,
        segments=1,
        percent=None,
        settings=settings(100),
        problem=problem,
    )
    return view(
        statistics,
        id="1",
        role=role,
        name="/srv",
        alert_percent=50,
        memory_free_bytes=GIB,
        disk_free_bytes=GIB,
        full=False,
    )


def told(before: QueueView | None, now: QueueView) -> list[int]:
    return [type_.id for type_, fields in queue_changes(before, now) if type_.text.format(**fields)]


def test_an_alert_is_told_once_and_when_it_is_over() -> None:
    assert told(queue(99), queue(100)) == [events.QUEUE_ALERT.id]
    assert told(queue(100), queue(150)) == []
    assert told(queue(150), queue(99)) == [events.QUEUE_NORMAL.id]
    assert told(None, queue(120)) == [events.QUEUE_ALERT.id]  # the agent has just started


def test_losses_are_told_of_sources() -> None:
    assert told(queue(lost=1), queue(lost=4)) == [events.OPERATIONS_LOST.id]
    assert told(None, queue(lost=4)) == []  # before this agent's time
    assert told(queue(lost=1, role="target"), queue(lost=4, role="target")) == []  # its source sends it again


def test_a_full_spool_is_told() -> None:
    empty = queue(role="target")
    full = msgspec.structs.replace(empty, full=True)
    assert told(empty, full) == [events.QUEUE_FULL.id]
    assert told(full, full) == []
    assert told(full, empty) == [events.QUEUE_ROOM.id]
    assert told(queue(), msgspec.structs.replace(queue(), full=True)) == []  # its losses are told


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_queue_that_cannot_be_written_is_told(role: str) -> None:
    good, bad = queue(role=role), queue(role=role, problem="/d: Input/output error")
    assert told(good, bad) == [events.QUEUE_FAILED.id]
    assert told(bad, bad) == []
    assert told(bad, good) == [events.QUEUE_WORKS.id]
