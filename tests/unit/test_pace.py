"""Pace of a recovery: its share of the time, what may be on its way, the length of a step, its end."""

import pytest

from replicator import limits
from replicator.mirror.estimate import Estimate
from replicator.sender.duty import WAIT_FOR_NEWS, Duty
from replicator.sender.in_flight import InFlight
from replicator.sender.pace import Pace

MS = 1_000_000
SECOND = 1000 * MS
MIB = 1 << 20


# --- its share of the time ---


def worked_ns(duty: Duty, step_ns: int, drain_ns: int, until_ns: int) -> int:
    """Time spent on work until then: steps of this length; what is read arrives so long after the last of
    them.
    """
    now = worked = last_step_ns = 0
    while now < until_ns:
        in_flight = bool(worked) and now < last_step_ns + drain_ns
        pause = duty.pause_ns(now, in_flight=in_flight)
        if pause == 0:
            now += step_ns
            worked += step_ns
            last_step_ns = now
        elif pause == WAIT_FOR_NEWS:
            assert in_flight
            worked += last_step_ns + drain_ns - now
            now = last_step_ns + drain_ns
        else:
            now += pause
    return worked


@pytest.mark.parametrize("drain_ms", [0, 40, 300])
@pytest.mark.parametrize("share", [0.0625, 0.25, 0.5, 0.75, 1.0])
def test_it_works_its_share_of_the_time(share: float, drain_ms: int) -> None:
    total = 60 * SECOND
    assert worked_ns(Duty(share), 3 * MS, drain_ms * MS, total) / total == pytest.approx(share, abs=0.02)


def test_nothing_is_done_with_no_share_and_everything_at_once_with_all() -> None:
    duty = Duty(0.0)
    assert duty.pause_ns(0, in_flight=False) == WAIT_FOR_NEWS
    duty.share = 1.0
    assert duty.pause_ns(1, in_flight=False) == 0
    assert duty.pause_ns(10 * SECOND, in_flight=True) == 0


def test_another_share_holds_for_the_rest_under_way() -> None:
    duty = Duty(0.25)
    assert duty.pause_ns(0, in_flight=False) == 0
    assert duty.pause_ns(100 * MS, in_flight=False) == 300 * MS
    duty.share = 0.5
    assert duty.pause_ns(150 * MS, in_flight=False) == 50 * MS
    duty.share = 1.0
    assert duty.pause_ns(151 * MS, in_flight=False) == 0


def test_time_without_work_is_no_work() -> None:
    duty = Duty(0.5)
    assert duty.pause_ns(0, in_flight=False) == 0
    duty.rest(10 * MS)  # that was all for now
    duty.rest(50 * SECOND)
    assert duty.pause_ns(100 * SECOND, in_flight=False) == 0
    duty.rest(100 * SECOND + 10 * MS)
    assert duty.pause_ns(100 * SECOND + 11 * MS, in_flight=False) == 9 * MS


# --- what may be on its way ---


def queue_s(rate: float, latency_ns: int, seconds: float) -> tuple[float, float]:
    """A link with one queue: the longest time spent in it once the window has settled, and the part of the
    rate used.
    """
    window, now, number, free_at, sent_bytes = InFlight(), 0, 0, 0, 0
    on_way: list[tuple[int, int, int]] = []  # (arrives, number, bytes)
    worst = 0
    while now < seconds * SECOND:
        in_flight = sum(size for _, _, size in on_way)
        if in_flight < window.bytes:
            number, size = number + 1, window.part_bytes
            free_at = max(free_at, now) + int(size / rate * SECOND)
            sent_bytes += size
            on_way.append((free_at + latency_ns, number, size))
            window.sent(number, size, in_flight, now)
            if now > 2 * SECOND:
                worst = max(worst, free_at - now)
            continue
        arrives, arrived, _ = on_way.pop(0)
        now = max(now, arrives)
        window.arrived(arrived, now)
    return worst / SECOND, sent_bytes / (rate * seconds)


@pytest.mark.parametrize("rate", [1e6, 10e6, 100e6, 2e9])
@pytest.mark.parametrize("latency_ms", [1, 50])
def test_a_change_waits_for_a_bounded_time_and_the_link_is_used(rate: float, latency_ms: int) -> None:
    queued, used = queue_s(rate, latency_ms * MS, 10.0)
    assert queued < 2 * limits.RECOVERY_DELAY_NS / SECOND
    assert used > 0.9 or rate * latency_ms / 1000 > limits.PIECE_BYTES_IN_FLIGHT / 2


def test_without_the_window_a_change_would_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InFlight, "arrived", lambda *_: None)
    monkeypatch.setattr(limits, "RECOVERY_WINDOW_FIRST_BYTES", limits.PIECE_BYTES_IN_FLIGHT)
    assert queue_s(1e6, MS, 10.0)[0] > 10


def test_the_window_does_not_grow_while_it_is_not_used() -> None:
    window = InFlight()
    for number in range(1, 100):
        window.sent(number, 1000, 0, number * SECOND)
        window.arrived(number, number * SECOND + MS)
    assert window.bytes == limits.RECOVERY_WINDOW_FIRST_BYTES


def test_a_busy_host_does_not_close_the_window() -> None:
    """Processes that wait for a processor: delays of a second, and everything arrives at once then."""
    window, number, now = InFlight(), 0, 0
    for step in range(100):
        last, ahead = number, 0
        while ahead < window.bytes:
            number += 1
            window.sent(number, window.part_bytes, ahead, now)
            ahead += window.part_bytes
        for arrived in range(last + 1, number + 1):
            now += MS
            if arrived == last + 1:
                now += (step % 10 != 0) * SECOND // 2
            window.arrived(arrived, now)
    assert window.bytes > 4 * MIB


# --- a step ---


class Clock:
    now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns

    def boot_id(self) -> str:
        return "boot"


def test_steps_are_short_where_reading_takes_long() -> None:
    clock = Clock()
    pace = Pace(clock)
    for file_ns, files in ((5 * MS, 10), (MS // 100, limits.STEP_FILES)):
        for _ in range(20):
            pace.step_begins()
            clock.now_ns += pace.step_files * file_ns
            pace.step_ends()
        assert pace.step_files == pytest.approx(files, abs=1)
    for _ in range(20):
        pace.step_begins()
        clock.now_ns += SECOND  # even for one file
        pace.step_ends()
    assert pace.step_files == 1


# --- its end ---


def test_the_end_follows_from_the_last_minute() -> None:
    estimate, done = Estimate(0), 0
    assert estimate.remaining_s(0, 0, 1000) is None
    for second in range(1, 101):
        done = second * 10
        assert estimate.remaining_s(second * SECOND, done, 10_000) == pytest.approx((10_000 - done) / 10)
    for second in range(101, 201):  # half as fast from here on
        done += 5
        remaining = estimate.remaining_s(second * SECOND, done, 10_000)
    assert remaining == pytest.approx((10_000 - done) / 5, rel=0.01)
    assert estimate.remaining_s(201 * SECOND, 10_000, 10_000) == 0.0


def test_another_pace_counts_at_once() -> None:
    estimate = Estimate(0)
    assert estimate.remaining_s(10 * SECOND, 100, 1000) == pytest.approx(90)
    estimate.begin_anew(10 * SECOND, 100)
    assert estimate.remaining_s(10 * SECOND, 100, 1000) is None
    assert estimate.remaining_s(11 * SECOND, 200, 1000) == pytest.approx(8)
