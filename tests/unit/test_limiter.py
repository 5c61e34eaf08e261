"""Bandwidth limits: the bucket by itself, limiters that share one, and sessions behind a limit."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from kit.disk import MemoryDisk, MemoryPage
from kit.links import Link
from kit.simulation import MockedClock

from replicator import limits
from replicator.net.bucket import Bucket
from replicator.net.engine import Engine, Role, State
from replicator.net.frames import MirrorBegin, PieceBatch
from replicator.net.limiter import PAGE_BYTES, Limiter, SharedBucket
from replicator.net.session import Session
from replicator.net.transmission import Transmission
from replicator.transmission import Limit

Log = list[tuple[float, int]]  # (when, bytes)


def worst_second(log: Log, until_s: float) -> int:
    """Most bytes within any second."""
    worst = first = total = 0
    for when, count in log:
        total += count
        while log[first][0] <= when - 1:
            total -= log[first][1]
            first += 1
        worst = max(worst, total)
    return worst


def total_between(log: Log, from_s: float, until_s: float) -> int:
    return sum(count for when, count in log if from_s <= when < until_s)


async def spend(limiter: Limiter, log: Log, size: int = 1 << 20) -> None:
    """Write for ever, as fast as it may be."""
    while True:
        count = await limiter.grant(size)
        log.append((trio.current_time(), count))


def test_an_even_bucket_gives_what_it_says() -> None:
    bucket, limit, now_ns, taken = Bucket(), Limit(1_000_000), 0, 0
    while now_ns < 10_000_000_000:
        count = bucket.room(limit, now_ns)
        now_ns = max(bucket.take(limit, count, now_ns), now_ns)
        taken += count
    assert taken == pytest.approx(10_000_000, rel=0.02)


def test_an_idle_bucket_saves_up_no_more_than_its_slack() -> None:
    bucket, limit = Bucket(), Limit(1_000_000)
    bucket.take(limit, 1000, 0)
    now_ns, at_once = 60_000_000_000, 0
    while bucket.take(limit, 40_000, now_ns) <= now_ns:
        at_once += 40_000
    assert at_once <= 1_000_000 * limits.LIMIT_SLACK_NS / 1e9 + 40_000


def test_a_burst_goes_at_once_and_then_the_rest_of_the_seconds_is_waited_out() -> None:
    bucket, limit = Bucket(), Limit(19_300, 5.0)
    assert bucket.room(limit, 0) == 19_300
    assert bucket.take(limit, 19_300, 0) == 0
    assert bucket.room(limit, 4_999_999_999) == 0
    assert bucket.due_ns == 5_000_000_000
    assert bucket.room(limit, 5_000_000_000) == 19_300
    bucket.take(limit, 300, 7_000_000_000)  # a window begins with its first byte
    assert bucket.room(limit, 7_000_000_000) == 19_000
    assert bucket.due_ns == 12_000_000_000


@pytest.mark.parametrize("rate", [10_000_000, 1_000_000, 100_000, 1_000])
async def test_a_limit_is_kept_by_the_second_and_by_the_minute(rate: int, autojump_clock: Any) -> None:
    limiter, log = Limiter(MockedClock()), []
    limiter.set_limits(Limit(rate), None, None)
    with trio.move_on_after(30):
        await spend(limiter, log)
    assert sum(count for _, count in log) == pytest.approx(30 * rate, rel=0.03)
    assert worst_second(log, 30) <= 1.2 * rate


@pytest.mark.parametrize("lateness_s", [0.02, 0.05, 0.1])
async def test_a_limit_is_kept_by_a_task_that_wakes_late(lateness_s: float, autojump_clock: Any) -> None:
    limiter, log, rng = Limiter(MockedClock()), [], random.Random(5)
    limiter.set_limits(Limit(1_000_000), None, None)
    with trio.move_on_after(30):
        while True:
            count = await limiter.grant(1 << 20)
            await trio.sleep(lateness_s if rng.random() < 0.2 else 0)
            log.append((trio.current_time(), count))
    assert sum(count for _, count in log) == pytest.approx(30_000_000, rel=0.03)
    assert worst_second(log, 30) <= 1_200_000


@pytest.mark.parametrize("share", [False, True])
async def test_the_average_is_kept_on_a_host_under_load(share: bool, autojump_clock: Any) -> None:
    """Every six seconds somebody wakes a quarter of a second late: half of that was lost."""
    (limiter,) = sharing(1) if share else [Limiter(MockedClock())]
    if not share:
        limiter.set_limits(Limit(100_000), None, None)
    rate = 1_000_000 if share else 100_000
    log: Log = []
    with trio.move_on_after(60):
        late_s = 6.0
        while True:
            count = await limiter.grant(1 << 20)
            if trio.current_time() > late_s:
                await trio.sleep(0.25)
                late_s += 6.0
            log.append((trio.current_time(), count))
    whole = sum(count for _, count in log)
    assert whole == pytest.approx(60 * rate, rel=0.01)
    assert worst_second(log, 60) <= 1.2 * rate


async def test_a_sender_that_was_idle_gets_no_more_than_it_may(autojump_clock: Any) -> None:
    limiter, log = Limiter(MockedClock()), []
    limiter.set_limits(Limit(1_000_000), None, None)
    await trio.sleep(3600)
    began_s = trio.current_time()
    with trio.move_on_after(30):
        await spend(limiter, log)
    log = [(when - began_s, count) for when, count in log]
    assert sum(count for _, count in log) == pytest.approx(30_000_000, rel=0.03)
    assert worst_second(log, 30) <= 1_200_000


def sharing(count: int) -> list[Limiter]:
    clock, disk = MockedClock(), MemoryDisk()
    disk.makedirs("/run")
    found = []
    for _ in range(count):
        limiter = Limiter(clock)
        page = SharedBucket(MemoryPage(disk, "/run/limit", PAGE_BYTES, True), clock.boot_id())
        limiter.set_limits(None, Limit(1_000_000), page)
        found.append(limiter)
    return found


async def test_all_connections_to_a_target_share_its_limit(autojump_clock: Any) -> None:
    logs: list[Log] = [[] for _ in range(7)]
    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            for limiter, log in zip(sharing(7), logs, strict=True):
                nursery.start_soon(spend, limiter, log)
    everything = sorted(entry for log in logs for entry in log)
    assert sum(count for _, count in everything) == pytest.approx(30_000_000, rel=0.03)
    assert worst_second(everything, 30) <= 1_200_000
    shares = [sum(count for _, count in log) for log in logs]
    assert min(shares) > 0.9 * max(shares)


async def test_a_burst_of_a_target_is_exact_however_many_take_of_it(autojump_clock: Any) -> None:
    limiters, log = sharing(5), []
    burst = Limit(1_000_000, 4.0)
    for limiter in limiters:
        limiter.set_limits(None, burst, limiter._shared)
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for limiter in limiters:
                nursery.start_soon(spend, limiter, log)
    trickle = 5 * 3 * limits.LIMIT_TRICKLE_BYTES  # while a window is waited out
    assert 3_000_000 <= sum(count for _, count in log) <= 3_000_000 + trickle
    assert 1_000_000 <= total_between(log, log[0][0], log[0][0] + 3.9) <= 1_000_000 + trickle


async def test_a_limit_of_its_own_acts_beside_that_of_the_target(autojump_clock: Any) -> None:
    (limiter,) = sharing(1)
    shared = limiter._shared
    log: Log = []
    limiter.set_limits(Limit(200_000), Limit(1_000_000), shared)
    assert limiter.bytes_per_s == 200_000
    with trio.move_on_after(20):
        await spend(limiter, log)
    assert sum(count for _, count in log) == pytest.approx(4_000_000, rel=0.03)


async def test_another_limit_holds_at_once(autojump_clock: Any) -> None:
    limiter, log = Limiter(MockedClock()), []
    limiter.set_limits(Limit(100), None, None)
    began = trio.current_time()

    async def change() -> None:
        for after_s, limit in ((2, Limit(1_000_000)), (4, Limit(1_000)), (6, None)):
            await trio.sleep_until(began + after_s)
            limiter.set_limits(limit, None, None)

    with trio.move_on_after(7):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            while trio.current_time() < began + 6.1:
                count = await limiter.grant(1 << 20) if limiter.bytes_per_s else 0
                if not count:
                    break
                log.append((trio.current_time() - began, count))
    assert total_between(log, 0, 2) <= 100 * 2 + 2 * limits.LIMIT_SLICE_MIN_BYTES
    assert total_between(log, 2, 4) == pytest.approx(2_000_000, rel=0.06)
    assert total_between(log, 4.001, 6) <= 2 * 1_000 * 1.2
    assert trio.current_time() - began < 6.2  # and who waits is let go when a limit is taken away


async def test_a_new_limit_of_a_target_forgets_what_the_slow_one_has_queued(autojump_clock: Any) -> None:
    limiters, log = sharing(20), []
    for limiter in limiters:
        limiter.set_limits(None, Limit(100), limiter._shared)
    with trio.move_on_after(8):
        async with trio.open_nursery() as nursery:
            for limiter in limiters:
                nursery.start_soon(spend, limiter, log)
            await trio.sleep(6)
            log.clear()
            for limiter in limiters:
                limiter.set_limits(None, Limit(1_000_000), limiter._shared)
    assert sum(count for _, count in log) == pytest.approx(2_000_000, rel=0.06)


async def in_thread(function: Callable[[], bytes]) -> bytes:
    await trio.lowlevel.checkpoint()
    return function()


@pytest.mark.parametrize("limit", [Limit(1_000), Limit(100), Limit(1_000_000, 60.0)])
async def test_a_slow_limit_is_not_taken_for_a_dead_peer(limit: Limit, autojump_clock: Any) -> None:
    """A frame takes minutes, and both sides hear enough of each other."""
    near, far = Link(random.Random(3), latency_s=0.01).streams()
    sessions = []
    for stream, role in ((near, Role.SOURCE), (far, Role.TARGET)):
        engine = Engine(role)
        engine.state = State.OPEN
        sessions.append(Session(stream, engine))
    source, target = sessions
    transmission = Transmission(MockedClock(), in_thread)
    transmission.limiter.set_limits(limit, None, None)
    source.use(transmission, packing=False)
    size = int(200 * limit.bytes_per_s) if not limit.seconds else 2_000_000
    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(session.heartbeat)
        nursery.start_soon(source.receive)
        began = trio.current_time()
        nursery.start_soon(source.send, PieceBatch(), bytes(size))
        frame, data = await target.receive()
        assert frame == PieceBatch() and len(data) == size
        assert trio.current_time() - began > 50
        await source.send(MirrorBegin("m", "full"))
        assert await target.receive() == MirrorBegin("m", "full")
        nursery.cancel_scope.cancel()
