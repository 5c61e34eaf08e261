"""Take objects out of a tree: removed, or moved to another directory, which may be on another file system.

What is moved keeps content, holes, mode, owner, times and xattrs. It is in its new place durably before it
leaves the old one, or moves in one step; a name that is taken there gets a number. The directory that
something is taken out of keeps its mtime: it is that of a source's directory which never had it.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from replicator import limits
from replicator.fs import calls
from replicator.fs.attributes import (
    attributes_of,
    data_extents,
    read_xattrs,
    set_attributes,
    set_times,
    write_at,
    write_xattrs,
)
from replicator.fs.beneath import Root
from replicator.fs.unfinished import CREATE_FLAGS, UNFINISHED_MODE, unlink_quietly
from replicator.ops import RENAME_NOREPLACE

_UNFINISHED = b".replicator-moving"
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS})
_NO_DIRECTORY = frozenset({errno.ENOTDIR, errno.ELOOP})


class ChangedMeanwhile(Exception):
    """It was changed while it was copied: it stays where it is."""


@contextmanager
def keeping_time(directory: int) -> Iterator[None]:
    """Names of this open directory are taken out within the block."""
    mtime_ns = os.fstat(directory).st_mtime_ns
    yield
    set_times(directory, None, mtime_ns)


def remove(root: Root, path: bytes) -> None:
    """Remove one object; a directory must be empty. OSError."""
    directory, name = root.parent(path)
    is_directory = stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    with keeping_time(directory):
        if is_directory:
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    root.forget_below(path)


class Store:
    """A directory that takes what is moved. It, and all that has to be made in it, is for its owner only."""

    def __init__(self, path: str) -> None:
        """OSError if it is none and cannot be made."""
        _make_durably(path)
        self._root = Root(path)

    def close(self) -> None:
        self._root.close()

    def move(
        self, source: Root, path: bytes, wanted: bytes, about_to: Callable[[bytes], None]
    ) -> Generator[None]:
        """Move the object at `path` to `wanted` here; a directory must be empty. Between two steps others may
        change the tree, but for this object. OSError, ChangedMeanwhile.

        `about_to` hears where a copy goes before it is there: whoever is killed then finds it, see `has`.
        """
        directory, name = source.parent(path)
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(state.st_mode):
            self._move_directory(directory, name, state, wanted)
            source.forget_below(path)
            return
        head, _, own_name = wanted.rpartition(b"/")
        head = self._directory(head)
        try:
            with keeping_time(directory):
                _named(own_name, lambda new: _rename(directory, name, self._root.directory(head), new))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            source.forget(path)
            return
        owned = os.dup(directory), self._root.open_directory(head)
        try:
            yield from self._copy(*owned, name, state, head, own_name, about_to)
        finally:
            for descriptor in owned:
                os.close(descriptor)
        source.forget(path)

    def has(self, path: bytes, size: int, mtime_ns: int) -> bool:
        """Whether a copy of such a file is at `path`, complete: it gets its name last."""
        try:
            directory, name = self._root.parent(path)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return state.st_size == size and state.st_mtime_ns == mtime_ns

    # --- directories ---

    def _directory(self, path: bytes) -> bytes:
        """Where the directory `path` is here: made, with all above it."""
        made = b""
        for name in path.split(b"/") if path else ():
            made = self._sub_directory(made, name)
        return made

    def _sub_directory(self, above: bytes, name: bytes) -> bytes:
        for candidate in _numbers(name):
            path = above + b"/" + candidate if above else candidate
            try:
                self._root.directory(path)
                return path
            except FileNotFoundError:
                parent = self._root.directory(above)
                os.mkdir(candidate, 0o700, dir_fd=parent)
                os.fsync(parent)
                return path
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
        raise AssertionError("numbers never end")

    def _move_directory(self, directory: int, name: bytes, state: os.stat_result, wanted: bytes) -> None:
        made = self._root.directory(self._directory(wanted))
        xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name))
        with keeping_time(directory):
            os.rmdir(name, dir_fd=directory)
        set_attributes(made, attributes_of(state))
        write_xattrs(made, xattrs)
        set_times(made, state.st_atime_ns, state.st_mtime_ns)

    # --- copies ---

    def _copy(
        self,
        source: int,
        here: int,
        name: bytes,
        state: os.stat_result,
        head: bytes,
        own_name: bytes,
        about_to: Callable[[bytes], None],
    ) -> Iterator[None]:
        unlink_quietly(here, _UNFINISHED)
        try:
            if stat.S_ISREG(state.st_mode):
                yield from _copy_file(source, name, here, state)
            else:
                _copy_object(source, name, here, state)

            def take(new: bytes) -> None:
                about_to(head + b"/" + new if head else new)
                _rename(here, _UNFINISHED, here, new)

            now = os.stat(name, dir_fd=source, follow_symlinks=False)
            if (now.st_ino, now.st_ctime_ns) != (state.st_ino, state.st_ctime_ns):
                raise ChangedMeanwhile
            _named(own_name, take)
        except BaseException:
            unlink_quietly(here, _UNFINISHED)
            raise
        os.fsync(here)
        with keeping_time(source):
            os.unlink(name, dir_fd=source)


def _copy_file(source: int, name: bytes, here: int, state: os.stat_result) -> Iterator[None]:
    old = os.open(name, _READ_FLAGS, dir_fd=source)
    try:
        new = os.open(_UNFINISHED, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=here)
        try:
            os.ftruncate(new, state.st_size)
            for start, length in data_extents(old, state.st_size):
                end = start + length
                while start < end and (data := os.pread(old, min(limits.MOVE_BYTES, end - start), start)):
                    write_at(new, data, start)
                    start += len(data)
                    yield
            set_attributes(new, attributes_of(state))
            write_xattrs(new, read_xattrs(old, readable=True))
            set_times(new, state.st_atime_ns, state.st_mtime_ns)
            os.fsync(new)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_object(source: int, name: bytes, here: int, state: os.stat_result) -> None:
    if stat.S_ISLNK(state.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), _UNFINISHED, dir_fd=here)
    else:
        os.mknod(_UNFINISHED, stat.S_IFMT(state.st_mode) | UNFINISHED_MODE, state.st_rdev, dir_fd=here)
    set_attributes(here, attributes_of(state), name=_UNFINISHED)
    xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (source, name))
    write_xattrs(b"/proc/self/fd/%d/%s" % (here, _UNFINISHED), xattrs)
    set_times(here, state.st_atime_ns, state.st_mtime_ns, name=_UNFINISHED)


# --- names ---


def _numbers(name: bytes) -> Iterator[bytes]:
    """The name, then it with a number, so that it still is one."""
    yield name
    number = 0
    while True:
        number += 1
        suffix = b".%d" % number
        yield name[: limits.NAME_BYTES - len(suffix)] + suffix


def _named(name: bytes, take: Callable[[bytes], None]) -> None:
    """`take` the first of these names that nobody has."""
    for candidate in _numbers(name):
        try:
            take(candidate)
            return
        except FileExistsError:
            pass


def _rename(old_directory: int, old: bytes, new_directory: int, new: bytes) -> None:
    """Without replacing anything. OSError EEXIST."""
    try:
        calls.renameat2(old_directory, old, new_directory, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _NO_FLAG:
            raise
        os.link(old, new, src_dir_fd=old_directory, dst_dir_fd=new_directory, follow_symlinks=False)
        os.unlink(old, dir_fd=old_directory)


def _make_durably(path: str) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_durably(parent)
    os.mkdir(path, 0o700)
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
