"""A calendar of bandwidth limits: which one holds at a moment, and until when. Pure.

An entry fires at its time of day, on its days of the week. It holds until its end, or, without one, until
another fires. Of those that hold at once it is the one that fired last. What a limit means is not known here:
it is the text as its user wrote it.
"""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, tzinfo
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.errors import UsageError
from replicator.local_time import days_around, moment_of, parse_time, span_on

DAYS = ("mo", "tu", "we", "th", "fr", "sa", "su")
_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEK_DAYS = 7


class LimitEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`days`: of `DAYS`, on which it fires; none: all. Times are local, "HH:MM"; `end` "": until another
    fires.
    """

    label: str
    start: str
    end: str = ""
    days: tuple[str, ...] = ()
    limit: str


class InForce(NamedTuple):
    """`entry` None: the limit that holds without a calendar. `until`: when that may change, seconds since the
    epoch; None: never.
    """

    entry: LimitEntry | None
    until: float | None


def parse_days(text: str) -> tuple[str, ...]:
    """("mo", "tu") of "mo,Tuesday"; "" or "all": every day. UsageError."""
    if text.strip().lower() in ("", "all"):
        return ()
    found = set()
    for word in text.split(","):
        day = word.strip().lower()
        number = _NAMES.index(day) if day in _NAMES else DAYS.index(day) if day in DAYS else -1
        if number < 0:
            raise UsageError(f"{word.strip()!r} is no day of the week: write as 'mo,tu,we' or 'Saturday'")
        found.add(DAYS[number])
    return tuple(day for day in DAYS if day in found)


def labels(entries: Sequence[LimitEntry]) -> tuple[str, ...]:
    return tuple(entry.label for entry in entries)


def check(entries: Sequence[LimitEntry]) -> None:
    """UsageError unless they make sense."""
    for entry in entries:
        begins = parse_time(entry.start)
        if entry.end and parse_time(entry.end) == begins:
            raise UsageError(f"{entry.label}: it must not end at {entry.end}, when it begins")
        if any(day not in DAYS for day in entry.days):
            raise UsageError(f"{entry.label}: days must be of {', '.join(DAYS)}")
        if not entry.label:
            raise UsageError("an entry of the calendar needs a label")
        if len(entry.label) > limits.NAME_CHARS or not entry.label.isprintable():
            raise UsageError(f"a label of the calendar: one line of at most {limits.NAME_CHARS} characters")
    if len(entries) > limits.CALENDAR_ENTRIES:
        raise UsageError(f"a calendar has at most {limits.CALENDAR_ENTRIES} entries")
    if len(set(labels(entries))) < len(entries):
        raise UsageError("each entry of the calendar needs a label of its own")


def limit_now(entries: Sequence[LimitEntry], now: float, zone: tzinfo, otherwise: str) -> str:
    """The text of the limit that holds: of an entry, or `otherwise`."""
    entry = in_force(entries, now, zone).entry
    return entry.limit if entry is not None else otherwise


class _Firing(NamedTuple):
    begins: float
    ends: float | None
    order: int  # later entries win where two fire at once


def in_force(entries: Sequence[LimitEntry], now: float, zone: tzinfo) -> InForce:
    """What holds at `now`, of entries that `check` has accepted."""
    firings = sorted(_firings(entries, now, zone), key=lambda firing: (firing.begins, firing.order))
    holding = [f for f in firings if f.begins <= now and (f.ends is None or now < f.ends)]
    changes = [f.begins for f in firings if f.begins > now]
    changes += [f.ends for f in firings if f.ends is not None and f.ends > now]
    return InForce(entries[holding[-1].order] if holding else None, min(changes, default=None))


def _firings(entries: Sequence[LimitEntry], now: float, zone: tzinfo) -> Iterator[_Firing]:
    """Of the last and the next week."""
    for order, entry in enumerate(entries):
        begins = parse_time(entry.start)
        ends = parse_time(entry.end) if entry.end else None
        for day in _days(entry, now, zone):
            if ends is None:
                yield _Firing(_moment(day, entry, zone), None, order)
                continue
            span = span_on(day, begins, ends, zone)
            if span.begins < span.ends:
                yield _Firing(span.begins, span.ends, order)


def _days(entry: LimitEntry, now: float, zone: tzinfo) -> list[date]:
    days = days_around(now, zone, _WEEK_DAYS + 1, _WEEK_DAYS + 1)
    return [day for day in days if not entry.days or DAYS[day.weekday()] in entry.days]


def _moment(day: date, entry: LimitEntry, zone: tzinfo) -> float:
    return moment_of(datetime.combine(day, parse_time(entry.start)), zone)
