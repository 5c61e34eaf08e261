"""Owner, mode, times, extended attributes, data extents: one way for capture, scanner and apply.

Objects are named by a descriptor (O_PATH or not) or by a name relative to a directory descriptor, and a
symlink is never followed. A descriptor is addressed as /proc/self/fd/N: its magic link leads to the object
itself, also to a symlink, for which the kernel has no other way (fchmod and fsetxattr refuse O_PATH).

Order: `set_attributes` first, then `write_xattrs`. A change of owner drops security.capability and the suid
bits, and a change of mode changes the mask of an access ACL; the values written last are the ones that stay.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Mapping

from replicator import limits
from replicator.ops import AttributeMask, Attributes, Identity

Xattrs = dict[bytes, bytes]

MIRROR_MASK = AttributeMask.MODE | AttributeMask.UID | AttributeMask.GID | AttributeMask.MTIME

# As plain numbers: operations on flags take microseconds.
_MODE, _UID, _GID, _ATIME, _MTIME = (
    int(bit)
    for bit in (
        AttributeMask.MODE,
        AttributeMask.UID,
        AttributeMask.GID,
        AttributeMask.ATIME,
        AttributeMask.MTIME,
    )
)
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.ENOSYS})
_PREFIXES = (b"user.", b"trusted.")
_SYSTEM_NAMES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"})
_PERMISSIONS = 0o7777
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_UTIME_OMIT = (1 << 30) - 2
_NS_PER_S = 1_000_000_000
_UNCHANGED = -1  # chown(2)

_libc = ctypes.CDLL(None, use_errno=True)
_Timespecs = ctypes.c_long * 4


def attributes_of(state: os.stat_result, mask: int = MIRROR_MASK) -> Attributes:
    """Attributes as in `state`. RDEV is added to the mask for a device node."""
    mode = state.st_mode
    rdev = 0
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        rdev = state.st_rdev
        mask |= AttributeMask.RDEV
    return Attributes(int(mask), mode, state.st_uid, state.st_gid, rdev, state.st_atime_ns, state.st_mtime_ns)


def identity_of(state: os.stat_result) -> Identity:
    """Identity of the object `state` describes.

    The generation is 0: telling a reused inode number from its predecessor would take a system call of its
    own for every file of a scan (stat(2) does not tell it), and whoever remembers an identity reads, in
    order, the UNLINK that ends it.
    """
    return Identity(state.st_ino, 0)


def is_replicated_xattr(name: bytes) -> bool:
    """Whether a target gets it. Labels of the source's security modules would mean something else there."""
    return name.startswith(_PREFIXES) or name in _SYSTEM_NAMES


def proc_path(descriptor: int) -> str:
    """A path that leads to the object behind a descriptor, to be followed."""
    return f"/proc/self/fd/{descriptor}"


# --- extended attributes ---


def read_xattrs(target: int | bytes | str, *, readable: bool = False) -> Xattrs:
    """Replicated extended attributes of a descriptor (also O_PATH) or of a path, which is not followed.

    `readable`: the descriptor is open for reading, which saves the way through /proc.

    Empty where the file system has none. An attribute that vanishes meanwhile is left out.
    """
    follow = True
    if not readable:
        target, follow = _reachable(target)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return {}
        raise
    found: Xattrs = {}
    for text in names:
        name = os.fsencode(text)
        if is_replicated_xattr(name):
            try:
                found[name] = os.getxattr(target, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    return found


def write_xattrs(
    target: int | bytes | str, wanted: Mapping[bytes, bytes], current: Mapping[bytes, bytes] | None = None
) -> None:
    """Give the object exactly these replicated extended attributes; others are not touched.

    `current` saves reading what is there. Raises OSError for the first one that cannot be set.
    """
    if current is None:
        current = read_xattrs(target)
    if current == wanted:
        return
    target, follow = _reachable(target)
    for name in current:
        if name not in wanted:
            try:
                os.removexattr(target, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    for name, value in wanted.items():
        if current.get(name) != value:
            os.setxattr(target, name, value, follow_symlinks=follow)


def _reachable(target: int | bytes | str) -> tuple[bytes | str, bool]:
    """A path for the xattr calls, and whether to follow it (f*xattr refuse O_PATH descriptors)."""
    if isinstance(target, int):
        return proc_path(target), True
    return target, False


# --- owner, mode, times ---


def set_attributes(
    descriptor: int,
    attributes: Attributes,
    *,
    name: bytes | None = None,
    current: os.stat_result | None = None,
) -> None:
    """Set what `attributes.mask` names on the object behind `descriptor`, or on `name` in that directory.

    `current` (its state now) saves calls for what is equal already. Type and rdev of an object cannot be
    set. A symlink's mode is fixed: asked for, it is ignored. Raises OSError.
    """
    mask = int(attributes.mask)
    suid_dropped = False
    if mask & (_UID | _GID):
        uid = attributes.uid if mask & _UID else _UNCHANGED
        gid = attributes.gid if mask & _GID else _UNCHANGED
        if (
            current is None
            or uid not in (_UNCHANGED, current.st_uid)
            or gid not in (_UNCHANGED, current.st_gid)
        ):
            _chown(descriptor, name, uid, gid)
            suid_dropped = True  # the kernel clears suid and sgid with a change of owner
    if mask & _MODE and not stat.S_ISLNK(attributes.mode):
        mode = attributes.mode & _PERMISSIONS
        if current is None or current.st_mode & _PERMISSIONS != mode or (suid_dropped and mode & 0o6000):
            _chmod(descriptor, name, mode)
    if mask & (_ATIME | _MTIME):
        atime_ns = attributes.atime_ns if mask & _ATIME else None
        mtime_ns = attributes.mtime_ns if mask & _MTIME else None
        if (
            current is None
            or atime_ns not in (None, current.st_atime_ns)
            or mtime_ns not in (None, current.st_mtime_ns)
        ):
            set_times(descriptor, atime_ns, mtime_ns, name=name)


def set_times(
    descriptor: int, atime_ns: int | None, mtime_ns: int | None, *, name: bytes | None = None
) -> None:
    """Set times in ns since the epoch; None leaves one as it is. Nothing is followed. Raises OSError."""
    times = _Timespecs(0, _UTIME_OMIT, 0, _UTIME_OMIT)
    if atime_ns is not None:
        times[0], times[1] = divmod(atime_ns, _NS_PER_S)
    if mtime_ns is not None:
        times[2], times[3] = divmod(mtime_ns, _NS_PER_S)
    if name is None:
        result = _libc.utimensat(_AT_FDCWD, proc_path(descriptor).encode(), times, 0)
    else:
        result = _libc.utimensat(descriptor, name, times, _AT_SYMLINK_NOFOLLOW)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _chown(descriptor: int, name: bytes | None, uid: int, gid: int) -> None:
    if name is None:
        os.chown(proc_path(descriptor), uid, gid)
    else:
        os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)


def _chmod(descriptor: int, name: bytes | None, mode: int) -> None:
    if name is None:
        os.chmod(proc_path(descriptor), mode)
        return
    # No chmod by name leaves links alone on every kernel: pin the object first.
    pinned = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    try:
        if not stat.S_ISLNK(os.fstat(pinned).st_mode):
            os.chmod(proc_path(pinned), mode)
    finally:
        os.close(pinned)


# --- content ---


def data_extents(descriptor: int, size: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data from `offset` up to `size`, in order. One extent if holes are unknown."""
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            if error.errno == errno.EINVAL:
                yield offset, size - offset
                return
            raise
        end = data_end(descriptor, start, size) if start < size else start
        if end <= start:
            return
        yield start, end - start
        offset = end


def data_end(descriptor: int, start: int, size: int) -> int:
    """Where the data that was found at `start` ends, `size` at most; `start` if the file was cut off before
    it meanwhile.
    """
    try:
        return min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # beyond the end (lseek(2))
            return start
        raise


def write_at(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of it, in calls of at most `limits.WRITE_BYTES`."""
    size = len(data)
    written = os.pwrite(descriptor, data, offset) if size <= limits.WRITE_BYTES else 0
    if written != size:
        rest = memoryview(data)[written:]
        offset += written
        while rest:
            written = os.pwrite(descriptor, rest[: limits.WRITE_BYTES], offset)
            offset += written
            rest = rest[written:]
