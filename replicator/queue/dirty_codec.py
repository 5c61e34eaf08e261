"""Dirty maps as bytes: in HOLE records, and wherever one is kept. FORMAT.md has the layout.

Entries follow one another with their directories before them; a path is given by what it shares with the one
before. Nothing is allocated because a number in the data says so: each entry has its bytes there.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator

import xxhash

from replicator import limits
from replicator.errors import JournalError
from replicator.queue import regions
from replicator.queue.dirty_entry import OF_DIRECTORIES, Scope

VERSION = 1
_MAGIC = b"RDM\x01"
_HEADER = struct.Struct("<4sHHQ")  # magic, version, 0, xxh3_64 of all that follows
_ENTRY = struct.Struct("<HHBBHQI")  # shared, suffix, scope, 0, boundaries, inode, generation
HEADER_BYTES = _HEADER.size

_KNOWN = int(sum(Scope))
_SAYING = _KNOWN & ~int(Scope.DIRECTORY)
_FILE_ONLY = int(Scope.WHOLE | Scope.LINKED)

Item = tuple[bytes, int, int, "array[int] | None"]
"""(path, scope, identity as one number, boundaries of the regions)"""


class CorruptDirtyMap(JournalError):
    """Bytes that are no dirty map."""


def encode(items: Iterable[Item]) -> bytes:
    parts = [b""]
    former = b""
    for path, scope, identity, bounds in items:
        shared = _shared(former, path)
        suffix = path[shared:]
        count = 0 if bounds is None else len(bounds)
        inode, generation = identity & (1 << 64) - 1, identity >> 64
        parts.append(_ENTRY.pack(shared, len(suffix), scope, 0, count, inode, generation))
        parts.append(suffix)
        if bounds is not None:
            parts.append(_little(bounds).tobytes())
        former = path
    body = b"".join(parts)
    return _HEADER.pack(_MAGIC, VERSION, 0, xxhash.xxh3_64_intdigest(body)) + body


def items(data: bytes | memoryview) -> Iterator[Item]:
    """The entries in `data`, each verified before it is yielded. Raises CorruptDirtyMap at the first that is
    not right; the checksum comes before all.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        raise CorruptDirtyMap("dirty map cut short")
    magic, version, reserved, checksum = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != VERSION or reserved:
        raise CorruptDirtyMap(f"no dirty map of version {VERSION}")
    if checksum != xxhash.xxh3_64_intdigest(view[HEADER_BYTES:]):
        raise CorruptDirtyMap("checksum of the dirty map does not fit")
    offset = HEADER_BYTES
    former = b""
    while offset < len(view):
        if len(view) - offset < _ENTRY.size:
            raise CorruptDirtyMap(f"entry at byte {offset} cut short")
        shared, suffix, scope, zero, count, inode, generation = _ENTRY.unpack_from(view, offset)
        start = offset + _ENTRY.size
        middle = start + suffix
        end = middle + 8 * count
        if shared > len(former) or shared + suffix > limits.PATH_BYTES or end > len(view):
            raise CorruptDirtyMap(f"entry at byte {offset} has no such path or regions")
        path = former[:shared] + bytes(view[start:middle])
        bounds = None
        if count:
            bounds = array(regions.type_code, bytes(view[middle:end]))
            bounds = _little(bounds)
        if zero or not _is_entry(path, scope, bounds):
            raise CorruptDirtyMap(f"entry at byte {offset} says what no entry can")
        yield path, scope, generation << 64 | inode, bounds
        former = path
        offset = end


def _is_entry(path: bytes, scope: int, bounds: "array[int] | None") -> bool:
    if path and any(name in (b"", b".", b"..") or b"\0" in name for name in path.split(b"/")):
        return False
    if scope & ~_KNOWN or not (scope & _SAYING or bounds):
        return False
    if scope & OF_DIRECTORIES and (scope & _FILE_ONLY or bounds):
        return False
    if scope & Scope.TREE and (scope != Scope.TREE or bounds):
        return False
    if scope & Scope.WHOLE and (scope & Scope.ATTRIBUTES or bounds):
        return False
    return bounds is None or regions.is_valid(bounds)


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # the first `low` bytes are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle
    return low


def _little(bounds: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        return bounds
    swapped = array(regions.type_code, bounds)
    swapped.byteswap()
    return swapped
