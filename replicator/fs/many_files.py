"""Many small files and symbolic links of one directory: make them, or read them whole.

Done by `_many.c`, as the interpreter takes half as long as the kernel for each of them. Where that could not
be built, none is made, and they are read one by one.
"""

import os
import stat
from array import array
from collections.abc import Sequence

from replicator.fs.unfinished import CREATE_FLAGS

try:
    from replicator.fs import _many
except ImportError:  # there was no compiler
    _many = None  # type: ignore[assignment]

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_many(
    directory: int, names: Sequence[bytes], kinds: Sequence[int], sizes: Sequence[int]
) -> tuple[bytearray, bytes]:
    """Contents of regular files, or (S_IFLNK of `kinds`) texts of symbolic links, one behind another, so many
    bytes of each; and a byte for each: 0 if it has not so many, or cannot be read.
    """
    into = bytearray(sum(sizes))
    read = _read_one_by_one if _many is None else _many.contents
    return into, read(directory, names, array("Q", kinds), array("Q", sizes), _READ, into)


def _read_one_by_one(
    directory: int,
    names: Sequence[bytes],
    kinds: Sequence[int],
    sizes: Sequence[int],
    flags: int,
    into: bytearray,
) -> bytes:
    """What `_many.contents` does."""
    read, offset = bytearray(), 0
    for name, kind, size in zip(names, kinds, sizes, strict=True):
        try:
            content = (
                os.readlink(name, dir_fd=directory)
                if kind == stat.S_IFLNK
                else _read(directory, name, flags, size)
            )
        except OSError:
            content = None
        read.append(content is not None and len(content) == size)
        if content is not None and read[-1]:
            into[offset : offset + size] = content
        offset += size
    return bytes(read)


def _read(directory: int, name: bytes, flags: int, size: int) -> bytes:
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        return os.pread(descriptor, size, 0) if size else b""
    finally:
        os.close(descriptor)


def make_many(directory: int, names: Sequence[bytes], states: bytes, contents: memoryview) -> tuple[int, int]:
    """Arguments and result as of `_many.make`. The umask is 0, and nothing is inherited of the directory."""
    return (0, 0) if _many is None else _many.make(directory, names, states, contents, CREATE_FLAGS)
