"""System calls that Python's os module lacks. All raise OSError; only clone holds the interpreter lock."""

import ctypes
import errno
import os
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]

_python = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter lock

_CLONE = {"x86_64": 56, "aarch64": 220}
_OPENAT2 = 437  # the same number on every architecture
_OPEN_HOW = struct.Struct("=QQQ")
_STATX_INODE = struct.Struct("=Q")
_CACHESTAT = 451  # the same number on every architecture
_CACHESTAT_RANGE = struct.Struct("=QQ")
_cachestat = ctypes.create_string_buffer(5 * 8)  # used within one call only, by one thread

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

STATX_BYTES = 256
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
CLONE_FS = 0x200
CLONE_FILES = 0x400
CLONE_PARENT = 0x8000

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_COLLAPSE_RANGE = 0x08
FALLOC_ZERO_RANGE = 0x10
FALLOC_INSERT_RANGE = 0x20


def _failure(path: bytes | str | None = None) -> OSError:
    number = ctypes.get_errno()
    return (
        OSError(number, os.strerror(number), path)
        if path is not None
        else OSError(number, os.strerror(number))
    )


def open_how(flags: int, resolve: int) -> bytes:
    """The argument of `openat2` for opening what exists; made once and used often."""
    return _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)


def openat2(directory: int, path: bytes, how: bytes) -> int:
    """openat2(2). `how` from `open_how`."""
    descriptor: int = _libc.syscall(_OPENAT2, directory, path, how, _OPEN_HOW.size)
    if descriptor < 0:
        raise _failure(path)
    return descriptor


def renameat2(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(old_directory, old, new_directory, new, flags) != 0:
        raise _failure(old)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _libc.fallocate(descriptor, mode, offset, length) != 0:
        raise _failure()


def file_system_type(descriptor: int) -> int:
    """Its number (linux/magic.h): the first field of struct statfs, see statfs(2)."""
    state = (ctypes.c_long * 64)()
    if _libc.fstatfs(descriptor, state) != 0:
        raise _failure()
    return state[0] & 0xFFFFFFFF


def syncfs(descriptor: int) -> None:
    """syncfs(2): everything of that file system is on stable storage on return."""
    if _libc.syncfs(descriptor) != 0:
        raise _failure()


def getdents(descriptor: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """getdents64(2): fill `buffer` with linux_dirent64 structures; the bytes used, 0 at the end."""
    count: int = _libc.getdents64(descriptor, buffer, len(buffer))
    if count < 0:
        raise _failure()
    return count


def statx(descriptor: int, name: bytes, flags: int, mask: int) -> bytes:
    """statx(2): a struct statx. `name` is relative to `descriptor`, or b"" with AT_EMPTY_PATH."""
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    if _libc.statx(descriptor, name, flags, mask, buffer) != 0:
        raise _failure(name)
    return buffer.raw


def statx_inode(state: bytes) -> int:
    """stx_ino of a struct statx."""
    (inode,) = _STATX_INODE.unpack_from(state, 32)
    return int(inode)


def cached_pages(descriptor: int, offset: int, length: int) -> int:
    """How many pages of that range are in memory: cachestat(2), since Linux 6.5."""
    wanted = _CACHESTAT_RANGE.pack(offset, length)
    if _libc.syscall(_CACHESTAT, descriptor, wanted, _cachestat, 0) != 0:
        raise _failure()
    (count,) = _STATX_INODE.unpack_from(_cachestat)
    return int(count)


def unshare_umask() -> None:
    """The calling thread gets a umask (and working directory) of its own: unshare(2) with CLONE_FS."""
    if _libc.unshare(CLONE_FS) != 0:
        raise _failure()


def clone(flags: int) -> int:
    """clone(2) of the calling thread, as a process with memory of its own: 0 there, its id here.

    The interpreter lock is held over it, but Python knows nothing of it: see PyOS_AfterFork_Child.
    """
    number = _CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "clone(2) is not known on this machine")
    pid: int = _python.syscall(number, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid < 0:
        raise _failure()
    return pid
