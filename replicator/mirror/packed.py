"""Many small files of one directory in one piece: read and written with as few steps for each as it takes.

Only files that are nothing special, as in `alike.py`: regular, with one name, no extended attributes, no
holes. Whatever else a directory holds goes its own way.
"""

import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from replicator.fs.many_states import read_states, with_xattrs
from replicator.mirror.pieces import Content, Files

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Packed(NamedTuple):
    """`files` None: there are no such files."""

    files: Files | None
    names: int  # so many of the names were looked at, from the first on
    others: list[bytes]  # of these, what is not in `files`
    inodes: Sequence[int]  # of what is
    size: int


def pack(
    descriptor: int,
    directory: bytes,
    names: Sequence[bytes],
    wanted: Callable[[Sequence[int]], Sequence[int]],
    bytes_max: int,
    size_max: int,
) -> Packed:
    """Those of `names` of the open directory that together have about `bytes_max` bytes, and none more than
    `size_max`. `wanted`: indices of inodes that are to be sent whole. OSError.
    """
    states = read_states(descriptor, names)
    sizes, full = states.sizes(), states.full()
    total = looked = 0
    for size in sizes:
        looked += 1
        total += size
        if total >= bytes_max:
            break
    some = set(wanted(states.inodes()))
    plain = states.plain()
    kept = [
        index
        for index in range(looked)
        if index in some and plain[index] and full[index] and sizes[index] <= size_max
    ]
    if kept:
        special = set(with_xattrs(descriptor, [names[index] for index in kept]))
        kept = [index for place, index in enumerate(kept) if place not in special]
    contents: list[bytes] = []
    read: list[int] = []
    for index in kept:
        content = _content(descriptor, names[index], sizes[index])
        if content is not None:
            contents.append(content)
            read.append(index)
    before = states.chosen(read)
    # After the contents: attributes must not be older than these. What changed meanwhile is read by itself.
    after = read_states(descriptor, before.names)
    changed = {
        place for place, (a, b) in enumerate(zip(before.versions(), after.versions(), strict=True)) if a != b
    }
    if changed:
        contents = [content for place, content in enumerate(contents) if place not in changed]
        read = [index for place, index in enumerate(read) if place not in changed]
        after = after.chosen([place for place in range(len(after.names)) if place not in changed])
    packed = set(read)
    others = [names[index] for index in range(looked) if index not in packed]
    if not read:
        return Packed(None, looked, others, (), 0)
    entry = Files(directory, tuple(after.names), after.states(), Content(b"".join(contents)))
    return Packed(entry, looked, others, after.inodes(), len(entry.data))


def _content(directory: int, name: bytes, size: int) -> bytes | None:
    """All of it, if there is so much."""
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except OSError:
        return None
    try:
        content = os.pread(descriptor, size, 0) if size else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return content if len(content) == size else None


class PackedFile(NamedTuple):
    """One of them, on the target."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    offset: int  # of its content
    end: int


def unpack(entry: Files) -> list[PackedFile] | None:
    """None: it is malformed."""
    words = memoryview(entry.states).cast("Q") if len(entry.states) % 8 == 0 else memoryview(b"")
    count = len(entry.names)
    if len(words) != 5 * count:
        return None
    owners, modes, sizes, seconds, rest = (
        words[start : start + count].tolist() for start in range(0, 5 * count, count)
    )
    files: list[PackedFile] = []
    offset = 0
    for name, owner, mode, size, second, ns in zip(
        entry.names, owners, modes, sizes, seconds, rest, strict=True
    ):
        if mode >> 32 & 0o170000 != stat.S_IFREG:
            return None
        mtime_ns = (second - (1 << 64) if second >> 63 else second) * 10**9 + (ns & 0xFFFFFFFF)
        end = offset + size
        files.append(
            PackedFile(name, mode >> 32 & 0o7777, owner >> 32, mode & 0xFFFFFFFF, mtime_ns, offset, end)
        )
        offset = end
    return files if offset == len(entry.data) else None
