"""The lock of a copy: while a connection keeps it, nobody else writes there, or even reads (DK-01…03).

A lock is a mount over the directory of the copy: the same directory again, read only, or an empty file
system. It is the kernel's, so it outlives every process of ours; it is known again by what it is
(`mounts.is_lock`), so nothing has to be remembered. Whoever applies changes has opened the directory beneath
it. Other file systems, mounted inside, stay as they are where one may read.

It keeps away accidents, not root: who may unmount can take it away. A file that somebody had open before, and
another way to the same directory, are not closed by it.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence

from replicator.errors import ReplicatorError
from replicator.fs import mounts
from replicator.repset import is_inside
from replicator.status import TargetLock

_EMPTY = b"size=4k,nr_inodes=1,mode=000"

_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_PRIVATE = 1 << 18
_MOUNT_SETATTR = 442  # the same number on every architecture; since Linux 5.12
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR = struct.Struct("=QQQQ")  # attr_set, attr_clr, propagation, userns_fd
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class LockError(ReplicatorError):
    """A copy cannot be locked as its connection wants it."""


def places(targets: Iterable[str | bytes]) -> list[str]:
    """Where the locks of these directories belong: free of links, none inside another."""
    real = sorted({os.path.realpath(os.fsdecode(target)) for target in targets})
    return [path for path in real if not any(is_inside(path, other) for other in real if other != path)]


def check(targets: Iterable[str | bytes], entries: Sequence[mounts.MountEntry]) -> None:
    """Raises LockError if one of them must not be locked: a capture that serves there would be cut off."""
    for place in places(targets):
        over = mounts.mount_over(place, entries)
        inside = [entry for entry in entries if entry.fstype == mounts.FSTYPE]
        if any(is_inside(entry.point, place) for entry in inside) or over in inside:
            raise LockError(f"{place} cannot be locked: it is captured here, for a further copy")


def held(targets: Iterable[str | bytes]) -> TargetLock:
    """Which lock is over these directories: the weakest, if they differ."""
    entries = mounts.read_mountinfo()
    found = [_kind(mounts.lock_at(place, entries)) for place in places(targets)]
    order = list(TargetLock)
    return min(found, key=order.index, default=TargetLock.NONE)


def open_beneath(targets: Sequence[str | bytes]) -> list[int]:
    """A descriptor of each directory, beneath its lock if it has one. OSError.

    All of them together, so that what is on one file system stays on one mount: a rename does not cross it.
    """

    def open_all() -> list[int]:
        descriptors: list[int] = []
        try:
            for target in targets:
                descriptors.append(os.open(target, _DIRECTORY_FLAGS))
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return descriptors

    def open_all_uncovered() -> list[int]:
        for place in places(targets):
            release_one(place)
        return open_all()

    if held_anywhere(targets):
        return mounts.in_own_namespace(open_all_uncovered)
    return open_all()


def held_anywhere(targets: Iterable[str | bytes]) -> bool:
    entries = mounts.read_mountinfo()
    return any(mounts.lock_at(place, entries) is not None for place in places(targets))


def hold(kind: TargetLock, targets: Iterable[str | bytes]) -> None:
    """See to it that these directories have this lock, and no other. Needs root. LockError, OSError."""
    targets = list(targets)
    for place in places(targets):
        if _kind(mounts.lock_at(place, mounts.read_mountinfo())) is kind:
            continue
        release_one(place)
        try:
            if kind is TargetLock.READ_ONLY:
                _cover_read_only(place)
            elif kind is TargetLock.LOCKED:
                _cover_empty(place)
        except OSError as error:
            raise LockError(f"{place} cannot be locked: {error.strerror}") from error


def release(targets: Iterable[str | bytes]) -> None:
    """Take the locks of these directories away. OSError."""
    for place in places(targets):
        release_one(place)


def release_one(place: str) -> None:
    while (lock := mounts.lock_at(place, mounts.read_mountinfo())) is not None:
        mounts.take_away(lock)


def _kind(lock: mounts.MountEntry | None) -> TargetLock:
    if lock is None:
        return TargetLock.NONE
    return TargetLock.LOCKED if lock.source == mounts.LOCK_SOURCE else TargetLock.READ_ONLY


def _cover_read_only(place: str) -> None:
    """It appears at once as what it is: at no moment is there a second way to write."""
    tree = mounts.clone_tree(place)
    try:
        # What is mounted inside is seen there, too; without this, to unmount it here would do so everywhere.
        _set_attributes(tree, _MOUNT_ATTR.pack(0, 0, _MS_PRIVATE, 0), _AT_RECURSIVE)
        _set_attributes(tree, _MOUNT_ATTR.pack(_MOUNT_ATTR_RDONLY, 0, 0, 0), 0)
        mounts.move_mount(tree, place)
    finally:
        os.close(tree)


def _set_attributes(tree: int, attributes: bytes, flags: int) -> None:
    size = ctypes.c_size_t(len(attributes))
    _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags | _AT_EMPTY_PATH, attributes, size))


def _cover_empty(place: str) -> None:
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _check(_libc.mount(mounts.LOCK_SOURCE.encode(), os.fsencode(place), b"tmpfs", flags, _EMPTY))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
