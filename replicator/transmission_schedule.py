"""When a connection transmits by itself: settings, as their user wrote them, and what follows from them.

A connection with a start or stop criterion, or a window, transmits in *sessions*. A start criterion, or a
person, begins one; it ends when the queue is empty, when a stop criterion is met, or when the window closes
(features TX-04…TX-13). `session_step` decides, once a second; it is a pure function of these settings, of
what was decided before, and of facts, the time among them. Times are seconds since the epoch.

Clocks may be set. A start that was passed over is made up for by one session. One that has been served is not
served again when a clock goes back by up to `limits.CLOCK_BACK_S`; when it goes back by more, it was wrong
before, and starts are counted anew from what it shows now.
"""

import re
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from typing import NamedTuple

import msgspec

from replicator import limits
from replicator.config import parse_size
from replicator.errors import UsageError
from replicator.local_time import (
    Span,
    days_around,
    local_at,
    moment_of,
    parse_date_time,
    parse_time,
    span_on,
)
from replicator.schedules import every_text, parse_every

BY_HAND = "by hand"
_DAY_S = 86400.0
_DECIMAL = re.compile(r"\s*([0-9]{1,12})\s*([kKmMgGtT])[bB]\s*")
_POWERS = " KMGT"


class StartCriteria(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What begins a session. "" and None: not by that."""

    at: str = ""  # local date and time, "2026-12-01 22:00", or with an offset; nothing begins before it
    every: str = ""  # again and again, counted from `at`: "30 minutes", "12 hours", "1 day"
    queue_percent: float | None = None  # of all that the queue can hold
    queue_bytes: str = ""  # "10 MB"


class StopCriteria(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ends a session before the queue is empty."""

    after: str = ""  # it has lasted so long: "2 hours"
    sent_bytes: str = ""  # it has sent so much: "10 MB"


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times of day between which sessions may be, "21:00" to "04:00". Both or none."""

    opens: str = ""
    closes: str = ""


class TransmissionSchedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one connection. `enabled` False: they are kept, and nothing of them holds."""

    enabled: bool = True
    start: StartCriteria = StartCriteria()
    stop: StopCriteria = StopCriteria()
    window: Window = Window()

    @property
    def is_empty(self) -> bool:
        return (self.start, self.stop, self.window) == (StartCriteria(), StopCriteria(), Window())

    @property
    def holds(self) -> bool:
        """Whether the connection transmits in sessions only."""
        return self.enabled and not self.is_empty


class Criteria(NamedTuple):
    """The settings in numbers, for one zone."""

    zone: tzinfo
    at: float | None = None
    at_local: datetime | None = None
    every_s: float = 0.0
    every_days: int = 0  # instead of `every_s`: at the same time of day
    queue_percent: float | None = None
    queue_bytes: int | None = None
    after_s: float | None = None
    sent_bytes: int | None = None
    window: Window | None = None
    queue_text: str = ""  # `queue_bytes` and `sent_bytes` in the words of their user
    sent_text: str = ""

    @property
    def repeats(self) -> bool:
        return bool(self.every_s or self.every_days)


def compiled(schedule: TransmissionSchedule, zone: tzinfo) -> Criteria:
    """UsageError, with one line that says what to write, unless the settings make sense."""
    start, stop, window = schedule.start, schedule.stop, schedule.window
    at_local = parse_date_time(start.at) if start.at else None
    at = moment_of(at_local, zone) if at_local is not None else None
    every_s = _interval(start.every, "every") if start.every else 0.0
    if every_s and at is None:
        raise UsageError("an interval is counted from the start time: give one, or 'now'")
    percent = start.queue_percent
    if percent is not None and not 0 < percent <= 100:
        raise UsageError(f"{percent:g} % of the queue: must be more than 0, and at most 100")
    if bool(window.opens) is not bool(window.closes):
        raise UsageError("a window needs both times: when it opens, and when it closes")
    if window.opens and parse_time(window.opens) == parse_time(window.closes):
        raise UsageError(f"a window from {window.opens} to {window.closes}: must be two times")
    if at is not None and at_local is not None and at_local.tzinfo is not None:
        at_local = local_at(at, zone)
    whole_days = every_s % _DAY_S == 0
    return Criteria(
        zone=zone,
        at=at,
        at_local=at_local,
        every_s=0.0 if whole_days else every_s,
        every_days=int(every_s // _DAY_S) if whole_days else 0,
        queue_percent=percent,
        queue_bytes=_size(start.queue_bytes, "a queue") if start.queue_bytes else None,
        after_s=_interval(stop.after, "after") if stop.after else None,
        sent_bytes=_size(stop.sent_bytes, "a session") if stop.sent_bytes else None,
        window=window if window.opens else None,
        queue_text=size_text(start.queue_bytes),
        sent_text=size_text(stop.sent_bytes),
    )


def size_text(text: str) -> str:
    """A size as its user wrote it; "10" → "10 bytes"."""
    words = " ".join(text.split())
    return f"{words} bytes" if words.isdigit() else words


def _interval(text: str, what: str) -> float:
    seconds = parse_every(text)
    if seconds > limits.SCHEDULE_MAX_S:
        raise UsageError(f"{what} {text}: must be at most a year")
    return seconds


def _size(text: str, what: str) -> int:
    """Also in powers of 1000, as metered links are sold."""
    match = _DECIMAL.fullmatch(text)
    size = int(match[1]) * 1000 ** _POWERS.index(match[2].upper()) if match is not None else parse_size(text)
    if not size:
        raise UsageError(f"{text!r} is no size of {what}: write as '10 MB', or a number of bytes")
    return size


# --- times ---


def following(criteria: Criteria, now: float) -> float | None:
    """The first start by time that is later than `now`; None: there is none."""
    at, local = criteria.at, criteria.at_local
    if at is None or local is None:
        return None
    if now < at:
        return at
    if criteria.every_s:
        passed = int((now - at) // criteria.every_s)
        return at + (passed + 1) * criteria.every_s
    if criteria.every_days:
        passed = (local_at(now, criteria.zone).date() - local.date()).days // criteria.every_days
        for number in range(max(passed - 1, 0), passed + 3):
            moment = moment_of(local + timedelta(days=number * criteria.every_days), criteria.zone)
            if moment > now:
                return moment
    return None


def first_due(criteria: Criteria, now: float) -> float | None:
    """The first start by time of settings that were made just now. One that has passed by a moment counts."""
    if criteria.at is not None and 0 <= now - criteria.at <= limits.SCHEDULE_LATE_S:
        return criteria.at
    return following(criteria, now)


def window_at(criteria: Criteria, now: float) -> Span | None:
    """The window that is open at `now`, or the next one; None: there is no window."""
    if criteria.window is None:
        return None
    opens, closes = parse_time(criteria.window.opens), parse_time(criteria.window.closes)
    spans = (span_on(day, opens, closes, criteria.zone) for day in days_around(now, criteria.zone, 1, 3))
    return next(span for span in spans if now < span.ends and span.begins < span.ends)


# --- sessions ---


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session of transmission."""

    began: float
    why: str
    seconds: float = 0.0  # it has lasted so long, by a clock that nobody sets
    sent_bytes: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided until now; outlives processes."""

    due: float | None = None  # the next start by time; in the past: it waits for the window
    by_hand: bool = False  # a person has begun a session, which waits for the window
    session: Session | None = None


class Facts(NamedTuple):
    now: float
    elapsed_s: float  # since the last decision, by a clock that nobody sets
    sent_bytes: int  # since the last decision
    queued_bytes: int
    queue_percent: float
    queue_given_up: bool  # it could not hold more: what changes is only noted
    empty: bool  # what was queued at the last decision is sent, and no mirror is to bring anything


class Step(StrEnum):
    """What a decision means for the connection."""

    BEGIN = "begin"
    END = "end"
    STAY = "stay"


class Decision(NamedTuple):
    progress: Progress
    step: Step
    why: str  # it begins or ends


def session_step(criteria: Criteria, progress: Progress, facts: Facts) -> Decision:
    """What is to be done now. Of settings that hold."""
    progress = _with_right_clock(criteria, progress, facts.now)
    if progress.session is None:
        why = _why_it_begins(criteria, progress, facts)
        if not why:
            return Decision(progress, Step.STAY, "")
        session = Session(began=facts.now, why=why)
        begun = Progress(due=_due_later(criteria, progress, facts.now), session=session)
        return Decision(begun, Step.BEGIN, why)
    session = msgspec.structs.replace(
        progress.session,
        seconds=progress.session.seconds + facts.elapsed_s,
        sent_bytes=progress.session.sent_bytes + facts.sent_bytes,
    )
    due = _due_later(criteria, progress, facts.now)
    why = _why_it_ends(criteria, session, facts)
    if why:
        return Decision(Progress(due=due), Step.END, why)
    return Decision(Progress(due=due, session=session), Step.STAY, "")


def _with_right_clock(criteria: Criteria, progress: Progress, now: float) -> Progress:
    """Without a start that is so far away that it was chosen when the clock was wrong."""
    if progress.due is None:
        return progress
    latest = following(criteria, now + limits.CLOCK_BACK_S)
    if criteria.repeats and latest is not None and progress.due > latest:
        return msgspec.structs.replace(progress, due=following(criteria, now))
    return progress


def _due_later(criteria: Criteria, progress: Progress, now: float) -> float | None:
    """A session serves all starts that have passed."""
    due = progress.due
    return due if due is None or due > now else following(criteria, now)


def _why_it_begins(criteria: Criteria, progress: Progress, facts: Facts) -> str:
    window = window_at(criteria, facts.now)
    if window is not None and facts.now < window.begins:
        return ""
    if progress.by_hand:
        return BY_HAND
    if progress.due is not None and progress.due <= facts.now:
        return f"every {interval_text(criteria)}" if criteria.repeats else "the start time"
    if criteria.at is not None and facts.now < criteria.at:
        return ""  # TX-07: nothing begins before it
    by_queue = criteria.queue_bytes is not None or criteria.queue_percent is not None
    if by_queue and facts.queue_given_up:
        return "the queue could not hold more"
    if criteria.queue_bytes is not None and facts.queued_bytes >= criteria.queue_bytes:
        return f"{facts.queued_bytes} bytes are queued"
    if criteria.queue_percent is not None and facts.queue_percent >= criteria.queue_percent:
        return f"the queue is {facts.queue_percent:.0f} % full"
    return ""


def _why_it_ends(criteria: Criteria, session: Session, facts: Facts) -> str:
    window = window_at(criteria, facts.now)
    if window is not None and facts.now < window.begins:
        return "the window has closed"
    if criteria.after_s is not None and session.seconds >= criteria.after_s:
        return "its time is up"
    if criteria.sent_bytes is not None and session.sent_bytes >= criteria.sent_bytes:
        return f"{session.sent_bytes} bytes are sent"
    return "the queue is empty" if facts.empty else ""


def interval_text(criteria: Criteria) -> str:
    return every_text(criteria.every_s or criteria.every_days * _DAY_S)
