"""When a connection transmits: each example and rule of the feature list (TX-04…TX-13), on our own clock,
which is also set forward and back, and a year of days in a zone with daylight saving time.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest

from replicator import limits
from replicator.errors import UsageError
from replicator.schedule_outlook import outlook, waits_for
from replicator.transmission_schedule import (
    Criteria,
    Decision,
    Facts,
    Progress,
    StartCriteria,
    Step,
    StopCriteria,
    TransmissionSchedule,
    Window,
    compiled,
    first_due,
    following,
    session_step,
    window_at,
)

BERLIN = ZoneInfo("Europe/Berlin")
MB = 10**6


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


class Runner:
    """A connection on a simulated clock, looked at once a second (or `step_s`). `bytes_per_s`: what the line
    takes.
    """

    def __init__(self, schedule: TransmissionSchedule, now: str, *, step_s: float = 1.0) -> None:
        self.criteria: Criteria = compiled(schedule, BERLIN)
        self.now = at(now)
        self.step_s = step_s
        self.progress = Progress(due=first_due(self.criteria, self.now))
        self.queued = 0
        self.room = 0  # of the whole queue
        self.bytes_per_s = 100 * MB
        self.log: list[tuple[str, str, str]] = []  # when, what, why
        self._unsent_then = 0
        self._sent = 0

    def look(self) -> Decision:
        flowing = self.progress.session is not None
        sent = min(self.queued, int(self.bytes_per_s * self.step_s)) if flowing else 0
        limit = self.criteria.sent_bytes
        if limit is not None and self.progress.session is not None:
            sent = min(sent, limit - self.progress.session.sent_bytes)
        self.queued -= sent
        percent = 100 * self.queued / self.room if self.room else 0.0
        facts = Facts(self.now, self.step_s, sent, self.queued, percent, False, flowing and self.queued == 0)
        decision = session_step(self.criteria, self.progress, facts)
        self.progress = decision.progress
        if decision.step is not Step.STAY:
            self.log.append((self.clock(), str(decision.step), decision.why))
        return decision

    def clock(self) -> str:
        return datetime.fromtimestamp(self.now, BERLIN).strftime("%d %H:%M:%S").removesuffix(":00")

    def until(self, text: str, each: Callable[[], None] = lambda: None) -> "Runner":
        end = at(text)
        while self.now < end:
            each()
            self.look()
            self.now += self.step_s
        return self


NO_START, NO_STOP, NO_WINDOW = StartCriteria(), StopCriteria(), Window()


def schedule(
    start: StartCriteria = NO_START, stop: StopCriteria = NO_STOP, window: Window = NO_WINDOW
) -> TransmissionSchedule:
    return TransmissionSchedule(start=start, stop=stop, window=window)


NIGHT = Window(opens="21:00", closes="04:00")


def test_session_start_sends_until_the_queue_is_empty_and_only_once() -> None:
    """TX-07, TX-12."""
    run = Runner(schedule(StartCriteria(at="2026-12-01 22:00")), "2026-12-01 20:00")
    run.queued, run.bytes_per_s = 100 * MB, MB
    run.until("2026-12-03 00:00")
    assert run.log == [("01 22:00", "begin", "the start time"), ("01 22:01:40", "end", "the queue is empty")]
    assert outlook(run.criteria, run.progress, run.now).action == ""


def test_interval_counts_from_the_session_start() -> None:
    """TX-08: 22:00 and every 30 minutes; emptied at 22:20, so the next is 22:30. One that lasts until 23:10
    has served 23:00.
    """
    run = Runner(schedule(StartCriteria(at="2026-12-01 22:00", every="30 minutes")), "2026-12-01 20:00")
    run.queued, run.bytes_per_s = 20 * 60 * MB, MB
    run.until("2026-12-01 22:25")
    assert run.log[-1][:2] == ("01 22:20", "end")
    assert outlook(run.criteria, run.progress, run.now) == (
        "start",
        at("2026-12-01 22:30"),
        "every 30 minutes",
    )
    run.queued = 40 * 60 * MB
    run.until("2026-12-01 23:40")
    assert [entry[:2] for entry in run.log[2:]] == [
        ("01 22:30", "begin"),
        ("01 23:10", "end"),
        ("01 23:30", "begin"),
        ("01 23:30:01", "end"),
    ]


@pytest.mark.parametrize(
    ("criteria", "why"),
    [
        (StartCriteria(queue_bytes="10 MB"), "10000000 bytes are queued"),
        (StartCriteria(queue_percent=50), "the queue is 50 % full"),
        (StartCriteria(queue_percent=50, queue_bytes="10 MB"), "10000000 bytes are queued"),
    ],
)
def test_queue_thresholds(criteria: StartCriteria, why: str) -> None:
    """TX-09: sends until empty, and then waits until there is so much again."""
    run = Runner(schedule(criteria), "2026-12-01 12:00")
    run.room, run.bytes_per_s = 20 * MB, 5 * MB

    def grow() -> None:
        run.queued += MB // 10

    run.until("2026-12-01 12:06", grow)
    begun = [entry for entry in run.log if entry[1] == "begin"]
    assert [entry[0] for entry in begun] == ["01 12:01:39", "01 12:03:22", "01 12:05:05"]
    assert begun[0][2] == why
    assert all(why == "the queue is empty" for _, step, why in run.log if step == "end")


def test_nothing_starts_before_the_session_start() -> None:
    """TX-07: it overrides all other start criteria."""
    start = StartCriteria(at="2026-12-01 22:00", queue_bytes="1 MB", queue_percent=1)
    run = Runner(schedule(start), "2026-12-01 20:00")
    run.room = run.queued = 100 * MB
    run.until("2026-12-01 22:10")
    assert run.log[0] == ("01 22:00", "begin", "the start time")
    run.queued = MB
    run.until("2026-12-01 22:11")
    assert run.log[2] == ("01 22:10", "begin", "1000000 bytes are queued")


def test_a_queue_that_was_given_up_counts_as_full() -> None:
    criteria = compiled(schedule(StartCriteria(queue_percent=90)), BERLIN)
    facts = Facts(at("2026-12-01 12:00"), 1, 0, 0, 0.0, True, False)
    assert session_step(criteria, Progress(), facts).step is Step.BEGIN


def test_time_limit_leaves_the_rest_queued() -> None:
    """TX-10."""
    run = Runner(
        schedule(StartCriteria(at="2026-12-01 22:00", every="1 day"), StopCriteria(after="2 hours")),
        "2026-12-01 20:00",
        step_s=10,
    )
    run.queued, run.bytes_per_s = 10 * 3600 * MB, MB
    run.until("2026-12-03 12:00")
    assert [entry[:2] for entry in run.log] == [
        ("01 22:00", "begin"),
        ("02 00:00", "end"),
        ("02 22:00", "begin"),
        ("03 00:00", "end"),
    ]
    assert run.log[1][2] == "its time is up" and run.queued == 6 * 3600 * MB


def test_metered_link() -> None:
    """TX-11: threshold 10 MB and limit 10 MB."""
    run = Runner(
        schedule(StartCriteria(queue_bytes="10 MB"), StopCriteria(sent_bytes="10 MB")), "2026-12-01 12:00"
    )
    run.queued = 12 * MB
    run.until("2026-12-01 12:10")
    assert [entry[1:] for entry in run.log] == [
        ("begin", "12000000 bytes are queued"),
        ("end", "10000000 bytes are sent"),
    ]
    assert run.queued == 2 * MB


def test_window_bounds_everything_and_crosses_midnight() -> None:
    """TX-13: what is due outside begins when it opens; what runs ends when it closes."""
    run = Runner(
        schedule(StartCriteria(at="2026-12-01 20:00", every="1 day", queue_bytes="1 MB"), window=NIGHT),
        "2026-12-01 12:00",
        step_s=10,
    )
    run.queued, run.bytes_per_s = 10**15, MB
    run.until("2026-12-02 20:00")
    assert [entry[:2] for entry in run.log] == [("01 21:00", "begin"), ("02 04:00", "end")]
    assert run.log[1][2] == "the window has closed"


def test_window_alone_starts_nothing() -> None:
    run = Runner(schedule(window=NIGHT), "2026-12-01 12:00", step_s=60)
    run.queued = MB
    run.until("2026-12-04 12:00")
    assert run.log == []
    assert "a window alone starts nothing" in outlook(run.criteria, run.progress, run.now).reason
    run.progress = msgspec.structs.replace(run.progress, by_hand=True)  # outside of it, by hand
    assert waits_for(run.criteria, run.progress, run.now) == (
        "waits until 21:00: it was started by hand, and waits for the window"
    )
    run.until("2026-12-05 12:00")
    assert [entry[:2] for entry in run.log] == [("04 21:00", "begin"), ("04 21:01", "end")]


def test_stop_criteria_bound_what_was_started_by_hand() -> None:
    run = Runner(schedule(stop=StopCriteria(after="1 minute")), "2026-12-01 12:00")
    run.queued, run.bytes_per_s = 1000 * MB, MB
    run.progress = Progress(by_hand=True)
    run.until("2026-12-01 13:00")
    assert run.log == [("01 12:00", "begin", "by hand"), ("01 12:01", "end", "its time is up")]


@pytest.mark.parametrize(
    "wrong",
    [
        schedule(StartCriteria(at="tomorrow")),
        schedule(StartCriteria(every="30 minutes")),
        schedule(StartCriteria(at="2026-12-01 22:00", every="500 days")),
        schedule(StartCriteria(queue_percent=0)),
        schedule(StartCriteria(queue_percent=101)),
        schedule(StartCriteria(queue_bytes="many")),
        schedule(StartCriteria(queue_bytes="0")),
        schedule(stop=StopCriteria(after="soon")),
        schedule(stop=StopCriteria(sent_bytes="-1")),
        schedule(window=Window(opens="21:00")),
        schedule(window=Window(opens="21:00", closes="21:00")),
        schedule(window=Window(opens="24:00", closes="9:00")),
    ],
)
def test_refused(wrong: TransmissionSchedule) -> None:
    with pytest.raises(UsageError):
        compiled(wrong, BERLIN)


def test_sizes_of_both_kinds() -> None:
    assert compiled(schedule(StartCriteria(queue_bytes="10 MB")), BERLIN).queue_bytes == 10_000_000
    assert compiled(schedule(StartCriteria(queue_bytes="10 MiB")), BERLIN).queue_bytes == 10 << 20


def test_disabled_settings_are_kept_and_do_not_hold() -> None:
    made = msgspec.structs.replace(schedule(window=NIGHT), enabled=False)
    assert made.window == NIGHT and not made.holds and not TransmissionSchedule().holds


# --- clocks that are set ---


HOURLY = StartCriteria(at="2026-12-01 00:00", every="1 hour")


def test_a_clock_set_forward_makes_up_once() -> None:
    run = Runner(schedule(HOURLY), "2026-12-01 00:30", step_s=10).until("2026-12-01 01:30")
    assert [entry[0] for entry in run.log if entry[1] == "begin"] == ["01 01:00"]
    run.now += 5 * 3600 + 600
    run.until("2026-12-01 07:30")
    assert [entry[0] for entry in run.log if entry[1] == "begin"] == ["01 01:00", "01 06:40", "01 07:00"]


def test_a_clock_set_back_starts_nothing_twice() -> None:
    run = Runner(schedule(HOURLY), "2026-12-01 00:30", step_s=10).until("2026-12-01 05:30")
    begun = len(run.log)
    run.now -= 3 * 3600
    run.until("2026-12-01 05:59:50")
    assert len(run.log) == begun
    run.until("2026-12-01 06:10")
    assert run.log[begun][0] == "01 06:00"


def test_a_clock_that_was_far_ahead_does_not_skip_for_ever() -> None:
    run = Runner(schedule(HOURLY), "2036-12-01 00:30", step_s=10).until("2036-12-01 01:30")
    begun = len(run.log)
    run.now = at("2026-12-05 08:20")
    run.until("2026-12-05 09:10")
    assert run.log[begun][:2] == ("05 09:00", "begin")


def test_a_clock_that_is_set_does_not_change_how_long_a_session_lasts() -> None:
    run = Runner(
        schedule(StartCriteria(at="2026-12-01 22:00"), StopCriteria(after="1 hour")), "2026-12-01 21:59"
    )
    run.queued, run.bytes_per_s = 10**15, MB
    run.until("2026-12-01 22:30")
    run.now -= 6 * 3600
    run.until("2026-12-01 16:40")
    assert len(run.log) == 1
    run.now += 48 * 3600
    run.until("2026-12-03 17:10")
    assert run.log[1][:2] == ("03 17:00", "end")


def test_a_start_time_that_has_just_passed_counts() -> None:
    for late_s, due in ((limits.SCHEDULE_LATE_S - 1, True), (limits.SCHEDULE_LATE_S + 1, False)):
        criteria = compiled(schedule(StartCriteria(at="2026-12-01 22:00")), BERLIN)
        assert (first_due(criteria, at("2026-12-01 22:00") + late_s) is not None) is due


# --- a year with daylight saving time ---


def all_days() -> list[datetime]:
    return [datetime(2026, 1, 1, 12) + timedelta(days=number) for number in range(365)]


@pytest.mark.parametrize("time", ["00:00", "01:59", "02:00", "02:30", "02:59", "03:00", "22:00"])
def test_every_day_of_a_year_has_one_start(time: str) -> None:
    """On 29 March 02:30 does not exist: it is at 03:00. On 25 October it exists twice: the first counts."""
    criteria = compiled(schedule(StartCriteria(at=f"2026-01-01 {time}", every="1 day")), BERLIN)
    starts = []
    now = at("2025-12-31 12:00")
    while (following_ := following(criteria, now)) is not None and following_ < at("2027-01-01 00:00"):
        starts.append(following_)
        now = following_
    assert len(starts) == 365
    for moment, day in zip(starts, all_days(), strict=True):
        local = datetime.fromtimestamp(moment, BERLIN)
        assert local.date() == day.date()
        expected = "03:00" if (day.month, day.day) == (3, 29) and "02:00" <= time < "03:00" else time
        assert local.strftime("%H:%M") == expected
        assert local.fold == 0


@pytest.mark.parametrize("every", ["1 hour", "90 minutes", "5 hours"])
def test_intervals_of_hours_are_even_all_year(every: str) -> None:
    criteria = compiled(schedule(StartCriteria(at="2026-01-01 00:00", every=every)), BERLIN)
    now, gaps = at("2026-01-01 00:00"), set()
    while now < at("2027-01-01 00:00"):
        later = following(criteria, now)
        assert later is not None
        gaps.add(later - now)
        now = later
    assert gaps == {criteria.every_s}


@pytest.mark.parametrize(
    ("opens", "closes", "spring_s", "autumn_s"),
    [
        ("21:00", "04:00", 6 * 3600, 8 * 3600),
        ("00:00", "06:00", 5 * 3600, 7 * 3600),
        ("02:30", "04:00", 3600, 2.5 * 3600),
        ("23:00", "02:30", 3 * 3600, 3.5 * 3600),
        ("02:15", "02:45", 0, 1800),
        ("08:00", "18:00", 10 * 3600, 10 * 3600),
    ],
)
def test_windows_of_a_year(opens: str, closes: str, spring_s: float, autumn_s: float) -> None:
    """Open for as long as it says, but on the two days; never open twice."""
    criteria = compiled(schedule(window=Window(opens=opens, closes=closes)), BERLIN)
    now, spans = at("2025-12-31 22:59:59"), []
    while now < at("2027-01-01 12:00"):
        span = window_at(criteria, now)
        assert span is not None and span.ends > now
        if span.begins >= at("2026-01-01 00:00") and span.begins < at("2027-01-01 00:00"):
            spans.append(span)
        now = span.ends
    lengths = {datetime.fromtimestamp(s.begins, BERLIN).date(): s.ends - s.begins for s in spans}
    assert len(lengths) == len(spans) == 365 - (spring_s == 0)
    start, end = (datetime.fromisoformat(f"2026-12-01 {text}") for text in (opens, closes))
    usual = (end - start).total_seconds() % 86400
    crosses = closes < opens
    spring = datetime(2026, 3, 28 if crosses else 29).date()
    autumn = datetime(2026, 10, 24 if crosses else 25).date()
    for day, length in lengths.items():
        assert length == {spring: spring_s, autumn: autumn_s}.get(day, usual), day


def test_a_year_of_nights_each_begins_and_ends_once() -> None:
    """The machine itself, for a year."""
    run = Runner(
        schedule(
            StartCriteria(at="2026-01-01 02:30", every="1 day"), window=Window(opens="02:30", closes="04:00")
        ),
        "2026-01-01 00:00",
        step_s=1800,
    )
    run.queued, run.bytes_per_s = 10**18, MB
    run.until("2027-01-01 00:00")
    assert len(run.log) == 2 * 365
    assert {why for _, step, why in run.log if step == "end"} == {"the window has closed"}


def test_a_start_with_an_offset_says_which_of_two_it_is() -> None:
    second = "2026-10-25T02:30:00+01:00"
    criteria = compiled(schedule(StartCriteria(at=second)), BERLIN)
    assert criteria.at == datetime.fromisoformat(second).timestamp()
    assert criteria.at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("start", "stop", "now", "text"),
    [
        (
            StartCriteria(at="2026-12-01 22:00"),
            StopCriteria(),
            "2026-12-01 20:00",
            "waits until 22:00: the start time",
        ),
        (
            StartCriteria(queue_bytes="10 MB"),
            StopCriteria(),
            "2026-12-01 20:00",
            "waits: transmission starts when 10 MB are queued",
        ),
        (
            StartCriteria(at="2026-12-24 22:00", every="1 day", queue_percent=50),
            StopCriteria(),
            "2026-12-01 20:00",
            "waits until 2026-12-24 22:00: every 1 day; nothing starts before, then also"
            " when the queue is 50 % full",
        ),
    ],
)
def test_words(start: StartCriteria, stop: StopCriteria, now: str, text: str) -> None:
    run = Runner(schedule(start, stop), now)
    assert waits_for(run.criteria, run.progress, run.now) == text


def test_words_of_a_session() -> None:
    run = Runner(
        schedule(
            StartCriteria(at="2026-12-01 22:00"), StopCriteria(after="8 hours", sent_bytes="10 MB"), NIGHT
        ),
        "2026-12-01 21:59",
    )
    run.queued, run.bytes_per_s = 10**9, 1000
    run.until("2026-12-01 22:01")
    assert outlook(run.criteria, run.progress, run.now) == (
        "stop",
        at("2026-12-02 04:00"),
        "the window closes; or before, when the queue is empty or 10 MB are sent (59000 bytes so far)",
    )
