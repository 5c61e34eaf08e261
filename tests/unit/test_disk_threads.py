"""Threads for what waits for a disk."""

import logging
import threading
import time

import pytest

from replicator.fs.disk_threads import DiskThreads


def test_what_is_submitted_is_done_side_by_side_and_all_of_it_before_the_end() -> None:
    threads = DiskThreads(2)
    both = threading.Barrier(2, timeout=10)
    done: list[int] = []

    def meet(number: int) -> None:
        both.wait()
        done.append(number)

    for number in range(4):
        threads.submit(lambda number=number: meet(number))  # type: ignore[misc]
    threads.close()
    assert sorted(done) == [0, 1, 2, 3]
    assert threads.busy == 0


def test_busy_counts_what_is_not_done_yet() -> None:
    threads = DiskThreads(1)
    may_end = threading.Event()
    threads.submit(may_end.wait)  # type: ignore[arg-type]  # its answer is of no interest
    threads.submit(may_end.wait)  # type: ignore[arg-type]
    assert threads.busy == 2
    may_end.set()
    threads.close()
    assert threads.busy == 0


def test_a_failure_is_told_and_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    threads = DiskThreads(1)
    done = threading.Event()

    def fail() -> None:
        raise ValueError("planted")

    with caplog.at_level(logging.ERROR):
        threads.submit(fail)
        threads.submit(done.set)
        threads.close()
    assert done.is_set()
    assert "planted" in caplog.text


def test_there_are_as_many_threads_as_were_needed_at_once() -> None:
    before = threading.active_count()
    threads = DiskThreads(3)
    assert threading.active_count() == before
    for _ in range(5):
        done = threading.Event()
        threads.submit(done.set)
        assert done.wait(10)
        deadline = time.monotonic() + 10
        while threads.busy and time.monotonic() < deadline:
            time.sleep(0.001)
    assert threading.active_count() == before + 1
    may_end = threading.Event()
    for _ in range(5):
        threads.submit(may_end.wait)  # type: ignore[arg-type]
    assert threading.active_count() == before + 3
    may_end.set()
    threads.close()
    assert threading.active_count() == before
