"""What requests make of a schedule, and of a calendar of limits."""

import time
from datetime import datetime

import pytest

from replicator.agent import calendar_service
from replicator.agent.calendar_service import CalendarRequest
from replicator.agent.core import NotFoundError
from replicator.agent.schedule_service import ScheduleRequest, changed, described
from replicator.errors import UsageError
from replicator.transmission_schedule import TransmissionSchedule, Window

NONE = TransmissionSchedule()


def test_each_kind_is_replaced_as_a_whole_and_kept_as_it_was_written() -> None:
    known = changed(NONE, ScheduleRequest(action="start", queue_bytes="10 MB", queue_percent=50))
    known = changed(known, ScheduleRequest(action="window", opens="21:00", closes="04:00"))
    known = changed(known, ScheduleRequest(action="stop", after="2 hours"))
    assert described(known) == (
        "when the queue is 50 % full, when 10 MB are queued, for at most 2 hours, between 21:00 and 04:00"
    )
    known = changed(known, ScheduleRequest(action="start", at="2026-12-01 22:00"))
    assert (known.start.at, known.start.queue_bytes) == ("2026-12-01 22:00", "")
    off = changed(known, ScheduleRequest(action="disable"))
    assert not off.holds and described(off).endswith("(disabled)")
    assert changed(off, ScheduleRequest(action="enable")) == known
    assert changed(known, ScheduleRequest(action="clear", what="window")).window == Window()
    assert changed(known, ScheduleRequest(action="clear")) == NONE and described(NONE) == "none"


def test_now() -> None:
    for request in (
        ScheduleRequest(action="start", every="1 day"),
        ScheduleRequest(action="start", at="now"),
    ):
        at = datetime.fromisoformat(changed(NONE, request).start.at)
        assert abs(at.timestamp() - time.time()) < 5


@pytest.mark.parametrize(
    "request_",
    [
        ScheduleRequest(action="start"),
        ScheduleRequest(action="start", after="2 hours"),
        ScheduleRequest(action="stop", at="now"),
        ScheduleRequest(action="window", opens="21:00"),
        ScheduleRequest(action="clear", what="everything"),
        ScheduleRequest(action="begin"),
        ScheduleRequest(action="start", queue_percent=0),
    ],
)
def test_refused(request_: ScheduleRequest) -> None:
    with pytest.raises(UsageError):
        changed(NONE, request_)


def test_what_is_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match="0 % of the queue: must be more than 0"):
        changed(NONE, ScheduleRequest(action="start", queue_percent=0))


def test_a_size_without_a_unit_is_one_of_bytes() -> None:
    known = changed(NONE, ScheduleRequest(action="start", queue_bytes="1000"))
    known = changed(known, ScheduleRequest(action="stop", sent_bytes=" 10  MB "))
    assert described(known) == "when 1000 bytes are queued, at most 10 MB a session"


def test_calendar() -> None:
    add = CalendarRequest(action="add", label="office", days="Tuesday,mo", start="08:00", limit="10 %  of T1")
    (entry,) = entries = calendar_service.changed((), add)
    assert entry.days == ("mo", "tu") and entry.limit == "10 % of T1"
    again = CalendarRequest(action="add", label="office", start="09:00", limit="unlimited")
    assert [e.start for e in calendar_service.changed(entries, again)] == ["09:00"]
    assert calendar_service.changed(entries, CalendarRequest(action="remove", label="office")) == ()
    with pytest.raises(NotFoundError):
        calendar_service.changed(entries, CalendarRequest(action="remove", label="night"))
    for limit, start in (("", "08:00"), ("slow", "08:00"), ("1 MB/s", "8")):
        with pytest.raises(UsageError):
            request = CalendarRequest(action="add", label="a", start=start, limit=limit)
            calendar_service.changed((), request)
