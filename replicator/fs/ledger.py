"""What a successor of a killed capture has to know of the kernel's objects: a log in mapped memory.

It lies beside the journal's memory tier, so it outlives any process but not the host. Entries are only ever
appended; the number of references the kernel holds is kept up to date within the entry that introduced the
object. What was appended counts from the moment the length at the beginning says so.

A full log is continued by another. With each append there, a few of the objects that are alive move over;
when none is left behind, the other takes the place of the first. So whoever reads finds one log that is
whole, or two that are so together, and no append takes long.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Self

from replicator import limits

_HEADER = struct.Struct("<8sQQ")  # magic, length, number: of a log that continues another, one more than that
_MAGIC = b"RLEDGER2"
_LENGTH = struct.Struct("<Q")
_LENGTH_OFFSET = 8
_START = _HEADER.size
_ENTRY = struct.Struct("<BBHIQQQQ")  # kind, directory, name bytes, references, id, inode, device, parent
_REFERENCES = struct.Struct("<I")
_REFERENCES_OFFSET = 4
_NAME, _GONE, _FORGOTTEN, _OBJECT = 1, 2, 3, 4
_STEP_BYTES = 1 << 20


class Entry(NamedTuple):
    """One line. `parent` 0: no name, as of an object that never had one."""

    kind: int
    place: int  # where `Ledger.references` finds it
    references: int
    id: int
    inode: int
    device: int
    is_directory: bool
    parent: int
    name: bytes


class _Log:
    """One file. Places in it are those of entries, plus 0 or 1: see `Ledger`."""

    def __init__(self, path: str, size: int, number: int) -> None:
        """A new one, in place of what is there."""
        self._open(path, size, os.O_CREAT | os.O_TRUNC)
        self.number = number
        self.end = _START
        try:
            self._allocate(_START)
        except OSError:
            self.close()
            raise
        _HEADER.pack_into(self.map, 0, _MAGIC, _START, number)

    @classmethod
    def existing(cls, path: str, size: int) -> Self:
        """What a former process left, to go on with. Raises OSError, ValueError: there is none."""
        end, number = _header(path)
        log = cls.__new__(cls)
        log._open(path, max(size, end), 0)
        log.number = number
        log.end = end
        log._allocated = end // _STEP_BYTES * _STEP_BYTES
        return log

    def _open(self, path: str, size: int, flags: int) -> None:
        self.size = size
        self._allocated = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            os.ftruncate(self._descriptor, size)
            self.map = mmap.mmap(self._descriptor, size)
        except OSError:
            os.close(self._descriptor)
            raise

    def reserve(self, length: int) -> bool:
        """Whether there is room for an entry. Raises OSError if there is no memory."""
        end = self.end + length
        if end > self._allocated:
            if end > self.size:
                return False
            self._allocate(end)
        return True

    def _allocate(self, end: int) -> None:
        """Memory for all up to `end`: a store where there is none would end the process."""
        while self._allocated < end:
            step = min(_STEP_BYTES, self.size - self._allocated)
            os.posix_fallocate(self._descriptor, self._allocated, step)
            self._allocated += step

    def close(self) -> None:
        """Once or twice."""
        if not self.map.closed:
            self.map.close()
            os.close(self._descriptor)


class Ledger:
    """Written by one process. Errors of the file cost the log, and with it a successor's resumption only."""

    def __init__(self, path: str, *, resume: bool = False, size: int = limits.LEDGER_BYTES) -> None:
        """A new one, in place of what is there, or (`resume`) what is there. Raises OSError, ValueError."""
        self._path = path
        self._size = size
        self.living: Callable[[], Iterator[None]] = lambda: iter(())
        """Asked when it is full: an iterator that moves one object at each step, by `object` and `named`."""
        self._moves: Iterator[None] | None = None
        self._is_moving = False  # just now
        self._former: _Log | None = None  # while there are two
        self._until = size // 8  # it is continued when it is longer
        # A place tells by its lowest bit in which of two logs it is: in that whose number has the same.
        if not resume:
            with suppress(FileNotFoundError):
                os.unlink(_continuation(path))
            self._log = _Log(path, size, number=0)
            return
        self._log = _Log.existing(path, size)
        if _is_continued(path, self._log.number):
            self._former, self._log = self._log, _Log.existing(_continuation(path), size)

    def close(self) -> None:
        self._log.close()
        if self._former is not None:
            self._former.close()

    def remove(self) -> None:
        """Nobody will need it."""
        self.close()
        for path in (f"{self._path}.new", _continuation(self._path), self._path):
            with suppress(FileNotFoundError):
                os.unlink(path)

    # --- writing ---

    def object(
        self,
        node_id: int,
        inode: int,
        device: int,
        is_directory: bool,
        references: int,
        parent: int,
        name: bytes,
    ) -> int:
        """An object, and the name it stands at. Returns the place for `references`, instead of any former."""
        return self._append(_OBJECT, is_directory, references, node_id, inode, device, parent, name)

    def named(
        self,
        node_id: int,
        inode: int,
        device: int,
        is_directory: bool,
        references: int,
        parent: int,
        name: bytes,
    ) -> None:
        """An object stands at another name, too."""
        self._append(_NAME, is_directory, references, node_id, inode, device, parent, name)

    def gone(self, node_id: int, parent: int, name: bytes) -> None:
        """It does not stand there any more."""
        self._append(_GONE, False, 0, node_id, 0, 0, parent, name)

    def forgotten(self, node_id: int) -> None:
        """Neither the kernel nor anything of ours refers to it."""
        self._append(_FORGOTTEN, False, 0, node_id, 0, 0, 0, b"")

    def references(self, place: int, count: int) -> None:
        log = self._log
        if (place ^ log.number) & 1:
            assert self._former is not None
            log = self._former
        _REFERENCES.pack_into(log.map, (place & -2) + _REFERENCES_OFFSET, max(count, 0))

    def is_left_behind(self, place: int) -> bool:
        """Whether an object of this place is still to be moved."""
        return bool((place ^ self._log.number) & 1)

    def _append(
        self,
        kind: int,
        is_directory: bool,
        references: int,
        node_id: int,
        inode: int,
        device: int,
        parent: int,
        name: bytes,
    ) -> int:
        length = (_ENTRY.size + len(name) + 7) & -8
        if self._former is None and self._log.end + length > self._until:
            self._continue()
        log = self._log
        if not log.reserve(length):
            raise OSError(errno.ENOSPC, "too many objects", self._path)
        place = log.end
        _ENTRY.pack_into(
            log.map, place, kind, is_directory, len(name), references, node_id, inode, device, parent
        )
        if name:
            start = place + _ENTRY.size
            log.map[start : start + len(name)] = name
        log.end = end = place + length
        _LENGTH.pack_into(log.map, _LENGTH_OFFSET, end)
        if self._former is not None and not self._is_moving:
            self._move()
        return place | log.number & 1

    # --- two logs ---

    def _continue(self) -> None:
        new = f"{self._path}.new"
        log = _Log(new, self._size, self._log.number + 1)
        os.replace(new, _continuation(self._path))
        self._former, self._log = self._log, log

    def _move(self) -> None:
        """A few objects more. After the last, nobody needs the former log."""
        if self._moves is None:
            self._moves = self.living()
        self._is_moving = True
        try:
            for _ in range(limits.LEDGER_MOVES):
                if next(self._moves, _END) is _END:
                    self._end_former()
                    break
        finally:
            self._is_moving = False

    def _end_former(self) -> None:
        assert self._former is not None
        os.replace(_continuation(self._path), self._path)
        self._former.close()
        self._former = self._moves = None
        self._until = min(self._size, max(self._size // 8, 3 * self._log.end))


_END = object()


def _continuation(path: str) -> str:
    return path + ".next"


def _header(path: str) -> tuple[int, int]:
    """Length and number of a log. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        head = file.read(_START)
        if len(head) < _START or head[:8] != _MAGIC:
            raise ValueError(f"{path} is no ledger")
        _, end, number = _HEADER.unpack(head)
        if os.fstat(file.fileno()).st_size < end:
            raise ValueError(f"{path} is cut short")
    return end, number


def _is_continued(path: str, number: int) -> bool:
    try:
        return _header(_continuation(path))[1] == number + 1
    except FileNotFoundError:
        return False


def read(path: str) -> Iterator[Entry]:
    """The entries a former process left. Raises OSError, ValueError: there is none, or none that is whole."""
    end, number = _header(path)
    yield from _entries(path, end, number)
    if _is_continued(path, number):
        yield from _entries(_continuation(path), *_header(_continuation(path)))


def _entries(path: str, end: int, number: int) -> Iterator[Entry]:
    with open(path, "rb") as file:
        data = file.read(end)
    place = _START
    while place < end:
        kind, is_directory, name_bytes, references, node_id, inode, device, parent = _ENTRY.unpack_from(
            data, place
        )
        start = place + _ENTRY.size
        yield Entry(
            kind,
            place | number & 1,
            references,
            node_id,
            inode,
            device,
            bool(is_directory),
            parent,
            data[start : start + name_bytes],
        )
        place += (_ENTRY.size + name_bytes + 7) & -8


class Known(NamedTuple):
    """An object as it was known at the end of a ledger."""

    id: int
    inode: int
    device: int
    is_directory: bool
    references: int
    names: list[tuple[int, bytes]]  # (parent, name)
    place: int  # for `Ledger.references`


def known(entries: Iterator[Entry]) -> dict[int, Known]:
    """What was alive at the end, parents in any order. Pure.

    An object that has moved to another log has just the names that are told there: all of them, before its
    place. One that only the former log has was on its way out when the process was killed: it ends with that
    log.
    """
    alive: dict[int, Known] = {}
    moving: dict[
        int, list[tuple[int, bytes]]
    ] = {}  # names told in another log than that of the object's place
    for entry in entries:
        kind, place, references, node_id, inode, device, is_directory, parent, name = entry
        found = alive.get(node_id)
        if kind == _FORGOTTEN:
            alive.pop(node_id, None)
            moving.pop(node_id, None)
        elif kind == _GONE:
            for names in (found.names if found is not None else [], moving.get(node_id, [])):
                while (parent, name) in names:
                    names.remove((parent, name))
        else:
            if found is None:
                found = alive[node_id] = Known(node_id, inode, device, is_directory, references, [], place)
            elif kind == _OBJECT:
                names = moving.pop(node_id, []) if (found.place ^ place) & 1 else found.names  # moved
                found = alive[node_id] = found._replace(references=references, place=place, names=names)
            if parent:
                if (parent, name) not in found.names:
                    found.names.append((parent, name))
                if (found.place ^ place) & 1:
                    moving.setdefault(node_id, []).append((parent, name))
    return alive
