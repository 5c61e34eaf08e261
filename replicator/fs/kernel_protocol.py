"""The FUSE wire protocol as data: structures, requests, flags, replies, notifications. No I/O.

Source: include/uapi/linux/fuse.h of Linux 6.18 (protocol 7.45). Numbers are in the byte order of the host,
which on every machine this runs on is little-endian.

A request is an IN_HEADER, a structure of its own (`OPERATIONS` has its layout) and then names, each closed by
a NUL, or data. A reply is an OUT_HEADER and what `entry`, `attributes` and the like make. A notification is a
reply to request 0, with its code in place of the error.
"""

import os
import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from replicator import limits

MAJOR: Final = 7
MINOR: Final = 45  # the newest this module knows
MINOR_MIN: Final = 31  # Linux 5.4; older kernels get the other binding

IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, -
OUT_HEADER = struct.Struct("<IiQ")  # length, -errno, unique
HEADER_BYTES: Final = IN_HEADER.size
WRITE_HEADER_BYTES: Final = HEADER_BYTES + 40
RESENT: Final = 1 << 63  # in `unique`: handed out once more; the reply must carry it, too


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Operation(NamedTuple):
    """How a request looks behind its header, and the handler (of `kernel_binding.Binding`) it goes to."""

    handler: str
    layout: struct.Struct


def _operation(handler: str, layout: str = "") -> Operation:
    return Operation(handler, struct.Struct("<" + layout))


OPERATIONS: Final[dict[int, Operation]] = {
    Opcode.LOOKUP: _operation("lookup"),  # name
    Opcode.FORGET: _operation("forget", "Q"),  # count
    Opcode.GETATTR: _operation("getattr", "IIQ"),  # flags, -, handle
    # valid, -, handle, size, lock owner, atime, mtime, ctime, their ns, mode, -, uid, gid, -
    Opcode.SETATTR: _operation("setattr", "IIQQQqqqIIIIIIII"),
    Opcode.READLINK: _operation("readlink"),
    Opcode.SYMLINK: _operation("symlink"),  # name, text
    Opcode.MKNOD: _operation("mknod", "IIII"),  # mode, rdev, umask, -; name
    Opcode.MKDIR: _operation("mkdir", "II"),  # mode, umask; name
    Opcode.UNLINK: _operation("unlink"),  # name
    Opcode.RMDIR: _operation("rmdir"),  # name
    Opcode.RENAME: _operation("rename", "Q"),  # new directory; old name, new name
    Opcode.RENAME2: _operation("rename2", "QII"),  # new directory, flags, -; old name, new name
    Opcode.LINK: _operation("link", "Q"),  # the node; name
    Opcode.OPEN: _operation("open", "II"),  # flags, FUSE_OPEN_*
    Opcode.READ: _operation("read", "QQIIQII"),  # handle, offset, size, flags, owner, flags of the file, -
    Opcode.WRITE: _operation("write", "QQIIQII"),  # the same; data
    Opcode.STATFS: _operation("statfs"),
    Opcode.RELEASE: _operation("release", "QIIQ"),  # handle, flags, release flags, lock owner
    Opcode.FSYNC: _operation("fsync", "QII"),  # handle, flags, -
    Opcode.SETXATTR: _operation("setxattr", "IIII"),  # size, flags, FUSE_SETXATTR_*, -; name, value
    Opcode.GETXATTR: _operation("getxattr", "II"),  # size, -; name
    Opcode.LISTXATTR: _operation("listxattr", "II"),  # size, -
    Opcode.REMOVEXATTR: _operation("removexattr"),  # name
    Opcode.INIT: _operation("init", "IIII"),  # major, minor, readahead, flags; from 7.36 on more flags
    Opcode.OPENDIR: _operation("opendir", "II"),
    Opcode.READDIR: _operation("readdir", "QQIIQII"),  # as READ
    Opcode.READDIRPLUS: _operation("readdirplus", "QQIIQII"),
    Opcode.RELEASEDIR: _operation("releasedir", "QIIQ"),
    Opcode.FSYNCDIR: _operation("fsync", "QII"),
    Opcode.CREATE: _operation("create", "IIII"),  # flags, mode, umask, FUSE_OPEN_*; name
    Opcode.DESTROY: _operation("destroy"),
    Opcode.IOCTL: _operation("ioctl", "QIIQII"),  # handle, flags, command, argument, sizes in and out; data
    Opcode.BATCH_FORGET: _operation("batch_forget", "II"),  # how many, -; pairs of node and count
    Opcode.FALLOCATE: _operation("fallocate", "QQQII"),  # handle, offset, length, mode, -
    Opcode.LSEEK: _operation("lseek", "QQII"),  # handle, offset, whence, -
    Opcode.COPY_FILE_RANGE: _operation("copy_file_range", "QQQQQQQ"),
    Opcode.COPY_FILE_RANGE_64: _operation("copy_file_range_64", "QQQQQQQ"),
    Opcode.TMPFILE: _operation("tmpfile", "IIII"),  # as CREATE; a name that means nothing
    Opcode.STATX: _operation("statx", "IIQII"),  # flags, -, handle, flags and mask of statx(2)
}
"""What is answered. All else gets ENOSYS, and then, by the kernel's own rules:

FLUSH is never sent again: closing tells nothing that RELEASE does not. INTERRUPT is not, either: nothing here
waits for anything but a disk. ACCESS is never sent, as the kernel checks permissions itself, nor are locks,
which it keeps itself (`REFUSED_FLAGS`). SYNCFS and the mappings are for virtiofs, BMAP for block devices;
of POLL the answer is that files are always ready.
"""


class InitFlag(IntFlag):
    """What the two sides agree on in INIT."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    CREATE_SUPP_GROUP = 1 << 34
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


INIT_FLAGS: Final[dict[InitFlag, str]] = {
    InitFlag.ASYNC_READ: "read-ahead of one file may have several requests under way",
    InitFlag.ATOMIC_O_TRUNC: "O_TRUNC comes with OPEN: one request, and never an open without its truncation",
    InitFlag.BIG_WRITES: "writes of more than a page",
    InitFlag.DONT_MASK: "the umask comes beside the mode: a default ACL must take its place",
    InitFlag.DO_READDIRPLUS: "attributes together with names: who reads these looks at them, or removes them",
    InitFlag.ASYNC_DIO: "direct reads in parallel",
    InitFlag.PARALLEL_DIROPS: "lookups in one directory need not wait for one another",
    InitFlag.POSIX_ACL: "the kernel checks access ACLs, we store them",
    InitFlag.ABORT_ERROR: "an aborted mount is told from an unmounted one",
    InitFlag.MAX_PAGES: "requests of 1 MiB",
    InitFlag.CACHE_SYMLINKS: "nobody else changes them",
    InitFlag.EXPLICIT_INVAL_DATA: "nobody else changes content, so no GETATTR before a cached read",
    InitFlag.HANDLE_KILLPRIV_V2: "we drop suid and sgid: else each write asks for security.capability",
    InitFlag.SETXATTR_EXT: "says whether setting an ACL takes the sgid bit away",
    InitFlag.INIT_EXT: "there are flags above bit 31",
    InitFlag.HAS_RESEND: "a successor can ask for the requests its killed predecessor had not answered",
    InitFlag.DIRECT_IO_ALLOW_MMAP: "a file opened for direct I/O (option writes) can be mapped all the same",
    InitFlag.PASSTHROUGH: "files may be opened so that the kernel reads them itself (option reads)",
}
"""What is asked for, and why. What an option of the mount may need is asked for always: it costs nothing as
long as it is not used, and options can be changed without unmounting."""

OPTIONAL_FLAGS: Final[dict[InitFlag, str]] = {
    InitFlag.REQUEST_TIMEOUT: "it ends the mount, and the application's files with it: request_timeout",
}
"""What is asked for if an option of the mount says so, and why not always."""

REFUSED_FLAGS: Final[dict[InitFlag, str]] = {
    InitFlag.POSIX_LOCKS: "the kernel's own locks hold for all processes here, and outlive a capture",
    InitFlag.FLOCK_LOCKS: "the same",
    InitFlag.EXPORT_SUPPORT: "lookups by node, for NFS handles older than the kernel's cache, are not served",
    InitFlag.HAS_IOCTL_DIR: "set by the kernel, for information",
    InitFlag.READDIRPLUS_AUTO: "after the first names each costs a request: three times the time of a find",
    InitFlag.AUTO_INVAL_DATA: "a GETATTR before each read; only for storage that others change",
    InitFlag.WRITEBACK_CACHE: "writes of different files would arrive in another order than they were made",
    InitFlag.NO_OPEN_SUPPORT: "OPEN and RELEASE are needed: handles, and the mtime that is told at close",
    InitFlag.NO_OPENDIR_SUPPORT: "a directory being read needs a position of its own",
    InitFlag.HANDLE_KILLPRIV: "superseded by its second version",
    InitFlag.SECURITY_CTX: "labels of security modules are not replicated",
    InitFlag.CREATE_SUPP_GROUP: "new objects are made with the caller's ids and all capabilities",
    InitFlag.ALLOW_IDMAP: "not needed: the mount itself is not mapped",
    InitFlag.OVER_IO_URING: "needs a module parameter that is off by default",
}
"""What the kernel offers and is not asked for, and why."""

_WANTED = InitFlag(0)
for _flag in INIT_FLAGS:
    _WANTED |= _flag

_INIT_MORE = struct.Struct("<I")
_INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
_STACK_DEPTH = 1  # of file systems that may be read past us: a plain one, not one that lies on another


class Agreement(NamedTuple):
    """What INIT ended with: everything later depends on."""

    minor: int
    flags: InitFlag

    @property
    def can_prune(self) -> bool:
        """FUSE_NOTIFY_PRUNE (Linux 6.18)."""
        return self.minor >= 45


class UnsupportedKernel(Exception):
    """It speaks another major version, or one that is too old."""


def negotiate(
    major: int, minor: int, readahead_bytes: int, flags: int, more: bytes, request_timeout_s: int = 0
) -> tuple[Agreement, bytes]:
    """The agreement and the reply to an INIT request. `more`: what follows its first four words.

    `request_timeout_s`: after which the kernel ends the mount; 0: never.
    Raises UnsupportedKernel. A kernel with a newer major version is answered with ours and asks again.
    """
    if major > MAJOR:
        return Agreement(0, InitFlag(0)), struct.pack("<II", MAJOR, MINOR)
    if (major, minor) < (MAJOR, MINOR_MIN):
        raise UnsupportedKernel(f"FUSE protocol {major}.{minor}; {MAJOR}.{MINOR_MIN} is needed")
    if flags & InitFlag.INIT_EXT and len(more) >= _INIT_MORE.size:
        flags |= _INIT_MORE.unpack_from(more)[0] << 32
    wanted = _WANTED | InitFlag.REQUEST_TIMEOUT if request_timeout_s else _WANTED
    agreed = InitFlag(flags & wanted)
    minor = min(minor, MINOR)
    reply = _INIT_OUT.pack(
        MAJOR,
        minor,
        max(readahead_bytes, limits.READAHEAD_BYTES),
        agreed & 0xFFFF_FFFF,
        limits.BACKGROUND_REQUESTS,
        limits.BACKGROUND_REQUESTS * 3 // 4,
        limits.REQUEST_BYTES,
        1,  # times are kept to the nanosecond
        limits.REQUEST_BYTES // os.sysconf("SC_PAGESIZE"),
        0,
        agreed >> 32,
        _STACK_DEPTH if agreed & InitFlag.PASSTHROUGH else 0,
        request_timeout_s if agreed & InitFlag.REQUEST_TIMEOUT else 0,
    )
    return Agreement(minor, agreed), reply


# --- flags of single requests ---

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

GETATTR_FH: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0  # of a page of a mapping, not of a call of write(2)
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_DATA_ONLY: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_PASSTHROUGH: Final = 1 << 7

# ioctl(2) on /dev/fuse: a file that the kernel may read itself, as a number for `opened`.
BACKING_OPEN: Final = 0x4010_E501
BACKING_CLOSE: Final = 0x4004_E502
_BACKING_MAP = struct.Struct("<iIQ")
_BACKING_ID = struct.Struct("<I")

# --- replies ---

_NS_PER_S = 1_000_000_000

_ATTRIBUTES = "QQQqqqIIIIIIIIII"  # ino, size, blocks, times, ns, mode, nlink, uid, gid, rdev, blksize, -
_ENTRY_OUT = struct.Struct("<QQQQII" + _ATTRIBUTES)
_ATTRIBUTES_OUT = struct.Struct("<QII" + _ATTRIBUTES)
_OPEN_OUT = struct.Struct("<QIi")
_WRITE_OUT = struct.Struct("<II")
_SIZE_OUT = struct.Struct("<II")
_OFFSET_OUT = struct.Struct("<Q")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_STATX_OUT = struct.Struct("<QIIQQ")
_STATX_INODE = struct.Struct("<Q")
_STATX_INODE_OFFSET = 32
_IOCTL_OUT = struct.Struct("<iIII")
_DIRENT = struct.Struct("<QQII")
DIRENT_BYTES: Final = _DIRENT.size
ENTRY_BYTES: Final = _ENTRY_OUT.size

_pack_entry = _ENTRY_OUT.pack
_pack_attributes = _ATTRIBUTES_OUT.pack


class Validity:
    """How long the kernel may rely on what a reply says."""

    __slots__ = ("attribute_ns", "attribute_s", "entry_ns", "entry_s", "no_entry")

    def __init__(self, attributes_s: float, entries_s: float) -> None:
        self.attribute_s, self.attribute_ns = divmod(round(attributes_s * _NS_PER_S), _NS_PER_S)
        self.entry_s, self.entry_ns = divmod(round(entries_s * _NS_PER_S), _NS_PER_S)
        self.no_entry = _ENTRY_OUT.pack(0, 0, self.entry_s, 0, self.entry_ns, 0, *(0,) * 16)
        """fuse_entry_out for a name that is not there: the kernel remembers that, too."""


_USUAL: Final = Validity(limits.ATTRIBUTE_TIMEOUT_S, limits.ATTRIBUTE_TIMEOUT_S)


def entry(node_id: int, state: os.stat_result, validity: Validity = _USUAL) -> bytes:
    """fuse_entry_out: what stands at a name."""
    atime_ns, mtime_ns, ctime_ns = state.st_atime_ns, state.st_mtime_ns, state.st_ctime_ns
    return _pack_entry(
        node_id,
        0,  # generation: no number is given to another object while the kernel still uses it
        validity.entry_s,
        validity.attribute_s,
        validity.entry_ns,
        validity.attribute_ns,
        node_id,
        state.st_size,
        state.st_blocks,
        atime_ns // _NS_PER_S,
        mtime_ns // _NS_PER_S,
        ctime_ns // _NS_PER_S,
        atime_ns % _NS_PER_S,
        mtime_ns % _NS_PER_S,
        ctime_ns % _NS_PER_S,
        state.st_mode,
        state.st_nlink & 0xFFFF_FFFF,
        state.st_uid,
        state.st_gid,
        state.st_rdev & 0xFFFF_FFFF,  # the kernel's 32 bits are the lower half of the C library's encoding
        state.st_blksize,
        0,
    )


def attributes(node_id: int, state: os.stat_result, validity: Validity = _USUAL) -> bytes:
    """fuse_attr_out."""
    atime_ns, mtime_ns, ctime_ns = state.st_atime_ns, state.st_mtime_ns, state.st_ctime_ns
    return _pack_attributes(
        validity.attribute_s,
        validity.attribute_ns,
        0,
        node_id,
        state.st_size,
        state.st_blocks,
        atime_ns // _NS_PER_S,
        mtime_ns // _NS_PER_S,
        ctime_ns // _NS_PER_S,
        atime_ns % _NS_PER_S,
        mtime_ns % _NS_PER_S,
        ctime_ns % _NS_PER_S,
        state.st_mode,
        state.st_nlink & 0xFFFF_FFFF,
        state.st_uid,
        state.st_gid,
        state.st_rdev & 0xFFFF_FFFF,
        state.st_blksize,
        0,
    )


def statx(node_id: int, state: bytes, validity: Validity = _USUAL) -> bytes:
    """fuse_statx_out; `state` as statx(2) gives it, 256 bytes."""
    own = bytearray(state)
    _STATX_INODE.pack_into(own, _STATX_INODE_OFFSET, node_id)
    return _STATX_OUT.pack(validity.attribute_s, validity.attribute_ns, 0, 0, 0) + own


def opened(handle_id: int, flags: int = FOPEN_KEEP_CACHE, backing_id: int = 0) -> bytes:
    """fuse_open_out. All changes pass through the mount, so what is cached stays right across opens.

    `backing_id`: of the file the kernel is to read, with FOPEN_PASSTHROUGH.
    """
    return _OPEN_OUT.pack(handle_id, flags, backing_id)


def backing_map(descriptor: int) -> bytes:
    """fuse_backing_map, for BACKING_OPEN, which returns the id."""
    return _BACKING_MAP.pack(descriptor, 0, 0)


def backing_number(backing_id: int) -> bytes:
    """For BACKING_CLOSE."""
    return _BACKING_ID.pack(backing_id)


def written(count: int) -> bytes:
    """fuse_write_out."""
    return _WRITE_OUT.pack(count, 0)


def size(count: int) -> bytes:
    """fuse_getxattr_out."""
    return _SIZE_OUT.pack(count, 0)


def offset(position: int) -> bytes:
    """fuse_lseek_out and fuse_copy_file_range_out."""
    return _OFFSET_OUT.pack(position)


def statfs(state: os.statvfs_result) -> bytes:
    return _STATFS_OUT.pack(
        state.f_blocks,
        state.f_bfree,
        state.f_bavail,
        state.f_files,
        state.f_ffree,
        state.f_bsize,
        state.f_namemax,
        state.f_frsize,
        0,
    )


def ioctl(result: int, data: bytes) -> bytes:
    return _IOCTL_OUT.pack(result, 0, 0, 0) + data


def directory_entry(inode: int, position: int, name: bytes, file_type: int) -> bytes:
    """fuse_dirent: `file_type` as in d_type. Reading goes on at `position`."""
    text = _DIRENT.pack(inode, position, len(name), file_type) + name
    return text + bytes(-len(text) % 8)


NOTHING_LOOKED_UP: Final = bytes(ENTRY_BYTES)
"""fuse_entry_out before a name in READDIRPLUS of which only the name is told."""


def directory_entry_bytes(name: bytes) -> int:
    return (DIRENT_BYTES + len(name) + 7) & -8


# --- notifications ---


class Notification(IntEnum):
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
    PRUNE = 9


_INVAL_INODE = struct.Struct("<Qqq")
_INVAL_ENTRY = struct.Struct("<QII")
_PRUNE = struct.Struct("<IIQ")


def _notification(code: Notification, body: bytes = b"") -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def forget_attributes(node_id: int) -> bytes:
    """The kernel asks for this object's attributes before it uses them again; its content stays cached."""
    return _notification(Notification.INVAL_INODE, _INVAL_INODE.pack(node_id, -1, 0))


def forget_content(node_id: int) -> bytes:
    """The same, and for its content. Waits for pages of it that are being written."""
    return _notification(Notification.INVAL_INODE, _INVAL_INODE.pack(node_id, 0, 0))


def forget_entry(parent_id: int, name: bytes) -> bytes:
    """The kernel looks this name up before it uses it again. Waits for the directory's lock."""
    return _notification(Notification.INVAL_ENTRY, _INVAL_ENTRY.pack(parent_id, len(name), 0) + name + b"\0")


def prune(node_ids: Sequence[int]) -> bytes:
    """The kernel drops those of these objects that nobody uses, and sends the FORGETs."""
    count = len(node_ids)
    return _notification(Notification.PRUNE, _PRUNE.pack(count, 0, 0) + struct.pack(f"<{count}Q", *node_ids))


def resend() -> bytes:
    """The kernel hands every request out again that was read and not answered."""
    return _notification(Notification.RESEND)
