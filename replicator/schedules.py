"""When something is to be done again and again: a value, and pure functions. Times are seconds since the
epoch.
"""

import re
from datetime import datetime

import msgspec

from replicator.errors import UsageError

_UNITS = {"minute": 60, "hour": 3600, "day": 86400}
_EVERY = re.compile(r"\s*([0-9]{1,6})\s*([a-z]+?)s?\s*")
_SHORT = {"m": "minute", "min": "minute", "h": "hour", "d": "day"}


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At `first`, and then every `every_s` (0: only once)."""

    first: float
    every_s: float = 0.0


def next_after(schedule: Schedule, now: float) -> float | None:
    """The first time later than `now`; None: never again. What was missed until then is not made up for."""
    if now < schedule.first:
        return schedule.first
    if schedule.every_s <= 0:
        return None
    passed = int((now - schedule.first) // schedule.every_s)
    following = schedule.first + (passed + 1) * schedule.every_s
    return following if following > now else following + schedule.every_s


def parse_every(text: str) -> float:
    """Seconds of "30 minutes", "12h", "1 day". UsageError."""
    match = _EVERY.fullmatch(text.lower())
    unit = _SHORT.get(match[2], match[2]) if match is not None else ""
    if match is None or unit not in _UNITS or int(match[1]) < 1:
        raise UsageError(f"{text!r} is no interval: write as '30 minutes', '12 hours' or '1 day'")
    return float(int(match[1]) * _UNITS[unit])


def parse_start(text: str, now: float) -> float:
    """The time of "now", or of a local date and time as "2026-03-29 02:00". UsageError."""
    if text.strip().lower() == "now":
        return now
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise UsageError(f"{text!r} is no date and time: write as '2026-03-29 02:00', or 'now'") from None


def every_text(every_s: float) -> str:
    """1800 → "30 minutes"."""
    for name in ("day", "hour", "minute"):
        unit = _UNITS[name]
        if every_s >= unit and every_s % unit == 0:
            count = int(every_s // unit)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{every_s:g} seconds"
