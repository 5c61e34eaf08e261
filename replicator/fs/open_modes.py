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

Numbers of handles and backing ids are noted (`OpenNotes`) before the kernel is told them: a successor of a
killed capture must not open an inode in the other state.
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
            logger.warning("backing id %d: %s", backing_id, error)


class Noted(NamedTuple):
    """Of a handle that is passed."""

    backing_id: int
    is_unseen: bool  # can be mapped shared and writable


_LAST = struct.Struct("<QQ")  # the last request to open a file, and the handle it got
_NOTE = struct.Struct("<II")  # backing id, whether unseen


class OpenNotes:
    """Which handles are passed, in a file beside the ledger, at the place of the handle's number.

    Written by one process at a time. Raises OSError if there is no room.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, handle: int, note: Noted | None) -> None:
        """Before the kernel is told the handle, or (None) before the descriptor is closed."""
        os.pwrite(self._descriptor, _NOTE.pack(*(note or (0, False))), _LAST.size + handle * _NOTE.size)

    def opened(self, unique: int, handle: int) -> None:
        """This request is about to be answered with this handle."""
        os.pwrite(self._descriptor, _LAST.pack(unique, handle), 0)

    def read(self) -> dict[int, Noted]:
        """All of them, by handle."""
        data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)[_LAST.size :]
        whole = data[: len(data) // _NOTE.size * _NOTE.size]
        return {
            handle: Noted(backing_id, bool(is_unseen))
            for handle, (backing_id, is_unseen) in enumerate(_NOTE.iter_unpack(whole))
            if backing_id
        }

    def last(self) -> tuple[int, int]:
        data = os.pread(self._descriptor, _LAST.size, 0)
        return _LAST.unpack(data) if len(data) == _LAST.size else (0, 0)

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

    def __init__(self, backing_id: int) -> None:
        self.handles = 0
        self.backing_id = backing_id  # 0: not passed


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
        """`open_files`: (handle, node id) of what a predecessor has opened, as far as it is in `notes`."""
        self._passes = options.reads == "passthrough"
        self._writes = DIRECT if options.writes == "direct" else CACHED
        self._backing = backing
        self._watch = watch
        self._notes = notes
        self._inodes: dict[int, _Inode] = {}
        self._handles: dict[int, tuple[int, bool]] = {}  # handle: (node id, whether unseen)
        self._mappable: set[int] = set()  # nodes that were opened for reading and writing
        self._stale: set[int] = set()  # nodes of which the kernel may have cached what is not so any more
        self._undelivered = (0, 0)
        self._resume(notes, open_files)

    @property
    def is_needed(self) -> bool:
        """Whether anything is to be decided."""
        return self._passes or self._writes != CACHED or any(i.backing_id for i in self._inodes.values())

    def _resume(self, notes: OpenNotes | None, open_files: Iterable[tuple[int, int]]) -> None:
        noted = {} if notes is None else notes.read()
        if notes is not None:
            self._undelivered = notes.last()
        for handle, node_id in open_files:
            note = noted.pop(handle, Noted(0, False))
            self._add(handle, node_id, note)
            if note.is_unseen:
                self._watch.opened(node_id)
        used = {inode.backing_id for inode in self._inodes.values()}
        for handle, note in noted.items():  # closed, as far as the kernel is concerned
            if notes is not None:
                notes.write(handle, None)
            if note.backing_id not in used:
                used.add(note.backing_id)
                self._backing.close(note.backing_id)

    def _add(self, handle: int, node_id: int, note: Noted) -> None:
        inode = self._inodes.get(node_id)
        if inode is None:
            inode = self._inodes[node_id] = _Inode(note.backing_id)
        inode.handles += 1
        self._handles[handle] = node_id, note.is_unseen

    def undelivered(self, unique: int) -> int:
        """The handle that a killed predecessor gave to this request, and did not tell the kernel; else 0."""
        last, handle = self._undelivered
        return handle if unique == last else 0

    def opened(self, node_id: int, handle: int, flags: int, unique: int) -> tuple[int, int]:
        """FOPEN_* and a backing id for the reply to an open, with `flags` of open(2)."""
        access = flags & os.O_ACCMODE
        inode = self._inodes.get(node_id)
        if access == os.O_RDWR and node_id not in self._mappable:
            if len(self._mappable) >= limits.MAPPABLE_FILES:
                self._mappable.clear()  # they are kept to avoid trouble, not to exclude it
            self._mappable.add(node_id)
        note = Noted(0, False)
        if inode is not None and inode.backing_id:
            note = Noted(inode.backing_id, access != os.O_RDONLY and access != os.O_WRONLY)
            mode = PASSED if access == os.O_RDONLY else HYBRID
            self._note(handle, note, unique)
            if note.is_unseen:
                self._stale.add(node_id)
                self._watch.opened(node_id)
        else:
            mode = CACHED if access == os.O_RDONLY else self._writes
            if (
                self._passes
                and inode is None
                and access == os.O_RDONLY
                and node_id not in self._mappable
                and (backing_id := self._backing.open(handle))
            ):
                note = Noted(backing_id, False)
                if self._note(handle, note, unique):
                    mode = PASSED
                else:
                    self._backing.close(backing_id)
                    note = Noted(0, False)
            elif self._passes:
                self._note(handle, None, unique)
            if mode == CACHED and node_id in self._stale:
                mode = UNCACHED_FIRST
                if not self._watch.is_watched(node_id):
                    self._stale.discard(node_id)
        self._add(handle, node_id, note)
        return mode, note.backing_id

    def _note(self, handle: int, note: Noted | None, unique: int) -> bool:
        """Whether a successor will know."""
        if self._notes is None:
            return True  # there will be none
        try:
            if note is not None:
                self._notes.write(handle, note)
            self._notes.opened(unique, handle)
        except OSError as error:
            logger.warning("how a file is open cannot be noted: %s", error)
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
        if inode.backing_id and self._notes is not None:
            self._notes.write(handle, None)
        inode.handles -= 1
        if not inode.handles:
            del self._inodes[node_id]
            if inode.backing_id:
                self._backing.close(inode.backing_id)
