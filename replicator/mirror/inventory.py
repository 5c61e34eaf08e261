"""What is in a tree, as a stream in one fixed order, so that two of them are compared in bounded memory.

A directory comes before what is in it, names in the order of their bytes. Nothing but attributes is read.
"""

import errno
import os
import stat
from collections.abc import Iterator

import msgspec
import xxhash

from replicator.fs.attributes import read_xattrs
from replicator.mirror.scan import Source, join

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One object. `path` is relative to the root of the tree; the root itself is b""."""

    path: bytes
    mode: int  # with its type, as in stat(2)
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0  # of regular files
    rdev: int = 0
    text: bytes = b""  # of symbolic links
    xattrs: int = 0  # digest of names and values; 0: none
    links: int = 1  # of what is no directory

    @property
    def key(self) -> tuple[bytes, ...]:
        """Items of a stream ascend by it."""
        return tuple(self.path.split(b"/")) if self.path else ()

    @property
    def type(self) -> int:
        return stat.S_IFMT(self.mode)


def items(source: Source) -> Iterator[Item]:
    """All of the set in the tree. Blocks. OSError if a directory cannot be read."""
    for root in sorted(source.filter.roots, key=lambda path: path.split(b"/")):
        try:
            directory_fd = source.root.open_directory(root.rpartition(b"/")[0])
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        try:
            found = _item(directory_fd, root.rpartition(b"/")[2] or b".", root)
        finally:
            os.close(directory_fd)
        if found is not None:
            yield from _walk(source, found)


def _walk(source: Source, top: Item) -> Iterator[Item]:
    pending = [iter([top])]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        if stat.S_ISDIR(found.mode):
            if not source.filter.may_contain(found.path):
                continue
            yield found
            pending.append(iter(_children(source, found.path)))
        elif source.filter.includes(found.path):
            yield found


def _children(source: Source, directory: bytes) -> list[Item]:
    try:
        directory_fd = source.root.open_directory(directory)
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise
    try:
        if os.fstat(directory_fd).st_dev != source.root.device:
            return []  # another file system, which is none of ours
        names = sorted(map(os.fsencode, os.listdir(directory_fd)))
        found = (_item(directory_fd, name, join(directory, name)) for name in names)
        return [item for item in found if item is not None]
    finally:
        os.close(directory_fd)


def _item(directory_fd: int, name: bytes, path: bytes) -> Item | None:
    try:
        state = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        text = os.readlink(name, dir_fd=directory_fd) if stat.S_ISLNK(state.st_mode) else b""
        xattrs = read_xattrs(f"/proc/self/fd/{directory_fd}/".encode() + name)
    except FileNotFoundError:
        return None
    is_file, is_device = (
        stat.S_ISREG(state.st_mode),
        stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode),
    )
    return Item(
        path,
        state.st_mode,
        state.st_uid,
        state.st_gid,
        state.st_mtime_ns,
        state.st_size if is_file else 0,
        state.st_rdev if is_device else 0,
        text,
        _digest(xattrs),
        1 if stat.S_ISDIR(state.st_mode) else state.st_nlink,
    )


def _digest(xattrs: dict[bytes, bytes]) -> int:
    if not xattrs:
        return 0
    digest: int = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(sorted(xattrs.items())))
    return digest & (1 << 63) - 1 or 1
