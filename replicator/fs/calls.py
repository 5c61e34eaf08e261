"""System calls that Python's os module lacks. All raise OSError; none holds the interpreter lock."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.syncfs.argtypes = [ctypes.c_int]

_OPENAT2 = 437  # the same number on every architecture
_OPEN_HOW = struct.Struct("=QQQ")

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

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


def syncfs(descriptor: int) -> None:
    """syncfs(2): everything of that file system is on stable storage on return."""
    if _libc.syncfs(descriptor) != 0:
        raise _failure()
