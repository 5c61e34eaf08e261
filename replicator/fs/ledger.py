"""What a successor of a killed capture has to know of the kernel's objects: a log in mapped memory.

It lies beside the journal's memory tier, so it outlives any process but not the host. Entries are only ever
appended; the number of references the kernel holds is kept up to date within the entry that introduced the
object. What was appended counts from the moment the length at the beginning says so. A full log is written
anew from what is alive.
"""

import errno
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from replicator import limits

_MAGIC = b"RLEDGER1"
_LENGTH = struct.Struct("<Q")
_LENGTH_OFFSET = 8
_START = 16
_ENTRY = struct.Struct("<BBHIQQQQ")  # kind, directory, name bytes, references, id, inode, device, parent
_REFERENCES = struct.Struct("<I")
_REFERENCES_OFFSET = 4
_NAME, _GONE, _FORGOTTEN = 1, 2, 3
_STEP_BYTES = 1 << 20


class Entry(NamedTuple):
    """One line. `parent` 0: no name, as of an object that never had one."""

    kind: int
    place: int  # of the entry in the file
    references: int
    id: int
    inode: int
    device: int
    is_directory: bool
    parent: int
    name: bytes


Named = tuple[int, int, int, bool, int, int, bytes]
"""An object and a name it stands at, as `Ledger.named` is told."""


class Ledger:
    """Written by one process. Errors of the file cost the log, and with it a successor's resumption only."""

    def __init__(self, path: str, *, keep: bool = False, size: int = limits.LEDGER_BYTES) -> None:
        """A new one, in place of what is there; with `keep` not before the first `begin`. Raises OSError."""
        self._path = path
        self._size = size
        self.rewrite: Callable[[], None] | None = None
        """Called when it is full, by an append: whoever knows what is alive begins anew (see `begin`)."""
        self._open(path + ".first" if keep else path)

    def _open(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._end = _START
        self._allocated = 0
        os.ftruncate(self._descriptor, self._size)
        self._map = mmap.mmap(self._descriptor, self._size)
        self._allocate(_START)
        self._map[:8] = _MAGIC
        _LENGTH.pack_into(self._map, _LENGTH_OFFSET, _START)

    def _allocate(self, end: int) -> None:
        """Memory for all up to `end`: a store where there is none would end the process."""
        while self._allocated < end:
            step = min(_STEP_BYTES, self._size - self._allocated)
            os.posix_fallocate(self._descriptor, self._allocated, step)
            self._allocated += step

    def close(self) -> None:
        self._map.close()
        os.close(self._descriptor)

    def remove(self) -> None:
        """Nobody will need it."""
        self.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    # --- writing ---

    def named(
        self,
        node_id: int,
        inode: int,
        device: int,
        is_directory: bool,
        references: int,
        parent: int,
        name: bytes,
    ) -> int:
        """An object stands at a name. Returns the place for `references`."""
        return self._append(_NAME, is_directory, references, node_id, inode, device, parent, name)

    def gone(self, node_id: int, parent: int, name: bytes) -> None:
        """It does not stand there any more."""
        self._append(_GONE, False, 0, node_id, 0, 0, parent, name)

    def forgotten(self, node_id: int) -> None:
        """Neither the kernel nor anything of ours refers to it."""
        self._append(_FORGOTTEN, False, 0, node_id, 0, 0, 0, b"")

    def references(self, place: int, count: int) -> None:
        _REFERENCES.pack_into(self._map, place + _REFERENCES_OFFSET, max(count, 0))

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
        place = self._end
        length = (_ENTRY.size + len(name) + 7) & -8
        if place + length > self._size:
            if self.rewrite is not None:
                self.rewrite()
                place = self._end
            if place + length > self._size:
                raise OSError(errno.ENOSPC, "too many objects", self._path)
        if place + length > self._allocated:
            self._allocate(place + length)
        mapped = self._map
        _ENTRY.pack_into(
            mapped, place, kind, is_directory, len(name), references, node_id, inode, device, parent
        )
        if name:
            start = place + _ENTRY.size
            mapped[start : start + len(name)] = name
        self._end = end = place + length
        _LENGTH.pack_into(mapped, _LENGTH_OFFSET, end)
        return place

    def begin(self, names: Iterable[Named]) -> "array[int]":
        """Begin anew: what is alive replaces all there is, at once. Returns the places for `references`.

        Of hundreds of thousands, while applications wait: so this is one loop, and makes nothing in memory.
        """
        old_map, old_descriptor, new = self._map, self._descriptor, self._path + ".new"
        self._open(new)
        mapped, pack_into, head, end, allocated = self._map, _ENTRY.pack_into, _ENTRY.size, _START, 0
        places = array("Q")
        for node_id, inode, device, is_directory, references, parent, name in names:
            place, name_bytes = end, len(name)
            start = place + head
            end = (start + name_bytes + 7) & -8
            if end > allocated:
                if end > self._size:
                    raise OSError(errno.ENOSPC, "too many objects", self._path)
                self._allocate(end)
                allocated = self._allocated
            pack_into(
                mapped, place, _NAME, is_directory, name_bytes, references, node_id, inode, device, parent
            )
            mapped[start : start + name_bytes] = name
            places.append(place)
        self._end = end
        _LENGTH.pack_into(mapped, _LENGTH_OFFSET, end)
        os.replace(new, self._path)
        with suppress(FileNotFoundError):
            os.unlink(self._path + ".first")
        old_map.close()
        os.close(old_descriptor)
        return places


def read(path: str) -> Iterator[Entry]:
    """The entries a former process left. Raises OSError, ValueError: there is none, or none that is whole."""
    with open(path, "rb") as file:
        head = file.read(_START)
        if len(head) < _START or head[:8] != _MAGIC:
            raise ValueError(f"{path} is no ledger")
        (end,) = _LENGTH.unpack_from(head, _LENGTH_OFFSET)
        file.seek(0)
        data = file.read(end)
    if len(data) != end:
        raise ValueError(f"{path} is cut short")
    place = _START
    while place < end:
        kind, is_directory, name_bytes, references, node_id, inode, device, parent = _ENTRY.unpack_from(
            data, place
        )
        start = place + _ENTRY.size
        yield Entry(
            kind,
            place,
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


def known(entries: Iterator[Entry]) -> dict[int, Known]:
    """What was alive at the end, parents in any order. Pure."""
    alive: dict[int, Known] = {}
    for entry in entries:
        if entry.kind == _NAME:
            found = alive.get(entry.id)
            if found is None:
                found = alive[entry.id] = Known(
                    entry.id, entry.inode, entry.device, entry.is_directory, entry.references, []
                )
            if entry.parent and (entry.parent, entry.name) not in found.names:
                found.names.append((entry.parent, entry.name))
        elif entry.kind == _GONE:
            found = alive.get(entry.id)
            if found is not None and (entry.parent, entry.name) in found.names:
                found.names.remove((entry.parent, entry.name))
        elif entry.kind == _FORGOTTEN:
            alive.pop(entry.id, None)
    return alive
