"""Blocks found in an old copy at other places."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from replicator import limits
from replicator.mirror.moved import ANCHOR_BYTES, OldCopy

BLOCK = 64 * 1024


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(40 * BLOCK)


@pytest.fixture
def old(tmp_path: Path, content: bytes) -> Iterator[OldCopy]:
    path = tmp_path / "old"
    path.write_bytes(content)
    copy = OldCopy(os.open(path, os.O_RDONLY))
    yield copy
    copy.close()


def looked_for(old: OldCopy, new: bytes) -> list[int | None]:
    """Where each block of `new` is."""
    return [
        old.find(
            start,
            len(block := new[start : start + BLOCK]),
            xxhash.xxh3_64_digest(block),
            block[:ANCHOR_BYTES] if len(block) >= ANCHOR_BYTES else b"",
        )
        for start in range(0, len(new), BLOCK)
    ]


def test_what_is_equal_is_in_its_place(old: OldCopy, content: bytes) -> None:
    assert looked_for(old, content) == list(range(0, len(content), BLOCK))


@pytest.mark.parametrize("inserted", [1, 1000, BLOCK, 10 * BLOCK + 7])
def test_behind_an_insertion(inserted: int, old: OldCopy, content: bytes) -> None:
    found = looked_for(old, random.Random(2).randbytes(inserted) + content)
    new = -(-inserted // BLOCK)
    assert found[:new] == [None] * new
    assert found[new:] == [start - inserted for start in range(new * BLOCK, len(content) + inserted, BLOCK)]


@pytest.mark.parametrize("removed", [1, 5000, 9 * BLOCK])
def test_behind_what_was_removed(removed: int, old: OldCopy, content: bytes) -> None:
    found = looked_for(old, content[removed:])
    assert found == [start + removed for start in range(0, len(content) - removed, BLOCK)]


def test_several_changes(old: OldCopy, content: bytes) -> None:
    new = content[: 5 * BLOCK + 3] + b"x" * 100 + content[5 * BLOCK + 3 : 20 * BLOCK] + content[22 * BLOCK :]
    found = looked_for(old, new)
    assert sum(place is None for place in found) <= 2
    for number, place in enumerate(found):
        block = new[number * BLOCK : (number + 1) * BLOCK]
        assert place is None or content[place : place + BLOCK] == block


def test_a_beginning_that_many_blocks_have_is_no_proof(tmp_path: Path) -> None:
    chance = random.Random(3)
    pages = [b"header--" + chance.randbytes(BLOCK - 8) for _ in range(30)]
    path = tmp_path / "old"
    path.write_bytes(b"".join(pages))
    old = OldCopy(os.open(path, os.O_RDONLY))
    try:
        found = looked_for(old, b"".join([*pages[:3], b"header--" + bytes(BLOCK - 8), *pages[3:]]))
    finally:
        old.close()
    assert found[3] is None
    assert [place for place in found if place is not None] == [n * BLOCK for n in range(30)]


def test_content_that_is_nowhere_is_not_looked_for_each_time(
    old: OldCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    read = OldCopy._read_window
    monkeypatch.setattr(
        OldCopy, "_read_window", lambda self, start: (looks.append(start), read(self, start))[1]
    )
    assert looked_for(old, random.Random(4).randbytes(320 * BLOCK)) == [None] * 320
    assert len(looks) < 64


def test_it_is_copied_to_its_new_place(old: OldCopy, content: bytes, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    try:
        old.copy_to(descriptor, 1001, 77, 3 * BLOCK + 5)
        assert os.pread(descriptor, 3 * BLOCK + 5, 77) == content[1001 : 1001 + 3 * BLOCK + 5]
        with pytest.raises(OSError, match="cut off"):
            old.copy_to(descriptor, len(content) - 10, 0, 100)
    finally:
        os.close(descriptor)
    assert limits.MOVED_WINDOW_BYTES > BLOCK
