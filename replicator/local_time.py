"""Local times of day as moments, also on the days when clocks are set forward or back. Pure: the zone is an
argument; moments are seconds since the epoch.

A time that does not exist (clocks were set past it) stands for the moment at which they were set. One that
exists twice means the first.
"""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from replicator.errors import UsageError


def moment_of(local: datetime, zone: tzinfo) -> float:
    """When clocks in `zone` show `local`, which is naive; one with an offset says it by itself."""
    if local.tzinfo is not None:
        return local.timestamp()
    first = local.replace(tzinfo=zone, fold=0).timestamp()
    if local_at(first, zone) == local.replace(fold=0):
        return first
    return _change_between(local.replace(tzinfo=zone, fold=1).timestamp(), first, zone)


def _change_between(before: float, after: float, zone: tzinfo) -> float:
    """The second from which on the offset is that of `after`."""
    offset = _offset(after, zone)
    low, high = int(before), int(after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _offset(middle, zone) == offset else (middle, high)
    return float(high)


def _offset(moment: float, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(moment, UTC).astimezone(zone).utcoffset()


def local_at(moment: float, zone: tzinfo) -> datetime:
    """What clocks in `zone` show then; naive."""
    return datetime.fromtimestamp(moment, UTC).astimezone(zone).replace(tzinfo=None, fold=0)


class Span(NamedTuple):
    """From `begins` on, until before `ends`."""

    begins: float
    ends: float


def span_on(day: date, begins: time, ends: time, zone: tzinfo) -> Span:
    """The span that begins on `day`; one that does not end later on the clock ends on the next day. It is
    empty if clocks are set past all of it.
    """
    last = day if ends > begins else day + timedelta(days=1)
    return Span(moment_of(datetime.combine(day, begins), zone), moment_of(datetime.combine(last, ends), zone))


def days_around(moment: float, zone: tzinfo, before: int, after: int) -> list[date]:
    """Local dates, oldest first."""
    today = local_at(moment, zone).date()
    return [today + timedelta(days=number) for number in range(-before, after + 1)]


def parse_time(text: str) -> time:
    """The time of day of "21:00". UsageError."""
    hours, separator, minutes = text.strip().partition(":")
    if separator and hours.isdecimal() and minutes.isdecimal() and len(hours) <= 2 and len(minutes) == 2:
        try:
            return time(int(hours), int(minutes))
        except ValueError:
            pass
    raise UsageError(f"{text!r} is no time of day: write as '21:00'")


def parse_date_time(text: str) -> datetime:
    """The date and time of "2026-12-01 22:00", with an offset if it has one ("2026-12-01T22:00+01:00").
    UsageError.
    """
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"{text!r} is no date and time: write as '2026-12-01 22:00', or 'now'") from None


def shown(moment: float, now: float, zone: tzinfo) -> str:
    """For people: the time of day, with the date unless it is today's."""
    local, today = local_at(moment, zone), local_at(now, zone).date()
    format_ = "%H:%M" if local.second == 0 else "%H:%M:%S"
    return local.strftime(format_ if local.date() == today else f"%Y-%m-%d {format_}")
