"""In which way each open file is served: by the page cache, directly, or by the kernel past us.

What the kernel allows (fs/fuse/iomode.c, Linux 6.9 to 6.18), for all opens of one inode at a time:

- Cached and direct ones go together, in any number. A direct one that is mapped counts as cached.
- Passed ones go together if all name the same backing id, and with no other. A program that opens the file
  in another way gets EIO, and a direct one that is mapped then ENODEV.
- An open may be passed *and* direct: reads and writes are requests, a mapping is one of the file below.

So an inode is in one of two states for as long as it is open at all, and the first open decides. A writer
of an inode that is passed becomes passed and direct (`HYBRID`). What it writes is captured as ever. What it
stores in a shared mapping is not: this only a handle for reading *and* writing can have. So files that were
ever opened like that are not passed any more, and where it happens all the same, their content is noted
to be in doubt: see `unseen`.

Each handle is noted (`OpenNotes`) before the kernel is told it, with the request that opened it: a successor
of a killed capture must not open an inode in the other state. And it must not take for open what the kernel
does not: a descriptor without a note was being opened or closed, and one whose request is handed out again
was never told. Otherwise such a one would decide in which state an inode is that the kernel has in the other.
"""

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from replicator import limits
from replicator.fs import kernel_protocol as protocol
from replicator.mount_options import MountOptions

logger = logging.getLogger(__name__)

CACHED: Final = protocol.FOPEN_KEEP_CACHE
UNCACHED_FIRST: Final = 0  # as CACHED, but what the kernel has cached so far is not believed
DIRECT: Final = protocol.FOPEN_DIRECT_IO
PASSED: Final = protocol.FOPEN_PASSTHROUGH
HYBRID: Final = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_DIRECT_IO


# Of this mount, whatever the file: our privileges, what was agreed, the kernel.
_NEVER = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})


class Backing:
    """Files that the kernel may read by itself, by their ids: ioctl(2) on /dev/fuse."""

    def __init__(self, fuse: int) -> None:
        self._fuse = fuse
        self._works = True
        self._told: set[int | None] = set()  # errors

    def open(self, descriptor: int) -> int:
        """The id for the file open at `descriptor`; 0 if it cannot be had."""
        if not self._works:
            return 0
        try:
            # A buffer that may be changed: only then ioctl answers the number instead of the buffer.
            argument = bytearray(protocol.backing_map(descriptor))
            backing_id: int = fcntl.ioctl(self._fuse, protocol.BACKING_OPEN, argument)
            return backing_id
        except OSError as error:
            self._works = error.errno not in _NEVER
            if error.errno not in self._told:  # ELOOP: its file system lies on another
                self._told.add(error.errno)
                logger.warning("a file cannot be read past this process: %s; it is cached instead", error)
            return 0

    def close(self, backing_id: int) -> None:
        """The kernel keeps the file open for those that read it."""
        try:
            fcntl.ioctl(self._fuse, protocol.BACKING_CLOSE, protocol.backing_number(backing_id))
        except OSError as error:
            if error.errno != errno.ENOENT:  # a killed predecessor has closed it
                logger.warning("backing id %d: %s", backing_id, error)


class Noted(NamedTuple):
    """Of an open file."""

    unique: int  # the request that opened it
    backing_id: int  # 0: it is not passed
    is_unseen: bool  # can be mapped shared and writable


_COMPLETE = struct.Struct("<Q")
_NOTE = struct.Struct("<QII")  # unique, backing id, flags
_OPEN, _UNSEEN = 1, 2
_NO_NOTE = bytes(_NOTE.size)


class OpenNotes:
    """How each file is open, in a file beside the ledger, at the place of the handle's number.

    Written by one process at a time. Raises OSError if there is no room.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def are_complete(self) -> bool:
        """Whether the kernel was told of no open file without a note."""
        return any(os.pread(self._descriptor, _COMPLETE.size, 0))

    @are_complete.setter
    def are_complete(self, value: bool) -> None:
        os.pwrite(self._descriptor, _COMPLETE.pack(value), 0)

    def write(self, handle: int, note: Noted) -> None:
        """Before the kernel is told the handle."""
        flags = _OPEN | (_UNSEEN if note.is_unseen else 0)
        data = _NOTE.pack(note.unique, note.backing_id, flags)
        os.pwrite(self._descriptor, data, _COMPLETE.size + handle * _NOTE.size)

    def clear(self, handle: int) -> None:
        """The kernel has given it back; its descriptor is still open."""
        os.pwrite(self._descriptor, _NO_NOTE, _COMPLETE.size + handle * _NOTE.size)

    def read(self) -> dict[int, Noted]:
        """All of them, by handle."""
        data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)[_COMPLETE.size :]
        whole = data[: len(data) // _NOTE.size * _NOTE.size]
        return {
            handle: Noted(unique, backing_id, bool(flags & _UNSEEN))
            for handle, (unique, backing_id, flags) in enumerate(_NOTE.iter_unpack(whole))
            if flags
        }

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Nobody will need it."""
        self.close()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass


class Watch(Protocol):
    """Told of handles through which a file may be changed unseen: see `unseen.Unseen`."""

    def opened(self, node_id: int) -> None: ...

    def released(self, node_id: int) -> None: ...

    def is_watched(self, node_id: int) -> bool: ...


class _Inode:
    """All open handles of one."""

    __slots__ = ("backing_id", "handles")

    def __init__(self) -> None:
        self.handles = 0
        self.backing_id = 0  # 0: not passed


_UNNOTED = Noted(0, 0, False)


class OpenModes:
    """Decides for each open, by what is open already. Used by the thread that serves only."""

    def __init__(
        self,
        options: MountOptions,
        backing: Backing,
        watch: Watch,
        notes: OpenNotes | None = None,
        open_files: Iterable[tuple[int, int]] = (),
    ) -> None:
        """`open_files`: (handle, node id) of every file that a predecessor has opened."""
        self._passes = options.reads == "passthrough"
        self._writes = DIRECT if options.writes == "direct" else CACHED
        self._backing = backing
        self._watch = watch
        self._notes = notes
        self._inodes: dict[int, _Inode] = {}
        self._handles: dict[int, tuple[int, bool]] = {}  # handle: (node id, whether unseen)
        self._mappable: set[int] = set()  # nodes that were opened for reading and writing
        self._stale: set[int] = set()  # nodes of which the kernel may have cached what is not so any more
        self.unknown: list[int] = []
        """Of `open_files`, those the kernel was not told of, or has given back: to be closed."""
        self._resume(notes, open_files)

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be decided."""
        return self._passes or self._writes != CACHED or any(i.backing_id for i in self._inodes.values())

    def _resume(self, notes: OpenNotes | None, open_files: Iterable[tuple[int, int]]) -> None:
        noted = {} if notes is None else notes.read()
        are_complete = notes is not None and notes.are_complete
        without: list[int] = []
        for handle, node_id in open_files:
            note = noted.pop(handle, None)
            if note is None and are_complete:
                self.unknown.append(handle)
                continue
            if note is None:
                without.append(handle)
                note = _UNNOTED
            self._add(handle, node_id, note)
            if note.is_unseen:
                self._watch.opened(node_id)
        if notes is None:
            return
        used = {inode.backing_id for inode in self._inodes.values()}
        for handle, note in noted.items():  # closed, as far as the kernel is concerned
            if note.backing_id and note.backing_id not in used:
                used.add(note.backing_id)
                self._backing.close(note.backing_id)
            notes.clear(handle)
        if not self.is_needed:
            notes.are_complete = False  # for nobody writes any
        elif all(self._note(handle, _UNNOTED) for handle in without):
            notes.are_complete = True

    def _add(self, handle: int, node_id: int, note: Noted) -> None:
        inode = self._inodes.get(node_id)
        if inode is None:
            inode = self._inodes[node_id] = _Inode()
        inode.handles += 1
        inode.backing_id = inode.backing_id or note.backing_id
        self._handles[handle] = node_id, note.is_unseen

    def undelivered(self, unique: int) -> int:
        """The handle that a killed predecessor gave to this request, and did not tell the kernel; else 0.

        Only of a request that is handed out again.
        """
        noted = {} if self._notes is None else self._notes.read()
        return next((h for h, note in noted.items() if note.unique == unique and h in self._handles), 0)

    def opened(self, node_id: int, handle: int, flags: int, unique: int) -> tuple[int, int]:
        """FOPEN_* and a backing id for the reply to an open, with `flags` of open(2)."""
        access = flags & os.O_ACCMODE
        inode = self._inodes.get(node_id)
        if access == os.O_RDWR and node_id not in self._mappable:
            if len(self._mappable) >= limits.MAPPABLE_FILES:
                self._mappable.clear()  # they are kept to avoid trouble, not to exclude it
            self._mappable.add(node_id)
        if inode is not None and inode.backing_id:
            is_unseen = access != os.O_RDONLY and access != os.O_WRONLY
            note = Noted(unique, inode.backing_id, is_unseen)
            mode = PASSED if access == os.O_RDONLY else HYBRID
            self._note(handle, note)
            if is_unseen:
                self._stale.add(node_id)
                self._watch.opened(node_id)
        else:
            mode = CACHED if access == os.O_RDONLY else self._writes
            backing_id = 0
            if self._passes and inode is None and access == os.O_RDONLY and node_id not in self._mappable:
                backing_id = self._backing.open(handle)
            note = Noted(unique, backing_id, False)
            if not self._note(handle, note) and backing_id:
                self._backing.close(backing_id)
                note = _UNNOTED
            if note.backing_id:
                mode = PASSED
            elif mode == CACHED and node_id in self._stale:
                mode = UNCACHED_FIRST
                if not self._watch.is_watched(node_id):
                    self._stale.discard(node_id)
        self._add(handle, node_id, note)
        return mode, note.backing_id

    def _note(self, handle: int, note: Noted) -> bool:
        """Whether a successor will know."""
        if self._notes is None:
            return True  # there will be none
        try:
            self._notes.write(handle, note)
        except OSError as error:
            logger.warning("how a file is open cannot be noted: %s", error)
            self._notes.are_complete = False
            return False
        return True

    def released(self, handle: int) -> None:
        """Before its descriptor is closed."""
        node_id, is_unseen = self._handles.pop(handle, (0, False))
        inode = self._inodes.get(node_id)
        if inode is None:
            return
        if is_unseen:
            self._watch.released(node_id)
        inode.handles -= 1
        if not inode.handles:
            del self._inodes[node_id]
            if inode.backing_id:
                self._backing.close(inode.backing_id)  # as long as a note says that it is open
        if self._notes is not None:
            self._notes.clear(handle)
