"""What records do to one object: content, attributes and extended attributes, on a descriptor of it."""

import errno
import os
import stat
import struct

from replicator.fs import calls
from replicator.fs.apply_outcome import INTENT, Outcome
from replicator.fs.attributes import is_replicated_xattr, proc_path, set_attributes, write_at
from replicator.ops import AttributeMask, Attributes, Kind, Record

_OWNER = AttributeMask.UID | AttributeMask.GID
_SIZE_MOVING = calls.FALLOC_COLLAPSE_RANGE | calls.FALLOC_INSERT_RANGE
_ALLOCATE_MODE = struct.Struct("<I")
_ZEROS = bytes(1 << 20)


def write(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    write_at(descriptor, record.payload, record.arg0)
    return Outcome.APPLIED


def truncate(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    os.ftruncate(descriptor, record.arg0)
    return Outcome.APPLIED


def _allocate_mode(record: Record) -> int:
    mode: int = _ALLOCATE_MODE.unpack_from(record.payload)[0]
    return mode


def fallocate(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    mode, offset, length = _allocate_mode(record), record.arg0, record.arg1
    if in_doubt and mode & _SIZE_MOVING and len(intent) == INTENT.size:
        before = INTENT.unpack(intent)[0]
        if os.fstat(descriptor).st_size != before:
            return Outcome.ALREADY
    allocate(descriptor, mode, offset, length)
    return Outcome.APPLIED


def moves_size(record: Record) -> bool:
    return bool(_allocate_mode(record) & _SIZE_MOVING)


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), also on file systems that have none. OSError."""
    try:
        calls.fallocate(descriptor, mode, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or mode & _SIZE_MOVING:
            raise
        _allocate_by_hand(descriptor, mode, offset, length)


def _allocate_by_hand(descriptor: int, mode: int, offset: int, length: int) -> None:
    """The same content where the file system cannot allocate; what it cannot promise is the space."""
    size = os.fstat(descriptor).st_size
    if mode & (calls.FALLOC_PUNCH_HOLE | calls.FALLOC_ZERO_RANGE):
        end = min(offset + length, size)
        for start in range(offset, end, len(_ZEROS)):
            write_at(descriptor, memoryview(_ZEROS)[: end - start], start)
    if not mode & calls.FALLOC_KEEP_SIZE and offset + length > size:
        os.ftruncate(descriptor, offset + length)


def change_attributes(descriptor: int, record: Record, lenient: bool) -> Outcome:
    attributes = Attributes.decode(record.payload)
    mask = attributes.mask
    if mask & AttributeMask.MODE and mask & _OWNER and not stat.S_ISLNK(attributes.mode):
        # Between the two steps nobody may do what neither the old owner and mode nor the new ones allow.
        mode = os.fstat(descriptor).st_mode & 0o7777
        common = mode & attributes.mode & 0o777
        if common != mode:
            os.chmod(proc_path(descriptor), common)
    set_attributes(descriptor, attributes)
    return Outcome.APPLIED


def set_xattr(descriptor: int, record: Record, lenient: bool) -> Outcome:
    if not is_replicated_xattr(record.path2):
        return Outcome.IGNORED
    # The flags of setxattr(2) decided on the source whether it may happen; here it has happened.
    os.setxattr(proc_path(descriptor), record.path2, record.payload)
    return Outcome.APPLIED


def remove_xattr(descriptor: int, record: Record, lenient: bool) -> Outcome:
    if not is_replicated_xattr(record.path2):
        return Outcome.IGNORED
    try:
        os.removexattr(proc_path(descriptor), record.path2)
    except OSError as error:
        if not (lenient and error.errno == errno.ENODATA):
            raise
        return Outcome.ALREADY
    return Outcome.APPLIED


def is_same_type(descriptor: int, record: Record) -> bool:
    """Whether the object is of the type that a SETATTR names; others name none."""
    if record.kind != Kind.SETATTR:
        return True
    wanted = stat.S_IFMT(Attributes.decode(record.payload).mode)
    return not wanted or wanted == stat.S_IFMT(os.fstat(descriptor).st_mode)
