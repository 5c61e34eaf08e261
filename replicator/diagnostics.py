"""Throughput diagnostics: what a connection to nowhere measures, and what follows from it (SM-*). Values and
pure functions. Times are seconds since the epoch, rates bytes per second.
"""

from collections import deque
from collections.abc import Mapping

import msgspec

NOWHERE = "Diagnostics"
"""The name of the built-in target: whatever is sent there goes nowhere."""

LINKS_BIT_PER_S = {
    "256 kbit/s": 256_000,
    "T1": 1_544_000,
    "E1": 2_048_000,
    "10 Mbit Ethernet": 10_000_000,
    "E3": 34_368_000,
    "T3": 44_736_000,
    "100 Mbit Ethernet": 100_000_000,
    "OC-3": 155_520_000,
    "OC-12": 622_080_000,
    "1 Gbit Ethernet": 1_000_000_000,
    "10 Gbit Ethernet": 10_000_000_000,
}

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
MINUTES_KEPT, HOURS_KEPT = 24 * 60, 31 * 24


def is_nowhere(host: str) -> bool:
    return host.lower() == NOWHERE.lower()


class Amount(msgspec.Struct, kw_only=True):
    """What was sent of one kind, and how well samples of it could be compressed."""

    bytes: int = 0
    sampled_bytes: int = 0
    compressed_bytes: int = 0  # of the samples

    @property
    def ratio(self) -> float | None:
        """What is left of a byte; None: no sample."""
        return self.compressed_bytes / self.sampled_bytes if self.sampled_bytes else None


class Measured(msgspec.Struct, kw_only=True):
    """What was measured, kept over restarts."""

    since: float = 0.0
    changes: Amount = msgspec.field(default_factory=Amount)  # as they are in the queue
    mirror: Amount = msgspec.field(default_factory=Amount)  # of the mirror that began last
    mirror_complete: bool = False
    minutes: dict[int, int] = {}  # bytes of changes by minutes since the epoch
    hours: dict[int, int] = {}

    def count(self, now: float, size: int) -> None:
        """Changes of `size` bytes came."""
        self.changes.bytes += size
        for row, length, kept in ((self.minutes, MINUTE_S, MINUTES_KEPT), (self.hours, HOUR_S, HOURS_KEPT)):
            key = int(now // length)
            if key not in row and len(row) >= kept:
                del row[min(row)]
            row[key] = row.get(key, 0) + size


class LinkEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of link would be good for. Seconds; None: there is no complete mirror, or no sample."""

    link: str
    bytes_per_s: float
    mirror_s: float | None
    mirror_compressed_s: float | None
    carries: str  # of the changes, without compression: "", average, peak hour, peak minute


class DiagnosticsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection like this one would need."""

    since: float
    seconds: float  # that were observed
    mirror_bytes: int
    mirror_complete: bool
    mirror_ratio: float | None  # what compression leaves of a byte
    change_bytes: int
    change_ratio: float | None
    average_bytes_per_s: float
    peak_minute_bytes_per_s: float
    peak_minute: float | None  # when it began
    peak_hour_bytes_per_s: float
    peak_hour: float | None
    queue_hour_bytes: int  # while a target is away for an hour
    queue_day_bytes: int
    extrapolated: tuple[str, ...] = ()  # hour, day: not observed for so long, so the average counts
    links: tuple[LinkEstimate, ...] = ()


def report(measured: Measured, now: float, links: Mapping[str, int] = LINKS_BIT_PER_S) -> DiagnosticsReport:
    """What follows from what was measured until `now`."""
    seconds = max(now - measured.since, 1.0)
    average = measured.changes.bytes / seconds
    minute, minute_bytes = _peak(measured.minutes, 1)
    hour, hour_bytes = _peak(measured.minutes, 60)
    whole_hour, whole_bytes = _peak(measured.hours, 1)
    hour_at = hour * MINUTE_S if hour is not None else None
    if whole_bytes > hour_bytes and whole_hour is not None:
        hour_at, hour_bytes = whole_hour * HOUR_S, whole_bytes
    # Within a first minute or hour: what there was may have come at once.
    minute_rate = minute_bytes / min(seconds, MINUTE_S)
    hour_rate = hour_bytes / min(seconds, HOUR_S)
    _, day_bytes = _peak(measured.hours, 24)
    short = tuple(name for name, length in (("hour", HOUR_S), ("day", DAY_S)) if seconds < length)
    rates = {"average": average, "peak hour": hour_rate, "peak minute": minute_rate}
    return DiagnosticsReport(
        since=measured.since,
        seconds=seconds,
        mirror_bytes=measured.mirror.bytes,
        mirror_complete=measured.mirror_complete,
        mirror_ratio=measured.mirror.ratio,
        change_bytes=measured.changes.bytes,
        change_ratio=measured.changes.ratio,
        average_bytes_per_s=average,
        peak_minute_bytes_per_s=minute_rate,
        peak_minute=minute * MINUTE_S if minute is not None else None,
        peak_hour_bytes_per_s=hour_rate,
        peak_hour=hour_at,
        queue_hour_bytes=int(average * HOUR_S) if "hour" in short else hour_bytes,
        queue_day_bytes=int(average * DAY_S) if "day" in short else day_bytes,
        extrapolated=short,
        links=tuple(_link(name, bits / 8, measured, rates) for name, bits in links.items()),
    )


def _peak(row: Mapping[int, int], length: int) -> tuple[int | None, int]:
    """Where so many units that follow each other hold most, and how much."""
    best: tuple[int | None, int] = (None, 0)
    held, window = 0, deque[int]()
    for key in sorted(row):
        window.append(key)
        held += row[key]
        while window[0] <= key - length:
            held -= row[window.popleft()]
        if held > best[1]:
            best = window[0], held
    return best


def _link(name: str, rate: float, measured: Measured, rates: Mapping[str, float]) -> LinkEstimate:
    plain = measured.mirror.bytes / rate if measured.mirror_complete else None
    ratio = measured.mirror.ratio
    carried = [what for what, needed in rates.items() if needed <= rate]
    return LinkEstimate(
        link=name,
        bytes_per_s=rate,
        mirror_s=plain,
        mirror_compressed_s=plain * ratio if plain is not None and ratio is not None else None,
        carries=carried[-1] if carried else "",
    )
