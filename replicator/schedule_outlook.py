"""What a transmission schedule does next, in words: the date, and the reason. Pure; see
`transmission_schedule.py`.
"""

from typing import NamedTuple

from replicator.local_time import shown
from replicator.transmission_schedule import Criteria, Progress, Session, interval_text, window_at


class Outlook(NamedTuple):
    """`action`: start, stop, or "" if nothing happens by itself. `at`: seconds since the epoch; None: when
    its condition is met.
    """

    action: str
    at: float | None
    reason: str


def outlook(criteria: Criteria, progress: Progress, now: float) -> Outlook:
    """Of settings that hold, while no person has stopped or paused transmission."""
    if progress.session is not None:
        return _end(criteria, progress.session, now)
    return _beginning(criteria, progress, now)


def _end(criteria: Criteria, session: Session, now: float) -> Outlook:
    window = window_at(criteria, now)
    at, why = None, ""
    if window is not None and window.begins <= now:
        at, why = window.ends, "the window closes"
    if criteria.after_s is not None:
        up = now + max(criteria.after_s - session.seconds, 0.0)
        if at is None or up < at:
            at, why = up, "its time is up"
    conditions = ["the queue is empty"]
    if criteria.sent_bytes is not None:
        conditions.append(f"{criteria.sent_text} are sent ({session.sent_bytes} bytes so far)")
    condition = f"when {' or '.join(conditions)}"
    if at is None:
        return Outlook("stop", None, condition)
    return Outlook("stop", at, f"{why}; or before, {condition}")


def _beginning(criteria: Criteria, progress: Progress, now: float) -> Outlook:
    window = window_at(criteria, now)
    opens = window.begins if window is not None and window.begins > now else None
    if progress.by_hand or (progress.due is not None and progress.due <= now):
        asked = "it was started by hand" if progress.by_hand else _why_due(criteria)
        return Outlook("start", opens or now, f"{asked}, and waits for the window" if opens else asked)
    by_queue = _by_queue(criteria)
    if progress.due is not None:
        at, why = progress.due, _why_due(criteria)
        then = window_at(criteria, at)
        if then is not None and then.begins > at:
            at, why = then.begins, f"{why} ({shown(progress.due, now, criteria.zone)}), and the window opens"
        before = criteria.at is not None and now < criteria.at
        if by_queue:
            why += f"; nothing starts before, then also {by_queue}" if before else f"; or before, {by_queue}"
        return Outlook("start", at, why)
    if by_queue:
        return Outlook("start", None, f"{by_queue}, once the window is open" if window else by_queue)
    alone = "a window alone starts nothing" if criteria.window is not None else "no start criterion is set"
    passed = "the start time has passed" if criteria.at is not None else alone
    return Outlook("", None, f"{passed}: `dtctl schedule start`, or `dtctl transmit start` by hand")


def _why_due(criteria: Criteria) -> str:
    if not criteria.repeats:
        return "the start time"
    return f"every {interval_text(criteria)}"


def _by_queue(criteria: Criteria) -> str:
    parts = []
    if criteria.queue_bytes is not None:
        parts.append(f"{criteria.queue_text} are queued")
    if criteria.queue_percent is not None:
        parts.append(f"the queue is {criteria.queue_percent:g} % full")
    return f"when {' or '.join(parts)}" if parts else ""


def waits_for(criteria: Criteria, progress: Progress, now: float) -> str:
    """What a connection waits for, in one line: "waits until 21:00: the window opens"."""
    found = outlook(criteria, progress, now)
    if not found.action:
        return f"waits: {found.reason}"
    if found.at is None:
        return f"waits: transmission starts {found.reason}"
    return f"waits until {shown(found.at, now, criteria.zone)}: {found.reason}"
