"""Syncs by the kernel's ring, where it has one for us."""

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.fs.sync_ring import SyncRing


@pytest.fixture
def ring() -> Iterator[SyncRing]:
    try:
        made = SyncRing(8)
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    yield made
    made.close()


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.write(opened, b"content")
    yield opened
    os.close(opened)


def has_something(ring: SyncRing, limit_ms: int) -> bool:
    """By poll: select takes no descriptor above 1,023, and a test session may have that many."""
    waiting = select.poll()
    waiting.register(ring, select.POLLIN)
    return bool(waiting.poll(limit_ms))


def wait(ring: SyncRing, count: int) -> list[tuple[int, int]]:
    ended: list[tuple[int, int]] = []
    while len(ended) < count:
        assert has_something(ring, 10_000), f"only {ended}"
        ended += ring.done()
    return ended


@pytest.mark.parametrize("data_only", [True, False])
def test_a_sync_is_done_and_told_once(ring: SyncRing, descriptor: int, data_only: bool) -> None:
    assert ring.done() == []
    assert ring.submit(descriptor, data_only, (1 << 64) - 1)
    assert wait(ring, 1) == [((1 << 64) - 1, 0)]
    assert ring.under_way == 0
    assert ring.done() == []
    assert not has_something(ring, 0)


def test_an_error_is_told_as_its_number(ring: SyncRing, descriptor: int) -> None:
    assert ring.submit(descriptor, True, 1)
    read_end, write_end = os.pipe()
    try:
        assert ring.submit(write_end, True, 2)
        assert ring.submit(9999, False, 3)
        assert sorted(wait(ring, 3)) == [(1, 0), (2, errno.EINVAL), (3, errno.EBADF)]
    finally:
        os.close(read_end)
        os.close(write_end)


def test_many_rounds_and_a_full_ring(ring: SyncRing, descriptor: int) -> None:
    submitted: list[int] = []
    told: list[int] = []
    refused = 0
    for key in range(500):
        if ring.submit(descriptor, True, key):
            submitted.append(key)
            assert ring.under_way <= 8
        else:
            refused += 1
            assert ring.under_way == 8
        if key % 11 == 10:
            told += [ended for ended, _ in ring.done()]
    told += [ended for ended, _ in wait(ring, ring.under_way)] if ring.under_way else []
    assert sorted(told) == submitted
    assert refused > 0
