"""Operations: what capture records, a journal keeps, a session ships and a target applies.

A record is self-explaining: it carries its paths, the identity of its file and its place in time. Paths are
bytes relative to the root of the captured directory, without a leading slash; the root itself is b"".
`replicator/queue/FORMAT.md` specifies the encoding.
"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from replicator.bounds import I64, U32, Count


def shown(path: bytes) -> str:
    """A path for people, logs and JSON: any bytes, as text that every encoding takes."""
    return path.decode(errors="backslashreplace")


class Kind(IntEnum):
    """What a record does.

    0 is invalid, so that unwritten space is recognised.
    """

    CREATE = 1  # regular file; attributes in payload
    MKDIR = 2  # attributes in payload
    SYMLINK = 3  # path2 = link text; attributes in payload
    MKNOD = 4  # fifo, socket, device; attributes (with rdev) in payload
    LINK = 5  # path = existing name, path2 = new name
    UNLINK = 6
    RMDIR = 7
    RENAME = 8  # path -> path2; arg0 = renameat2 flags
    WRITE = 9  # arg0 = offset; payload = data
    TRUNCATE = 10  # arg0 = new size
    SETATTR = 11  # payload = Attributes; which of them count is in its mask
    SETXATTR = 12  # path2 = name; payload = value; arg0 = flags of setxattr(2)
    REMOVEXATTR = 13  # path2 = name
    FALLOCATE = 14  # arg0 = offset, arg1 = length; payload = u32 mode
    FILE = 15  # regular file made without a name: it appears with all it holds; payload: fs/whole_file.py
    DOUBT = 20  # path (and what is below it) may differ from what the journal says: compare it again
    HOLE = 21  # arg0 = operations lost before this record; payload = dirty map of them, or empty: everything
    REMOVE_TREE = 22  # derived by a sender: path and all below it left the set
    # Records that only ever stand in a target's spool.
    FRAME = 40  # payload = a run of records or one piece, as it arrived


NAME_KINDS = frozenset(
    {
        Kind.CREATE,
        Kind.MKDIR,
        Kind.SYMLINK,
        Kind.MKNOD,
        Kind.LINK,
        Kind.UNLINK,
        Kind.RMDIR,
        Kind.RENAME,
        Kind.REMOVE_TREE,
        Kind.FILE,
    }
)
"""Kinds that change a name; all others change what a name refers to."""

TWO_PATH_KINDS = frozenset({Kind.LINK, Kind.RENAME})

RENAME_NOREPLACE = 1  # renameat2(2)
RENAME_EXCHANGE = 2


class Flag(IntFlag):
    """Flags of a record."""

    NONE = 0
    MULTILINK = 1  # the file had more than one name when the record was taken
    DIRECTORY = 2  # the object is a directory
    AFTER_CLOSE = 4  # an mtime journaled at close or after a quiet second, not asked for by an application


class Identity(NamedTuple):
    """Identity of a file on its source, independent of any path: inode number and inode generation."""

    inode: Count
    generation: Count


NO_IDENTITY = Identity(0, 0)


class AttributeMask(IntFlag):
    """Which members of `Attributes` count."""

    MODE = 1
    UID = 2
    GID = 4
    ATIME = 8
    MTIME = 16
    RDEV = 32


CREATION_MASK = AttributeMask.MODE | AttributeMask.UID | AttributeMask.GID

_ATTRIBUTES = struct.Struct("<IIIIQqq")


class Attributes(NamedTuple):
    """Attributes of an object as they are after the operation.

    `mode` is st_mode with the type; times are ns.
    """

    mask: U32 = 0
    mode: U32 = 0
    uid: U32 = 0
    gid: U32 = 0
    rdev: Count = 0
    atime_ns: I64 = 0
    mtime_ns: I64 = 0

    def encode(self) -> bytes:
        return _ATTRIBUTES.pack(*self)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> "Attributes":
        return cls(*_ATTRIBUTES.unpack_from(data))


class Record(NamedTuple):
    """One decoded record.

    `path`, `path2` are bytes; `payload` is bytes or a view that lives as long as its buffer.
    """

    kind: int
    flags: int
    sequence: int
    chain: int
    boot: int  # short boot id: stamps of different boots do not compare
    monotonic_ns: int  # the stamp: taken after the operation and before its reply
    wall_ns: int
    inode: int
    generation: int
    arg0: int
    arg1: int
    path: bytes
    path2: bytes
    payload: bytes | memoryview

    @property
    def identity(self) -> Identity:
        return Identity(self.inode, self.generation)


class Position(NamedTuple):
    """A place in one journal: the sequence of the last record before it, and that record's chain value as
    proof.

    Position(0, 0) is the beginning.
    """

    sequence: int
    chain: int


START = Position(0, 0)
