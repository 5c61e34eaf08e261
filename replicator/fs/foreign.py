"""What other processes change below directories of ours, as the kernel tells it: fanotify(7).

A mark is set on a whole file system, so nothing is walked, no directory needs a watch of its own, and a tree
of any size takes the same memory. Each event says which process made the change: what our own do is passed
over for certain. The price is that changes elsewhere on that file system are looked at, too.

Not told: what is written through a shared mapping before its file is closed, and changes made on another host
(network file systems). Where a file system has no handles and no identity (FUSE, some overlays) it cannot be
watched at all.
"""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from replicator.errors import ReplicatorError

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_REPORT_DIR_FID, _REPORT_NAME = 0x400, 0x800  # since Linux 5.9
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100

MODIFY, ATTRIBUTES, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
OVERFLOW, ON_DIRECTORY = 0x4000, 0x4000_0000
NAMES = MOVED_FROM | MOVED_TO | CREATE | DELETE
_MASK = MODIFY | ATTRIBUTES | CLOSE_WRITE | NAMES | ON_DIRECTORY

_EVENT = struct.Struct("=IBBHQii")  # length, version, reserved, length of this, mask, descriptor, process id
_INFO = struct.Struct("=BBHQIi")  # type, pad, length, file system id; then of the handle: bytes, type
_HANDLE = struct.Struct("=Ii")
_DFID_NAME = 2
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ_BYTES = 256 * 1024
_ITSELF = b"."
_HANDLE_TRIES, _HANDLE_PAUSE_S = 20, 0.005

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p),
]


class UnwatchableError(ReplicatorError):
    """This kernel, or a file system, does not tell who changes what."""


class Event(NamedTuple):
    """One event of another process: an object by the handle of its directory, and its name there."""

    mask: int
    file_system: int
    handle: bytes  # a struct file_handle
    name: bytes


class ForeignChange(NamedTuple):
    """An object that another process changed. `root`: index of the directory it is below; `path` from there,
    b"" for that directory itself.
    """

    root: int
    path: bytes
    mask: int
    linked: bool = False  # what it has changed may be seen under other names, too

    @property
    def only_attributes(self) -> bool:
        return not self.mask & (NAMES | MODIFY | CLOSE_WRITE)

    @property
    def of_directory(self) -> bool:
        return bool(self.mask & ON_DIRECTORY)

    @property
    def of_name(self) -> bool:
        """Whether a name came or went."""
        return bool(self.mask & NAMES)


class Seen(NamedTuple):
    """What was read at once. `overflow`: some of it is lost."""

    changes: list[ForeignChange]
    overflow: bool

    @property
    def anything(self) -> bool:
        """Whether more may have changed than what is named."""
        return self.overflow or any(change.linked for change in self.changes)


def events(data: bytes | memoryview, own: Container[int]) -> Iterator[Event]:
    """The events of other processes than `own` in what was read of a group. An overflow has no handle."""
    offset = 0
    while offset < len(data):
        length, _, _, head, mask, _, process = _EVENT.unpack_from(data, offset)
        if mask & OVERFLOW:
            yield Event(mask, 0, b"", b"")
        elif process not in own:
            event = _described(data, offset + head, offset + length, mask)
            if event is not None:
                yield event
        offset += length


def _described(data: bytes | memoryview, offset: int, end: int, mask: int) -> Event | None:
    while offset < end:
        kind, _, length, file_system, size, type_ = _INFO.unpack_from(data, offset)
        if kind == _DFID_NAME:
            start = offset + _INFO.size
            handle = _HANDLE.pack(size, type_) + bytes(data[start : start + size])
            name = bytes(data[start + size : offset + length]).split(b"\0", 1)[0]
            return Event(mask, file_system, handle, name)
        offset += length
    return None


class ForeignChanges:
    """Of some open directories. Use from one thread."""

    def __init__(self, directories: Sequence[int], own: Container[int]) -> None:
        """`directories`: descriptors, which stay the caller's. `own`: processes whose changes are ours, asked
        when events are read. UnwatchableError says why not.
        """
        flags = _CLOEXEC | _NONBLOCK | _REPORT_DIR_FID | _REPORT_NAME
        self._group = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
        if self._group < 0:
            raise UnwatchableError(f"this kernel does not tell of changes: {_reason()}")
        self._roots: list[int] = []
        self._file_systems: list[int] = []
        self._own = own
        try:
            for directory in directories:
                self._roots.append(os.open(b".", _DIRECTORY_FLAGS, dir_fd=directory))
                self._mark(self._roots[-1])
                self._file_systems.append(os.fstatvfs(self._roots[-1]).f_fsid)
        except BaseException:
            self.close()
            raise

    def _mark(self, root: int) -> None:
        if _libc.fanotify_mark(self._group, _MARK_ADD | _MARK_FILESYSTEM, _MASK, root, None) < 0:
            path = os.readlink(f"/proc/self/fd/{root}")
            raise UnwatchableError(f"the file system of {path} does not tell of changes: {_reason()}")

    def fileno(self) -> int:
        """Readable when there are events, of whatever process."""
        return int(self._group)

    def close(self) -> None:
        for descriptor in (self._group, *self._roots):
            os.close(descriptor)
        self._roots = []

    def read(self) -> Seen | None:
        """Some of what has happened; None: nothing is left. OSError."""
        try:
            data = os.read(self._group, _READ_BYTES)
        except BlockingIOError:
            return None
        places: dict[tuple[int, bytes], tuple[int, bytes] | None] = {}
        found: dict[tuple[int, bytes], int] = {}
        overflow = False
        for event in events(data, self._own):
            if event.mask & OVERFLOW:
                overflow = True
                continue
            key = (event.file_system, event.handle)
            if key not in places:
                try:
                    places[key] = self._place(*key)
                except OSError:  # somewhere: as if it was among those that the kernel had no room for
                    overflow, places[key] = True, None
            place = places[key]
            if place is not None:
                root, directory = place
                path = directory if event.name == _ITSELF else _join(directory, event.name)
                found[root, path] = found.get((root, path), 0) | event.mask
        changes = [
            ForeignChange(root, path, mask, self._is_linked(root, path, mask))
            for (root, path), mask in found.items()
        ]
        return Seen(changes, overflow)

    def _is_linked(self, root: int, path: bytes, mask: int) -> bool:
        if mask & (ON_DIRECTORY | DELETE | MOVED_FROM):
            return False
        try:
            return os.stat(path, dir_fd=self._roots[root], follow_symlinks=False).st_nlink > 1
        except OSError:
            # This name is gone since. What came under it just now had no other.
            return not mask & (CREATE | MOVED_TO)

    def _place(self, file_system: int, handle: bytes) -> tuple[int, bytes] | None:
        """Below which root the directory of this handle lies, and where. None: below none, or it is gone."""
        best: tuple[int, bytes] | None = None
        for index, root in enumerate(self._roots):
            if self._file_systems[index] == file_system:
                path = _path_below(root, handle)
                if path is not None and (best is None or len(path) < len(best[1])):
                    best = index, path
        return best


def _path_below(root: int, handle: bytes) -> bytes | None:
    directory = _open_handle(root, handle)
    if directory is None:
        return None  # the name that it had above is an event of its own
    try:
        top, path = (os.readlink(b"/proc/self/fd/%d" % each) for each in (root, directory))
        if path == top:
            return b""
        start = top.rstrip(b"/") + b"/"
        if not path.startswith(start):
            return None
        below = path[len(start) :]
        # Of a mount that shows a part of its file system only, what lies outside has a path, too.
        state = os.stat(below, dir_fd=root, follow_symlinks=False)
        return below if os.path.samestat(state, os.fstat(directory)) else None
    except OSError:
        return None
    finally:
        os.close(directory)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


def _open_handle(root: int, handle: bytes) -> int | None:
    """None: the object is gone. OSError: nobody can tell just now, not even after some tries.

    Where an inode is gone and its number is being given to a new one, iget_locked (Linux, fs/inode.c) finds
    that one unfinished and the kernel says ENOMEM; a moment later it is ESTALE.
    """
    buffer = ctypes.create_string_buffer(handle, len(handle))
    for _ in range(_HANDLE_TRIES):
        descriptor = int(_libc.open_by_handle_at(root, buffer, os.O_PATH | os.O_CLOEXEC))
        if descriptor >= 0:
            return descriptor
        reason = ctypes.get_errno()
        if reason in (errno.ESTALE, errno.ENOENT):
            return None
        if reason not in (errno.ENOMEM, errno.EINTR):
            break
        time.sleep(_HANDLE_PAUSE_S)
    raise OSError(reason, "cannot tell where a change was made")
