"""A regular file with all it holds, as one record: for a file that gets its first name when it is complete.

A program made it without a name (O_TMPFILE), wrote it, and then linked it: it came to be at once, and so it
has to on a target. The payload of its record:

    size, 8 bytes | number of xattrs, 4 | number of extents, 4 | attributes, 40
    offset, 8 | length, 8                                            for each extent
    bytes of the name, 2 | bytes of the value, 4 | name | value      for each xattr
    the data of the extents, one after another

Extents are in order; what is in none of them is a hole.
"""

import errno
import os
import struct
from typing import NamedTuple

from replicator.fs import unfinished
from replicator.fs.attributes import (
    Xattrs,
    attributes_of,
    data_extents,
    is_replicated_xattr,
    read_xattrs,
    set_attributes,
    write_at,
    write_xattrs,
)
from replicator.ops import Attributes

_HEAD = struct.Struct("<QII")
_EXTENT = struct.Struct("<QQ")
_XATTR = struct.Struct("<HI")
_ATTRIBUTES_BYTES = len(Attributes().encode())


class WholeFile(NamedTuple):
    """Content in memory. `data` may be a view that lives as long as its buffer."""

    attributes: Attributes
    size: int
    xattrs: Xattrs
    extents: tuple[tuple[int, int], ...]  # (offset, length)
    data: bytes | memoryview

    def encode(self) -> bytes:
        parts: list[bytes | memoryview] = [
            _HEAD.pack(self.size, len(self.xattrs), len(self.extents)),
            self.attributes.encode(),
            *(_EXTENT.pack(*extent) for extent in self.extents),
        ]
        for name, value in self.xattrs.items():
            parts += (_XATTR.pack(len(name), len(value)), name, value)
        return b"".join([*parts, self.data])

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> "WholeFile":
        """ValueError: malformed."""
        view = memoryview(payload)
        try:
            return cls._decode(view)
        except struct.error:
            raise ValueError("a file cut short") from None

    @classmethod
    def _decode(cls, view: memoryview) -> "WholeFile":
        size, xattr_count, extent_count = _HEAD.unpack_from(view)
        attributes = Attributes.decode(view[_HEAD.size :])
        position = _HEAD.size + _ATTRIBUTES_BYTES
        extents: list[tuple[int, int]] = []
        end = 0
        for _ in range(extent_count):
            offset, length = _EXTENT.unpack_from(view, position)
            if offset < end or offset + length > size:
                raise ValueError("a file with extents outside of it, or out of order")
            extents.append((offset, length))
            end = offset + length
            position += _EXTENT.size
        xattrs: Xattrs = {}
        for _ in range(xattr_count):
            name_bytes, value_bytes = _XATTR.unpack_from(view, position)
            start = position + _XATTR.size
            position = start + name_bytes + value_bytes
            name = bytes(view[start : start + name_bytes])
            if is_replicated_xattr(name):
                xattrs[name] = bytes(view[start + name_bytes : position])
        data = view[position:]
        if sum(length for _, length in extents) != len(data):
            raise ValueError("a file whose extents do not describe its data")
        return cls(attributes, size, xattrs, tuple(extents), data)


def read_whole(descriptor: int, bytes_max: int) -> WholeFile:
    """All that a file open for reading holds. OSError: EFBIG for data and xattrs of more than `bytes_max`."""
    state = os.fstat(descriptor)
    xattrs = read_xattrs(descriptor, readable=True)
    room = bytes_max - sum(len(name) + len(value) for name, value in xattrs.items())
    extents: list[tuple[int, int]] = []
    for offset, length in data_extents(descriptor, state.st_size):
        room -= length + _EXTENT.size
        extents.append((offset, length))
        if room < 0:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    data = b"".join(_read_exactly(descriptor, length, offset) for offset, length in extents)
    return WholeFile(attributes_of(state), state.st_size, xattrs, tuple(extents), data)


def place_whole(whole: WholeFile, directory: int, name: bytes, hidden: bytes) -> None:
    """Make the file in a directory where nothing has its name (FileExistsError); nobody sees less than all.

    `hidden`: see `unfinished`. Raises OSError; nothing is there then.
    """
    descriptor, temporary = unfinished.begin(directory, hidden)
    try:
        position = 0
        view = memoryview(whole.data)
        for offset, length in whole.extents:
            write_at(descriptor, view[position : position + length], offset)
            position += length
        os.ftruncate(descriptor, whole.size)
        set_attributes(descriptor, whole.attributes)
        write_xattrs(descriptor, whole.xattrs)
        unfinished.finish(descriptor, temporary, directory, name)
    except BaseException:
        if temporary is not None:
            unfinished.unlink_quietly(directory, temporary)
        raise
    finally:
        os.close(descriptor)


def _read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:  # somebody cut it short in the storage below
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return data
