"""What an agent adds to the meter of a connection: when its queue is full, and how grave its lag is."""

import msgspec

from replicator.config import Meter as MeterSettings
from replicator.sender.meter import seconds_until_full
from replicator.status import Lag

LEVELS = ("", "warning", "error")
"""Of the recovery point, the gravest last."""


def level(recovery_point_s: float, settings: MeterSettings) -> str:
    """One of `LEVELS`. A limit of 0 is none."""
    if settings.lag_error_s and recovery_point_s >= settings.lag_error_s:
        return "error"
    if settings.lag_warning_s and recovery_point_s >= settings.lag_warning_s:
        return "warning"
    return ""


def completed(
    lag: Lag, settings: MeterSettings, room: int | None, *, scheduled: bool = False, waits_for: str = ""
) -> Lag:
    """`room`: bytes the fullest of its queues can still take; None: unknown. `scheduled`: the lag is meant to
    be, so it is not grave.
    """
    return msgspec.structs.replace(
        lag,
        level="" if scheduled else level(lag.recovery_point_seconds, settings),
        waits_for=waits_for,
        queue_full_in_s=seconds_until_full(room, lag.growth_bytes_per_s),
    )
