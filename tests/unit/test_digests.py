"""Digests of blocks: cut alike on both sides, holes apart from zeros, each difference found."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs.attributes import data_extents
from replicator.mirror import digests
from replicator.mirror.digests import UNIT_BYTES, cut, differing, differing_units, digest_blocks

BLOCK = 4 * UNIT_BYTES


class Pair:
    """Two files, and where the second one is said to differ from the first."""

    def __init__(self, directory: Path) -> None:
        self.one = os.open(directory / "one", os.O_RDWR | os.O_CREAT)
        self.other = os.open(directory / "other", os.O_RDWR | os.O_CREAT)

    def write(self, offset: int, data: bytes) -> None:
        for descriptor in (self.one, self.other):
            os.pwrite(descriptor, data, offset)

    def resize(self, size: int) -> None:
        for descriptor in (self.one, self.other):
            os.ftruncate(descriptor, size)

    def differing(self) -> list[tuple[int, int, bytes]]:
        size = os.fstat(self.one).st_size
        extents = list(data_extents(self.one, size))
        found, cut_at = digest_blocks(self.one, extents, BLOCK)
        assert cut_at is None and len(found) == 8 * digests.count_blocks(extents, BLOCK)
        return differing(self.other, 0, size, BLOCK, extents, found)

    def close(self) -> None:
        os.close(self.one)
        os.close(self.other)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    files = Pair(tmp_path)
    yield files
    files.close()


def test_extents_are_cut_at_multiples() -> None:
    extents = [(100, 50), (190, 20), (1000, 300)]
    assert list(cut(extents, 100)) == [
        (100, 150),
        (190, 200),
        (200, 210),
        (1000, 1100),
        (1100, 1200),
        (1200, 1300),
    ]
    assert digests.count_blocks(extents, 100) == 6
    assert digests.count_blocks([(0, 2**62)], BLOCK) == 2**62 // BLOCK  # without looking at each


def test_extents_without_others() -> None:
    assert digests.subtracted([(0, 10), (20, 10)], [(5, 20)]) == [(0, 5), (25, 5)]
    assert digests.subtracted([(0, 100)], [(10, 10), (30, 10)]) == [(0, 10), (20, 10), (40, 60)]
    assert digests.subtracted([(0, 10)], []) == [(0, 10)]
    assert digests.subtracted([(0, 10)], [(0, 5), (5, 5)]) == []
    assert digests.gaps(5, 30, [(10, 5), (20, 5)]) == [(5, 5), (15, 5), (25, 5)]


@pytest.mark.parametrize("read_bytes", [BLOCK, 256 * 1024])
def test_equal_files_and_one_byte(pair: Pair, read_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPARE_READ_BYTES", read_bytes)
    content = random.Random(1).randbytes(20 * BLOCK + 777)
    pair.write(0, content)
    assert pair.differing() == []
    for at in (0, BLOCK - 1, BLOCK, 7 * BLOCK + UNIT_BYTES, len(content) - 1):
        os.pwrite(pair.other, bytes([content[at] ^ 1]), at)
        ((offset, length, units),) = pair.differing()
        assert offset == at // BLOCK * BLOCK and length == min(BLOCK, len(content) - offset)
        start = (at - offset) // UNIT_BYTES * UNIT_BYTES
        here = memoryview(content[offset : offset + length])
        assert differing_units(here, units) == [(start, min(start + UNIT_BYTES, length))]
        os.pwrite(pair.other, content[at : at + 1], at)
    assert pair.differing() == []


def test_units_that_touch_become_one_range() -> None:
    here = random.Random(2).randbytes(4 * UNIT_BYTES)
    there = bytearray(here)
    for at in (0, UNIT_BYTES, 3 * UNIT_BYTES):
        there[at] ^= 1
    units = digests.digest_units(memoryview(there))
    assert differing_units(memoryview(here), units) == [(0, 2 * UNIT_BYTES), (3 * UNIT_BYTES, 4 * UNIT_BYTES)]


def test_a_hole_is_not_zeros(pair: Pair) -> None:
    pair.resize(8 * BLOCK)
    pair.write(2 * BLOCK, b"data" * UNIT_BYTES)
    assert pair.differing() == []
    os.pwrite(pair.one, bytes(UNIT_BYTES), 5 * BLOCK)
    assert pair.differing() == [(5 * BLOCK, UNIT_BYTES, b"")]


def test_a_shorter_file_differs(pair: Pair) -> None:
    pair.write(0, b"x" * 3 * BLOCK)
    os.ftruncate(pair.other, 2 * BLOCK + 10)
    assert [(offset, length) for offset, length, _ in pair.differing()] == [(2 * BLOCK, BLOCK)]


def test_a_file_that_is_cut_off_while_it_is_read(pair: Pair) -> None:
    pair.write(0, b"x" * 3 * BLOCK)
    os.ftruncate(pair.one, BLOCK + 5)
    found, cut_at = digest_blocks(pair.one, [(0, 3 * BLOCK)], BLOCK)
    assert cut_at == BLOCK and len(found) == 8


def test_the_digest_of_a_file_knows_its_holes(pair: Pair) -> None:
    pair.resize(4 * UNIT_BYTES)
    pair.write(UNIT_BYTES, b"data")
    sizes = 4 * UNIT_BYTES
    assert digests.digest_of_file(pair.one, sizes) == digests.digest_of_file(pair.other, sizes)
    os.pwrite(pair.other, bytes(UNIT_BYTES), 3 * UNIT_BYTES)
    assert digests.digest_of_file(pair.one, sizes) != digests.digest_of_file(pair.other, sizes)
