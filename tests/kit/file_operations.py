"""Random operations on ranges of a few files, and what the files hold after each of them. No I/O here.

The operations follow from a seed alone. So whoever knows it can say what the files may hold at any moment:
`History.find` is given what a target has, and says after which operation the source had that.
`kit.file_exerciser` performs them on real files.
"""

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

FILES = 3
SIZE_MAX = 96 * 1024
PAGE = 4096
SECTOR = 512  # offsets, lengths and buffers of O_DIRECT are multiples of it


class Kind(StrEnum):
    WRITE = "write"
    APPEND = "append"  # through a descriptor opened with O_APPEND
    WRITE_DIRECT = "write with O_DIRECT"
    STORE = "store in a shared mapping"
    TRUNCATE = "truncate"
    ALLOCATE = "fallocate"
    PUNCH = "punch a hole"
    ZERO = "zero a range"
    COPY = "copy_file_range"
    READ = "read"
    READ_DIRECT = "read with O_DIRECT"
    READ_MAPPED = "read a mapping"
    SEEK = "look for data and holes"
    SYNC = "fsync"
    SYNC_MAPPED = "msync"
    REOPEN = "close and open"


_WEIGHTS = {
    Kind.WRITE: 8,
    Kind.APPEND: 3,
    Kind.WRITE_DIRECT: 3,
    Kind.STORE: 5,
    Kind.TRUNCATE: 4,
    Kind.ALLOCATE: 2,
    Kind.PUNCH: 3,
    Kind.ZERO: 2,
    Kind.COPY: 3,
    Kind.READ: 5,
    Kind.READ_DIRECT: 3,
    Kind.READ_MAPPED: 3,
    Kind.SEEK: 2,
    Kind.SYNC: 1,
    Kind.SYNC_MAPPED: 1,
    Kind.REOPEN: 2,
}
_KINDS, _CUMULATIVE = list(_WEIGHTS), [sum(list(_WEIGHTS.values())[: n + 1]) for n in range(len(_WEIGHTS))]
_OF_WHAT_IS_THERE = {Kind.STORE, Kind.READ, Kind.READ_DIRECT, Kind.READ_MAPPED, Kind.SYNC_MAPPED}
CHANGES = frozenset(_KINDS[: _KINDS.index(Kind.READ)])


class Operation(NamedTuple):
    """`length` bytes from `start` on of a file, but TRUNCATE: to `start` bytes."""

    kind: Kind
    file: int
    start: int = 0
    length: int = 0
    data: bytes = b""
    keep_size: bool = False  # ALLOCATE, ZERO
    source: int = 0  # COPY: the other file, and from where
    source_start: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


Contents = list[bytearray]  # one for each file


def plan(chance: random.Random, contents: Sequence[bytes | bytearray]) -> Operation:
    """An operation that the kernel will accept on files with these contents."""
    (kind,) = chance.choices(_KINDS, cum_weights=_CUMULATIVE)
    file = chance.randrange(len(contents))
    size = len(contents[file])
    if kind in _OF_WHAT_IS_THERE and not size:
        kind = Kind.WRITE
    if kind == Kind.APPEND and size == SIZE_MAX:
        kind = Kind.TRUNCATE
    if kind == Kind.TRUNCATE:
        return Operation(
            kind, file, chance.choice((0, size, _place(chance, SIZE_MAX), _place(chance, SIZE_MAX)))
        )
    if kind == Kind.COPY:
        return _plan_copy(chance, contents, file)
    start, length = _range(chance, size if kind in _OF_WHAT_IS_THERE else SIZE_MAX)
    if kind == Kind.APPEND:
        start, length = size, min(length, SIZE_MAX - size)
    elif kind in (Kind.WRITE_DIRECT, Kind.READ_DIRECT):
        start -= start % SECTOR
        length = max(length - length % SECTOR, SECTOR)
    data = (
        chance.randbytes(length) if kind in (Kind.WRITE, Kind.APPEND, Kind.WRITE_DIRECT, Kind.STORE) else b""
    )
    return Operation(kind, file, start, length, data, keep_size=chance.random() < 0.5)


def _plan_copy(chance: random.Random, contents: Sequence[bytes | bytearray], file: int) -> Operation:
    source = chance.randrange(len(contents))
    source_start, length = _range(chance, max(len(contents[source]), 1))
    length = min(length, len(contents[source]) - source_start)
    start = chance.randrange(SIZE_MAX - length + 1)
    if source == file:  # ranges that overlap are refused
        length = min(length, abs(start - source_start))
    return Operation(Kind.COPY, file, start, length, source=source, source_start=source_start)


def _place(chance: random.Random, end: int) -> int:
    """Often at, or close to, the edge of a page."""
    place = chance.randrange(end)
    if chance.random() < 0.4:
        place += chance.choice((-1, 0, 0, 1)) - place % PAGE
    return min(max(place, 0), end - 1)


def _range(chance: random.Random, end: int) -> tuple[int, int]:
    """Of at least one byte, and mostly short."""
    start = _place(chance, end)
    length = chance.choice((1, 100, PAGE, PAGE, 3 * PAGE, 8 * PAGE))
    return start, min(chance.randint(1, length), end - start)


def apply(contents: Contents, operation: Operation) -> None:
    """What the operation makes of the files."""
    file, (kind, _, start, length, *_) = contents[operation.file], operation
    if kind not in CHANGES:
        return
    if kind == Kind.TRUNCATE:
        del file[start:]
        _extend(file, start)
        return
    if kind == Kind.PUNCH or (kind in (Kind.ZERO, Kind.ALLOCATE) and operation.keep_size):
        length = max(min(length, len(file) - start), 0)
    if not length:  # nothing of the file, and its size stays
        return
    _extend(file, start + length)
    if kind in (Kind.PUNCH, Kind.ZERO):
        file[start : start + length] = bytes(length)
    elif kind == Kind.COPY:
        source = contents[operation.source]
        file[start : start + length] = source[operation.source_start : operation.source_start + length]
    elif kind != Kind.ALLOCATE:
        file[start : start + length] = operation.data


def _extend(file: bytearray, size: int) -> None:
    file.extend(bytes(max(size - len(file), 0)))


class History:
    """The states that the files of a seed go through, one after the other."""

    def __init__(self, seed: int) -> None:
        self.number = 0  # of operations done
        self.contents: Contents = [bytearray() for _ in range(FILES)]
        self._chance = random.Random(seed)
        self.next = plan(self._chance, self.contents)

    def step(self) -> None:
        apply(self.contents, self.next)
        self.number += 1
        self.next = plan(self._chance, self.contents)

    def find(self, found: Sequence[bytes], last: int) -> int:
        """Go on until the files held `found`, or could while an operation was at work.

        Returns how many operations were done then.
        A file system may perform an operation in parts: page by page, size and content one after the other.
        AssertionError: they never did, from where this history stands up to `last` operations.
        """
        began = self.number
        while True:
            if all(one == other for one, other in zip(found, self.contents, strict=True)):
                return self.number
            if self.next.kind in CHANGES and self._is_at_work(found):
                return self.number
            assert self.number < last, f"no state between {began} and {last} is what was found"
            self.step()

    def _is_at_work(self, found: Sequence[bytes]) -> bool:
        which = self.next.file
        if any(found[n] != self.contents[n] for n in range(FILES) if n != which):
            return False
        before, after = self.contents[which], list(self.contents)
        after[which] = bytearray(before)
        apply(after, self.next)
        return between(found[which], before, after[which])


def between(found: bytes, before: bytes | bytearray, after: bytes | bytearray) -> bool:
    """Whether each byte is as before or as after, what does not exist being zero."""
    size = len(found)
    if not min(len(before), len(after)) <= size <= max(len(before), len(after)):
        return False
    before, after = bytes(before[:size]).ljust(size, b"\0"), bytes(after[:size]).ljust(size, b"\0")
    for start in range(0, size, PAGE):
        page = slice(start, start + PAGE)
        if found[page] in (before[page], after[page]):
            continue
        if any(
            byte not in choice for byte, *choice in zip(found[page], before[page], after[page], strict=True)
        ):
            return False
    return True
