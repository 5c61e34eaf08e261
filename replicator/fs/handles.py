"""What an application's open file or directory is on our side."""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from replicator import limits
from replicator.fs.calls import getdents
from replicator.fs.nodes import Node

_ENTRY = struct.Struct("=QqHB")  # linux_dirent64: inode, position behind it, length, type; then the name
_buffer = ctypes.create_string_buffer(limits.DIRECTORY_READ_BYTES)  # used within one call only


class FileHandle:
    """An open regular file. `descriptor` is also the number the kernel knows it by."""

    __slots__ = ("descriptor", "node", "synchronous", "writable")

    def __init__(self, descriptor: int, node: Node, writable: bool, synchronous: bool) -> None:
        self.descriptor = descriptor
        self.node = node
        self.writable = writable
        self.synchronous = synchronous  # O_SYNC or O_DSYNC: whoever replies to a write syncs first


class Name(NamedTuple):
    """One name of a directory, "." and ".." included. `position` is where reading goes on after it."""

    name: bytes
    position: int
    inode: int
    type: int  # d_type


class DirectoryHandle:
    """An open directory, read as a stream: only what one system call gives is in memory.

    Positions are those of the file system below, which promises that a name that stays is neither left out
    nor repeated while others come and go. (Inode numbers would not do: they repeat among hard links.)
    """

    __slots__ = ("_at", "_names", "_next", "descriptor", "node")

    def __init__(self, descriptor: int, node: Node) -> None:
        self.descriptor = descriptor
        self.node = node
        self._names: list[Name] = []
        self._next = 0  # index of the first of them not consumed
        self._at = 0  # its position

    def names(self, position: int) -> Iterator[Name]:
        """Names from `position` on (0: from the start, as it is now).

        One is consumed when the next is asked for. Raises OSError.
        """
        if position != self._at or position == 0:
            os.lseek(self.descriptor, position, os.SEEK_SET)
            self._names, self._next, self._at = [], 0, position
        while True:
            while self._next < len(self._names):
                entry = self._names[self._next]
                yield entry
                self._next += 1
                self._at = entry.position
            count = getdents(self.descriptor, _buffer)
            if not count:
                return
            self._names, self._next = list(_parse(_buffer.raw[:count])), 0


def _parse(data: bytes) -> Iterator[Name]:
    offset = 0
    while offset < len(data):
        inode, position, length, kind = _ENTRY.unpack_from(data, offset)
        start = offset + _ENTRY.size
        yield Name(data[start : data.index(0, start)], position, inode, kind)
        offset += length
