"""Levels of the recovery point."""

import pytest

from replicator import config
from replicator.agent.forecast import completed, level
from replicator.status import Lag


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
