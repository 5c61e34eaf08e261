"""The kernel's FUSE requests in front of `Passthrough`: translates requests and replies, decides nothing.

`Binding.handle` is called for one request after another, in the order in which the kernel hands them out, by
one thread: so the order of records is the order of requests. What may wait for a disk (syncs, cold reads,
closing what was removed) comes back as a `Later`, to be done beside it. One guard turns whatever a handler
raises into an errno.
"""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from replicator import limits
from replicator.fs import kernel_protocol as protocol
from replicator.fs.calls import cached_pages
from replicator.fs.credentials import Caller
from replicator.fs.held_notes import HeldNotes
from replicator.fs.intent import Intent
from replicator.fs.kernel_protocol import (
    HEADER_BYTES,
    OPERATIONS,
    WRITE_HEADER_BYTES,
    Agreement,
    Opcode,
)
from replicator.fs.open_modes import OpenModes
from replicator.fs.passthrough import Entry, Passthrough
from replicator.fs.tickets import Ticket
from replicator.mount_options import DEFAULTS, MountOptions

logger = logging.getLogger(__name__)

Buffer = bytes | memoryview
Body = bytes | Sequence[Buffer]
Header = tuple[int, ...]  # an unpacked IN_HEADER
Fields = tuple[Any, ...]  # what `OPERATIONS` says stands behind it

_CAPABILITY = b"security.capability"
_NO_WAIT_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_SYNCHRONOUS = os.O_SYNC | os.O_DSYNC
# Not to be done twice: see `Intent`.
NAME_OPERATIONS = frozenset(
    {
        Opcode.CREATE,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.SYMLINK,
        Opcode.LINK,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
    }
)
_OPTIONAL_COPY = 0x7FFF_F000  # a 32-bit count is the reply to COPY_FILE_RANGE
# ioctl(2) passes on what only tells: attributes of an inode and its generation. All else is ENOTTY, as on a
# file system that has none: what would be set is not replicated.
_READING_IOCTLS = frozenset({0x8008_6601, 0x8004_6601, 0x8008_7601, 0x8004_7601, 0x801C_581F})


@dataclass(frozen=True, slots=True)
class Later:
    """A reply that has to wait for a disk. `function` makes its body, or raises OSError.

    It uses nothing but a descriptor, and may run in any thread.
    """

    function: "Callable[[], Body | Held]"


@dataclass(frozen=True, slots=True)
class Held:
    """A reply that has to wait for targets."""

    reply: "Reply"
    ticket: Ticket


class Sync(NamedTuple):
    """A reply that is due when a file is on the disk."""

    handle: int
    data_only: bool
    reply: "bytes | Held"


class Spliced(NamedTuple):
    """A reply that is `size` bytes of a file, all in memory: the kernel moves them itself, by a pipe."""

    handle: int
    offset: int
    size: int


class After(NamedTuple):
    """A reply, and what is still to be done in any thread when it is out."""

    reply: "bytes | Failure"
    function: Callable[[], None]


class Failure:
    """A reply that is an error."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


Reply = Body | Later | Sync | After | Spliced | Failure | Held | None
"""None: the request gets no reply."""

Handler = Callable[[int, Fields, int, Header], Reply]
"""(node, fields, where the request ends in the buffer, header)"""

_NOTHING: Final = b""
_UNKNOWN: Final = Failure(errno.ENOSYS)


def page_buffer(size: int) -> memoryview:
    """Memory that is there already: filling it never faults.

    A process killed while the kernel faults in the buffer of a read of /dev/fuse makes that request fail.
    """
    memory = mmap.mmap(-1, size)
    view = memoryview(memory)
    for offset in range(0, size, mmap.PAGESIZE):
        view[offset] = 0
    return view


class Binding:
    """Handlers for one mount. `buffer` is where requests are read into, one at a time."""

    def __init__(
        self,
        passthrough: Passthrough,
        agreement: Agreement | None = None,
        intent: Intent | None = None,
        options: MountOptions = DEFAULTS,
        modes: OpenModes | None = None,
    ) -> None:
        """`agreement`: of a connection that a predecessor has begun; None for a new one. `intent`: where
        changes of names are noted for a successor. `modes`: how files are opened; None: all are cached.
        """
        self._fs = passthrough
        self._modes = modes
        self._request_timeout_s = options.request_timeout
        self._validity = protocol.Validity(options.attribute_timeout, options.entry_timeout)
        self._intent = intent
        self.held_notes: HeldNotes | None = None  # of replies that wait, in a mount where such can
        if intent is not None:
            passthrough.note_inode = intent.note
        self.agreement = agreement
        self.ended = False
        self.buffer = page_buffer(WRITE_HEADER_BYTES + limits.REQUEST_BYTES)
        self._contents = page_buffer(limits.REQUEST_BYTES)
        self._reads_without_waiting = True  # until the storage below refuses RWF_NOWAIT
        self.splice_bytes_max = 0  # set by who can send a `Spliced`
        self._handlers: dict[int, tuple[Handler, Callable[..., tuple[Any, ...]], int]] = {
            opcode: (
                getattr(self, f"_{operation.handler}"),
                operation.layout.unpack_from,
                HEADER_BYTES + operation.layout.size,
            )
            for opcode, operation in OPERATIONS.items()
        }

    # --- dispatch ---

    def handle(self, header: Header) -> Reply:
        """The reply to the request in `buffer`, whose unpacked header is given. Never raises."""
        found = self._handlers.get(header[1])
        if found is None:
            return _UNKNOWN
        handler, unpack_from, least = found
        end = header[0]
        if end < least and header[1] != protocol.Opcode.INIT:
            return Failure(errno.EIO)
        try:
            if header[1] in NAME_OPERATIONS and self._intent is not None:
                return self._handle_noted(self._intent, handler, unpack_from, end, header)
            return handler(header[3], unpack_from(self.buffer, HEADER_BYTES), end, header)
        except OSError as error:
            return Failure(error.errno or errno.EIO)
        except Exception:
            return bug(header[1])

    def _handle_noted(
        self,
        intent: Intent,
        handler: Handler,
        unpack_from: Callable[..., Fields],
        end: int,
        header: Header,
    ) -> Reply:
        """A request that a successor cannot simply do again: it is noted before, and its reply after."""
        unique = header[2] & ~protocol.RESENT
        held = self.held_notes
        if held is not None and header[2] & protocol.RESENT and (known := held.find(unique)) is not None:
            return known
        redo: AbstractContextManager[None] = nullcontext()
        if header[2] & protocol.RESENT and (noted := intent.read()).unique == unique:
            if noted.reply is not None:
                return Failure(noted.reply) if isinstance(noted.reply, int) else noted.reply
            redo = self._fs.redo(noted.inode, noted.is_recorded)
            if not noted.is_recorded:  # now it will be
                intent.begin(unique, self._fs.head_sequence, noted.inode)
        else:
            intent.begin(unique, self._fs.head_sequence)
        try:
            with redo:
                reply = handler(header[3], unpack_from(self.buffer, HEADER_BYTES), end, header)
        except OSError as error:
            intent.failed(error.errno or errno.EIO)
            raise
        if type(reply) is bytes:
            intent.done(reply)
        return reply

    def _name(self, start: int, end: int) -> bytes:
        return bytes(self.buffer[start : end - 1])

    def _text(self, start: int, end: int) -> bytes:
        """A name that something else follows."""
        text = bytes(self.buffer[start:end])
        return text[: text.index(0)]

    def _two_names(self, start: int, end: int) -> tuple[bytes, bytes]:
        first, _, second = bytes(self.buffer[start : end - 1]).partition(b"\0")
        return first, second

    # --- the connection ---

    def _init(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        major, minor, readahead_bytes, flags = fields
        more = bytes(self.buffer[HEADER_BYTES + 16 : end])
        try:
            self.agreement, reply = protocol.negotiate(
                major, minor, readahead_bytes, flags, more, self._request_timeout_s
            )
        except protocol.UnsupportedKernel as error:
            logger.error("%s", error)
            return Failure(errno.EPROTO)
        return reply

    def _destroy(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        self.ended = True
        return _NOTHING

    # --- nodes ---

    def _lookup(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        try:
            entry = self._fs.lookup(node_id, self._name(HEADER_BYTES, end))
        except FileNotFoundError:
            return self._validity.no_entry
        return self._entry(entry)

    def _entry(self, entry: Entry) -> bytes:
        return protocol.entry(entry.node_id, entry.state, self._validity)

    def _forget(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        self._fs.forget(((node_id, fields[0]),))
        return None

    def _batch_forget(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        start = HEADER_BYTES + 8
        words = self.buffer[start : start + 16 * fields[0]].cast("Q").tolist()
        self._fs.forget(zip(words[::2], words[1::2], strict=True))
        return None

    def _getattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return protocol.attributes(node_id, self._fs.getattr(node_id), self._validity)

    def _statx(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return protocol.statx(node_id, self._fs.statx(node_id, fields[4]), self._validity)

    def _setattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        (valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = fields
        state = self._fs.setattr(
            node_id,
            mode=mode if valid & protocol.FATTR_MODE else None,
            uid=uid if valid & protocol.FATTR_UID else None,
            gid=gid if valid & protocol.FATTR_GID else None,
            size=size if valid & protocol.FATTR_SIZE else None,
            atime_ns=atime * 1_000_000_000 + atime_ns if valid & protocol.FATTR_ATIME else None,
            mtime_ns=mtime * 1_000_000_000 + mtime_ns if valid & protocol.FATTR_MTIME else None,
            handle_id=handle if valid & protocol.FATTR_FH else None,
            drop_privileges=bool(valid & protocol.FATTR_KILL_SUIDGID),
        )
        return protocol.attributes(node_id, state, self._validity)

    def _readlink(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return self._fs.readlink(node_id)

    # --- names ---

    def _mknod(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        mode, rdev, umask, _ = fields
        name = self._name(HEADER_BYTES + 16, end)
        return self._entry(self._fs.mknod(node_id, name, mode, rdev, _caller(header, umask)))

    def _mkdir(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        mode, umask = fields
        name = self._name(HEADER_BYTES + 8, end)
        return self._entry(self._fs.mkdir(node_id, name, mode, _caller(header, umask)))

    def _symlink(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        name, text = self._two_names(HEADER_BYTES, end)
        return self._entry(self._fs.symlink(node_id, name, text, _caller(header)))

    def _link(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return self._entry(self._fs.link(fields[0], node_id, self._name(HEADER_BYTES + 8, end)))

    def _unlink(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        self._fs.unlink(node_id, self._name(HEADER_BYTES, end))
        return _NOTHING

    def _rmdir(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        self._fs.rmdir(node_id, self._name(HEADER_BYTES, end))
        return _NOTHING

    def _rename(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        old, new = self._two_names(HEADER_BYTES + 8, end)
        self._fs.rename(node_id, old, fields[0], new)
        return _NOTHING

    def _rename2(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        old, new = self._two_names(HEADER_BYTES + 16, end)
        self._fs.rename(node_id, old, fields[0], new, fields[1])
        return _NOTHING

    # --- files ---

    def _create(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        flags, mode, umask, _ = fields
        entry: Entry
        name = self._name(HEADER_BYTES + 16, end)
        self._close_undelivered(header)
        handle, entry = self._fs.create(node_id, name, mode, flags, _caller(header, umask))
        return self._entry(entry) + self._opened(entry.node_id, handle, flags, header)

    def _tmpfile(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        flags, mode, umask, _ = fields
        entry: Entry
        self._close_undelivered(header)
        handle, entry = self._fs.create_unnamed(node_id, mode, flags, _caller(header, umask))
        return self._entry(entry) + self._opened(entry.node_id, handle, flags, header)

    def _open(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        flags = fields[0]
        self._close_undelivered(header)
        return self._opened(node_id, self._fs.open(node_id, flags, _caller(header)), flags, header)

    def _close_undelivered(self, header: Header) -> None:
        """What a predecessor opened for this request, and did not live to tell of."""
        if self._modes is None or not header[2] & protocol.RESENT:
            return
        handle = self._modes.undelivered(header[2] & ~protocol.RESENT)
        if handle:
            self._modes.released(handle)
            self._fs.release(handle)

    def _opened(self, node_id: int, handle: int, flags: int, header: Header) -> bytes:
        if self._modes is None:
            return protocol.opened(handle)
        return protocol.opened(
            handle, *self._modes.opened(node_id, handle, flags, header[2] & ~protocol.RESENT)
        )

    def _read(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, offset, size = fields[:3]
        if limits.SPLICE_MIN_BYTES <= size <= self.splice_bytes_max:
            count = min(size, os.fstat(handle).st_size - offset)
            if count >= limits.SPLICE_MIN_BYTES and self._is_cached(handle, offset, count):
                return Spliced(handle, offset, count)
        read = self._fs.read
        if not self._reads_without_waiting or size > limits.REQUEST_BYTES:
            return Later(lambda: read(handle, offset, size))
        contents = self._contents[:size]
        try:
            count = os.preadv(handle, (contents,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return Later(lambda: read(handle, offset, size))
        except OSError as error:
            if error.errno not in _NO_WAIT_UNSUPPORTED:
                raise
            self._reads_without_waiting = False
            return Later(lambda: read(handle, offset, size))
        if count == size or offset + count >= os.fstat(handle).st_size:
            return (contents[:count],)
        start = bytes(contents[:count])  # the rest is not in memory
        return Later(lambda: (start, read(handle, offset + len(start), size - len(start))))

    def _is_cached(self, handle: int, offset: int, count: int) -> bool:
        pages = (offset + count - 1) // mmap.PAGESIZE - offset // mmap.PAGESIZE + 1
        try:
            return cached_pages(handle, offset, count) == pages
        except OSError:  # an older kernel, or a file system without page cache
            self.splice_bytes_max = 0
            return False

    def _write(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, offset, _, flags, *_ = fields
        # Straight from the request into the file and the journal.
        count = self._fs.write(handle, offset, self.buffer[WRITE_HEADER_BYTES:end])
        if flags & protocol.WRITE_KILL_SUIDGID:
            self._fs.drop_privileges(handle)
        if fields[5] & _SYNCHRONOUS:
            return Sync(handle, True, protocol.written(count))
        return protocol.written(count)

    def _release(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        if header[2] & protocol.RESENT and not self._fs.is_open(fields[0]):
            return _NOTHING  # closed by a predecessor that did not live to say so
        if self._modes is not None:
            self._modes.released(fields[0])
        close = self._fs.release_later(fields[0])
        return _NOTHING if close is None else After(_NOTHING, close)

    def _fsync(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, flags, _ = fields
        datasync = bool(flags & protocol.FSYNC_DATA_ONLY)
        return Sync(handle, datasync, _NOTHING)

    def _fallocate(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, offset, length, mode, _ = fields
        self._fs.allocate(handle, mode, offset, length)
        if header[4]:
            self._fs.drop_privileges(handle)
        return _NOTHING

    def _lseek(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, offset, whence, _ = fields
        return protocol.offset(self._fs.seek(handle, offset, whence))

    def _copy_file_range(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return protocol.written(self._copy(fields, header))

    def _copy_file_range_64(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return protocol.offset(self._copy(fields, header))

    def _copy(self, fields: Fields, header: Header) -> int:
        source, source_offset, _, handle, offset, length, _ = fields
        count = self._fs.copy_range(source, source_offset, handle, offset, min(length, _OPTIONAL_COPY))
        if header[4]:
            self._fs.drop_privileges(handle)
        return count

    def _ioctl(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, _, command, _, _, out_bytes = fields
        if command not in _READING_IOCTLS or not out_bytes:
            return Failure(errno.ENOTTY)
        data = bytearray(max(out_bytes, 32))
        result = fcntl.ioctl(handle, command, data)
        return protocol.ioctl(result, bytes(data[:out_bytes]))

    # --- directories ---

    def _opendir(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        flags = protocol.FOPEN_KEEP_CACHE | protocol.FOPEN_CACHE_DIR
        return protocol.opened(self._fs.opendir(node_id), flags)

    def _readdir(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, position, room = fields[:3]
        reply: list[bytes] = []
        for name in self._fs.names(handle, position):
            room -= protocol.directory_entry_bytes(name.name)
            if room < 0:
                break
            reply.append(protocol.directory_entry(name.inode, name.position, name.name, name.type))
        return b"".join(reply)

    def _readdirplus(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        handle, position, room = fields[:3]
        reply: list[bytes] = []
        for name in self._fs.names(handle, position):
            room -= protocol.ENTRY_BYTES + protocol.directory_entry_bytes(name.name)
            if room < 0:
                break
            head, inode = protocol.NOTHING_LOOKED_UP, name.inode
            if name.name not in (b".", b".."):
                entry = self._fs.entry(handle, name.name)
                if entry is None:
                    continue
                head, inode = self._entry(entry), entry.node_id
            reply += (head, protocol.directory_entry(inode, name.position, name.name, name.type))
        return b"".join(reply)

    def _releasedir(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        if not header[2] & protocol.RESENT or self._fs.is_open(fields[0]):
            self._fs.releasedir(fields[0])
        return _NOTHING

    def _statfs(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        return Later(lambda: protocol.statfs(self._fs.statfs()))

    # --- extended attributes ---

    def _getxattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        name = self._name(HEADER_BYTES + 8, end)
        if name == _CAPABILITY and self._fs.lacks_capability(node_id):
            return Failure(errno.ENODATA)
        return _sized(self._fs.getxattr(node_id, name), fields[0])

    def _listxattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        names = self._fs.listxattr(node_id)
        if header[4]:  # of a user
            names = [name for name in names if not name.startswith(b"trusted.")]
        return _sized(b"".join(name + b"\0" for name in names), fields[0])

    def _setxattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        size, flags, more_flags, _ = fields
        drop: bool | None = None
        start = HEADER_BYTES + 16
        assert self.agreement is not None
        if self.agreement.flags & protocol.InitFlag.SETXATTR_EXT:
            drop = bool(more_flags & protocol.SETXATTR_ACL_KILL_SGID)
        else:
            start = HEADER_BYTES + 8
        name = self._text(start, end - size)
        value = bytes(self.buffer[end - size : end])
        self._fs.setxattr(node_id, name, value, _caller(header), flags, drop)
        return _NOTHING

    def _removexattr(self, node_id: int, fields: Fields, end: int, header: Header) -> Reply:
        self._fs.removexattr(node_id, self._name(HEADER_BYTES, end))
        return _NOTHING


def _caller(header: Header, umask: int = 0) -> Caller:
    return Caller(header[4], header[5], header[6], umask)


def _sized(value: bytes, room: int) -> Reply:
    """An attribute's value, or its size if that was the question."""
    if not room:
        return protocol.size(len(value))
    return value if len(value) <= room else Failure(errno.ERANGE)


def bug(opcode: int) -> Failure:
    logger.exception("a bug in request %d; the application got EIO", opcode)
    return Failure(errno.EIO)


__all__ = [
    *(
        "IN_HEADER",
        "NAME_OPERATIONS",
        "After",
        "Binding",
        "Body",
        "Failure",
        "Held",
        "Later",
        "Reply",
        "Spliced",
        "Sync",
    ),
    "bug",
]
