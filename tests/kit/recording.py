"""Change a tree by plain system calls, and say in records what a capture would have journaled."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from replicator import limits
from replicator.fs.whole_file import read_whole
from replicator.ops import CREATION_MASK, AttributeMask, Attributes, Flag, Kind, Record

_MASK_ALL = CREATION_MASK | AttributeMask.MTIME


def make_record(
    kind: int,
    path: bytes,
    path2: bytes = b"",
    payload: bytes | memoryview = b"",
    *,
    arg0: int = 0,
    arg1: int = 0,
    flags: int = 0,
    inode: int = 0,
) -> Record:
    """A record with what an applier looks at."""
    return Record(kind, flags, 0, 0, 0, 0, 0, inode, 0, arg0, arg1, path, path2, payload)


def attributes_at(full: bytes, mask: int = CREATION_MASK) -> Attributes:
    """Attributes of the object as they are now."""
    state = os.lstat(full)
    if stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):
        mask |= AttributeMask.RDEV
    return Attributes(
        int(mask),
        state.st_mode,
        state.st_uid,
        state.st_gid,
        state.st_rdev,
        state.st_atime_ns,
        state.st_mtime_ns,
    )


class Source:
    """A directory changed operation by operation. A call that the kernel refuses raises, unrecorded."""

    def __init__(self, root: str | Path, listener: Callable[[Record], None] | None = None) -> None:
        self.root = os.fsencode(root)
        self.records: list[Record] = []
        self._listener = listener
        self.observers: list[Callable[[Record], None]] = []

    def at(self, path: bytes) -> bytes:
        """The full path. Never through a symlink: a random one may lead anywhere on this host."""
        full = self.root
        for component in path.split(b"/") if path else ():
            if os.path.islink(full):
                raise OSError(errno.ELOOP, "a symlink on the way", full)
            full += b"/" + component
        return full

    def inside(self, path: bytes) -> bytes:
        """As `at`, for calls that would follow a last symlink."""
        full = self.at(path)
        if os.path.islink(full):
            raise OSError(errno.ELOOP, "a symlink", full)
        return full

    def _record(self, kind: Kind, path: bytes, path2: bytes = b"", payload: bytes = b"", **more: int) -> None:
        record = make_record(kind, path, path2, payload, **more)
        self.records.append(record)
        if self._listener is not None:
            self._listener(record)
        for observe in self.observers:
            observe(record)

    def _known(self, path: bytes) -> dict[str, int]:
        state = os.lstat(self.at(path))
        flags = Flag.NONE
        if stat.S_ISDIR(state.st_mode):
            flags |= Flag.DIRECTORY
        elif state.st_nlink > 1:
            flags |= Flag.MULTILINK
        return {"inode": state.st_ino, "flags": int(flags)}

    # --- names ---

    def create(self, path: bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
        descriptor = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        os.close(descriptor)
        self._record(Kind.CREATE, path, payload=attributes_at(self.at(path)).encode(), **self._known(path))

    def appear(
        self,
        path: bytes,
        extents: dict[int, bytes],
        size: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        """A file that is made and written without a name, and then gets one. `extents`: data by offset."""
        full = self.at(path)
        descriptor = os.open(os.path.dirname(full), os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            for offset, data in extents.items():
                os.pwrite(descriptor, data, offset)
            os.ftruncate(descriptor, max(size, os.fstat(descriptor).st_size))
            os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            for name, value in (xattrs or {}).items():
                os.setxattr(descriptor, name, value)
            os.link(f"/proc/self/fd/{descriptor}", full, src_dir_fd=descriptor, follow_symlinks=True)
            payload = read_whole(descriptor, limits.UNNAMED_BYTES).encode()
        finally:
            os.close(descriptor)
        self._record(Kind.FILE, path, payload=payload, **self._known(path))

    def mkdir(self, path: bytes, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        os.mkdir(self.at(path), mode)
        os.chown(self.at(path), *owner)
        os.chmod(self.at(path), mode)
        self._record(Kind.MKDIR, path, payload=attributes_at(self.at(path)).encode(), **self._known(path))

    def symlink(self, path: bytes, text: bytes, owner: tuple[int, int] = (0, 0)) -> None:
        os.symlink(text, self.at(path))
        os.lchown(self.at(path), *owner)
        payload = attributes_at(self.at(path)).encode()
        self._record(Kind.SYMLINK, path, text, payload, **self._known(path))

    def mknod(self, path: bytes, mode: int, rdev: int = 0, owner: tuple[int, int] = (0, 0)) -> None:
        os.mknod(self.at(path), mode, rdev)
        os.chown(self.at(path), *owner)
        os.chmod(self.at(path), stat.S_IMODE(mode))
        self._record(Kind.MKNOD, path, payload=attributes_at(self.at(path)).encode(), **self._known(path))

    def link(self, path: bytes, path2: bytes) -> None:
        os.link(self.at(path), self.at(path2), follow_symlinks=False)
        self._record(Kind.LINK, path, path2, **self._known(path))

    def unlink(self, path: bytes) -> None:
        known = self._known(path)
        os.unlink(self.at(path))
        self._tell_unlink(path, known)

    def _tell_unlink(self, path: bytes, known: dict[str, int]) -> None:
        self._record(Kind.UNLINK, path, **known)

    def rmdir(self, path: bytes) -> None:
        known = self._known(path)
        os.rmdir(self.at(path))
        self._tell_rmdir(path, known)

    def _tell_rmdir(self, path: bytes, known: dict[str, int]) -> None:
        self._record(Kind.RMDIR, path, **known)

    def rename(self, path: bytes, path2: bytes, flags: int = 0) -> None:
        known = self._known(path)
        if os.path.lexists(self.at(path2)) and os.path.samestat(
            os.lstat(self.at(path)), os.lstat(self.at(path2))
        ):
            raise OSError(errno.EINVAL, "two names of one file: the kernel does nothing, and tells nobody")
        if flags:
            _renameat2(self.at(path), self.at(path2), flags)
        else:
            os.rename(self.at(path), self.at(path2))
        self._record(Kind.RENAME, path, path2, arg0=flags, **known)

    # --- data and attributes ---

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        with open(self.inside(path), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, offset)
        self._record(Kind.WRITE, path, payload=data, arg0=offset, **self._known(path))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.inside(path), size)
        self._record(Kind.TRUNCATE, path, arg0=size, **self._known(path))

    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        with open(self.inside(path), "r+b", buffering=0) as file:
            _fallocate(file.fileno(), mode, offset, length)
        payload = struct.pack("<I", mode)
        self._record(Kind.FALLOCATE, path, payload=payload, arg0=offset, arg1=length, **self._known(path))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.inside(path), mode)
        self.set_attributes(path, AttributeMask.MODE)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self.at(path), uid, gid)
        self.set_attributes(path, CREATION_MASK)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self.at(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        self.set_attributes(path, AttributeMask.MTIME)

    def set_attributes(self, path: bytes, mask: int, flags: int = 0) -> None:
        """Record what is there already, as capture does with an mtime after a close."""
        known = self._known(path)
        known["flags"] |= flags
        self._record(Kind.SETATTR, path, payload=attributes_at(self.at(path), mask).encode(), **known)

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        os.setxattr(self.at(path), name, value, follow_symlinks=False)
        self._record(Kind.SETXATTR, path, name, value, **self._known(path))

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=False)
        self._record(Kind.REMOVEXATTR, path, name, **self._known(path))

    def settle(self) -> None:
        """Everything is closed and quiet: the mtimes are journaled."""
        found = [b""]
        for path in found:
            self.set_attributes(path, AttributeMask.MTIME, Flag.AFTER_CLOSE)
            if stat.S_ISDIR(os.lstat(self.at(path)).st_mode):
                found += [path + b"/" + n if path else n for n in sorted(os.listdir(self.at(path)))]


def _renameat2(old: bytes, new: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, old, -100, new, flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
