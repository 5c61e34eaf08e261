"""Levels of the recovery point, and the room of a queue."""

import pytest

from replicator import config
from replicator.agent.forecast import completed, level, room_bytes
from replicator.limits import MIB
from replicator.status import Lag

UNLIMITED = config.Queue(memory_size=100 * MIB, disk_size_max=None, disk_free_min=50 * MIB)
LIMITED = config.Queue(memory_size=100 * MIB, disk_size_max=200 * MIB, disk_free_min=50 * MIB)
NO_DISK = config.Queue(memory_size=100 * MIB, disk_size_max=0, disk_free_min=50 * MIB)


@pytest.mark.parametrize(
    ("settings", "memory", "disk", "free", "room"),
    [
        (UNLIMITED, 0, 0, 1050, 1100),
        (UNLIMITED, 100, 30, 1050, 1000),
        (UNLIMITED, 120, 30, 20, 0),  # others have filled the disk
        (LIMITED, 100, 50, 1050, 150),
        (LIMITED, 100, 50, 100, 50),
        (LIMITED, 100, 250, 1050, 0),
        (NO_DISK, 60, 0, 1050, 40),
    ],
)
def test_room(settings: config.Queue, memory: int, disk: int, free: int, room: int) -> None:
    assert room_bytes(settings, memory * MIB, disk * MIB, free * MIB) == room * MIB


@pytest.mark.parametrize(
    ("seconds", "warning", "error", "expected"),
    [
        (59.9, 60, 600, ""),
        (60, 60, 600, "warning"),
        (600, 60, 600, "error"),
        (600, 60, 0, "warning"),
        (1e6, 0, 0, ""),
        (60, 0, 30, "error"),
    ],
)
def test_level(seconds: float, warning: int, error: int, expected: str) -> None:
    assert level(seconds, config.Meter(warning, error)) == expected


def test_a_meter_is_completed() -> None:
    lag = Lag(growth_bytes_per_s=1024.0, recovery_point_seconds=60.0)
    whole = completed(lag, config.Meter(), 840 * 1024)
    assert (whole.queue_full_in_s, whole.level) == (840.0, "warning")
    assert completed(lag, config.Meter(), None).queue_full_in_s is None
