"""Find blocks of a file in an old copy of it, at other places.

What was inserted or removed shifts all behind it, so that nothing is at its old place any more. Rolling
checksums would find it there (rsync), one byte after the other: too slow here. So each block comes with its
first bytes, which a search over a window of the old copy finds at the speed of memory; a digest then says
whether it is the block. The window begins where the last block was found. So content is found that still is
in its former order: behind what was inserted, however much, or behind up to `WINDOW_BYTES` that were removed.
What was moved backwards is not.
"""

import errno
import os

import xxhash

from replicator import limits
from replicator.fs.attributes import data_extents, write_at

ANCHOR_BYTES = 8

_TRIES = 16  # places that begin as a block does
_PATIENCE = 32  # blocks that were not found in a row; after that only some are searched for
_SOME = 16
_NO_COPYING = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class OldCopy:
    """Owns `descriptor`. Memory: one window."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shift = 0  # from the place of a block to where it was found, of the last one
        self._place = 0  # where the last one ended
        self._misses = 0
        self._window = b""
        self._window_at = 0

    def find(self, start: int, length: int, digest: bytes, anchor: bytes) -> int | None:
        """Where the block that belongs to `start` is. OSError."""
        for place in {start + self._shift: None, start: None}:
            if self._is_at(place, length, digest):
                return self._found(start, place, length)
        self._misses += 1
        if len(anchor) < ANCHOR_BYTES or (self._misses > _PATIENCE and self._misses % _SOME):
            return None
        window = self._read_window(max(self._place - length, 0))
        at = window.find(anchor)
        for _ in range(_TRIES):
            if at < 0:
                break
            if self._is_at(self._window_at + at, length, digest):
                return self._found(start, self._window_at + at, length)
            at = window.find(anchor, at + 1)
        return None

    def _found(self, start: int, place: int, length: int) -> int:
        self._shift, self._place, self._misses = place - start, place + length, 0
        return place

    def _is_at(self, place: int, length: int, digest: bytes) -> bool:
        if place < 0:
            return False
        content = os.pread(self._descriptor, length, place)
        return len(content) == length and xxhash.xxh3_64_digest(content) == digest

    def _read_window(self, start: int) -> bytes:
        if start != self._window_at or not self._window:
            self._window = os.pread(self._descriptor, limits.MOVED_WINDOW_BYTES, start)
            self._window_at = start
        return self._window

    def extents(self, start: int, end: int) -> list[tuple[int, int]]:
        """(offset, length) of its data in that range."""
        return list(data_extents(self._descriptor, min(end, os.fstat(self._descriptor).st_size), start))

    def copy_to(self, descriptor: int, place: int, start: int, length: int) -> None:
        """What is at `place` goes to `start` of another file, as shared blocks where the file system can."""
        while length > 0:
            try:
                count = os.copy_file_range(self._descriptor, descriptor, length, place, start)
            except OSError as error:
                if error.errno not in _NO_COPYING:
                    raise
                content = os.pread(self._descriptor, min(length, limits.PART_BYTES), place)
                write_at(descriptor, content, start)
                count = len(content)
            if not count:
                raise OSError(errno.EIO, "the old copy was cut off meanwhile")
            place, start, length = place + count, start + count, length - count

    def close(self) -> None:
        os.close(self._descriptor)
        self._window = b""
