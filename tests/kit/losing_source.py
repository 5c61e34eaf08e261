"""A source whose storage has not kept all that was done to it when the power goes.

Every change can be undone, with the same inode numbers; what was removed waits in a directory beside. A loss
of power undoes some of the latest changes, and zeros some of what was written and leaves size and times.
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kit.recording import Source
from replicator.ops import RENAME_EXCHANGE, Record


class LosingSource(Source):
    """`synced` is called when the storage is. Until then a removed name counts as a link of its file."""

    def __init__(self, root: str | Path, listener: Callable[[Record], None], aside: Path) -> None:
        super().__init__(root, listener)
        aside.mkdir()
        self._aside = os.fsencode(aside)
        self._removed = 0
        self._undo: list[tuple[int, Callable[[], None]]] = []  # with the number of records up to the change
        self._written: list[tuple[int, int, int, int]] = []  # records before it, descriptor, offset, length

    def synced(self) -> None:
        self._undo.clear()
        for _, descriptor, _, _ in self._written:
            os.close(descriptor)
        self._written.clear()
        for name in os.listdir(self._aside):
            full = self._aside + b"/" + name
            os.rmdir(full) if os.path.isdir(full) and not os.path.islink(full) else os.unlink(full)

    def _can_undo(self, undo: Callable[[], None]) -> None:
        self._undo.append((len(self.records), undo))

    def lose_power(self, chance: random.Random, certain: int) -> int:
        """Returns how many changes are undone: at least those after so many records."""
        count = chance.choice(
            (0, chance.randint(0, len(self._undo)), chance.randint(0, min(5, len(self._undo))))
        )
        while self._undo and (count > 0 or self._undo[-1][0] > certain):
            self._undo.pop()[1]()
            count -= 1
        for before, descriptor, offset, length in self._written:
            if before < certain and chance.random() < 0.2:
                state = os.fstat(descriptor)
                length = min(length, state.st_size - offset)
                if length > 0:
                    os.pwrite(descriptor, bytes(length), offset)
                    os.utime(descriptor, ns=(state.st_atime_ns, state.st_mtime_ns))
        self.synced()
        return count

    # --- names ---

    def create(self, path: bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
        super().create(path, mode, owner)
        self._can_undo(lambda: os.unlink(self.at(path)))

    def appear(self, path: bytes, *more: object, **fields: object) -> None:  # type: ignore[override]
        super().appear(path, *more, **fields)  # type: ignore[arg-type]
        self._can_undo(lambda: os.unlink(self.at(path)))

    def mkdir(self, path: bytes, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        super().mkdir(path, mode, owner)
        self._can_undo(lambda: os.rmdir(self.at(path)))

    def symlink(self, path: bytes, text: bytes, owner: tuple[int, int] = (0, 0)) -> None:
        super().symlink(path, text, owner)
        self._can_undo(lambda: os.unlink(self.at(path)))

    def mknod(self, path: bytes, mode: int, rdev: int = 0, owner: tuple[int, int] = (0, 0)) -> None:
        super().mknod(path, mode, rdev, owner)
        self._can_undo(lambda: os.unlink(self.at(path)))

    def link(self, path: bytes, path2: bytes) -> None:
        super().link(path, path2)
        self._can_undo(lambda: os.unlink(self.at(path2)))

    def _put_aside(self, path: bytes) -> bytes:
        self._removed += 1
        place = b"%s/%d" % (self._aside, self._removed)
        os.rename(self.at(path), place)
        return place

    def unlink(self, path: bytes) -> None:
        if stat.S_ISDIR(os.lstat(self.at(path)).st_mode):
            raise OSError(errno.EISDIR, "a directory")
        known = self._known(path)
        place = self._put_aside(path)
        self._tell_unlink(path, known)
        self._can_undo(lambda: os.rename(place, self.at(path)))

    def rmdir(self, path: bytes) -> None:
        if not stat.S_ISDIR(os.lstat(self.at(path)).st_mode):
            raise OSError(errno.ENOTDIR, "no directory")
        if os.listdir(self.at(path)):
            raise OSError(errno.ENOTEMPTY, "not empty")
        known = self._known(path)
        place = self._put_aside(path)
        self._tell_rmdir(path, known)
        self._can_undo(lambda: os.rename(place, self.at(path)))

    def rename(self, path: bytes, path2: bytes, flags: int = 0) -> None:
        place = None
        if not flags and os.path.lexists(self.at(path2)):
            first, second = os.lstat(self.at(path)), os.lstat(self.at(path2))
            if not os.path.samestat(first, second) and (path2 + b"/").startswith(path + b"/"):
                raise OSError(errno.EINVAL, "into itself")
            if os.path.samestat(first, second) or (path + b"/").startswith(path2 + b"/"):
                raise OSError(errno.EINVAL, "one within the other")
            if stat.S_ISDIR(first.st_mode) != stat.S_ISDIR(second.st_mode):
                raise OSError(errno.EISDIR, "of another type")
            if stat.S_ISDIR(second.st_mode) and os.listdir(self.at(path2)):
                raise OSError(errno.ENOTEMPTY, "not empty")
            place = self._put_aside(path2)
        try:
            super().rename(path, path2, flags)
        except OSError:
            if place is not None:
                os.rename(place, self.at(path2))
            raise

        def undo() -> None:
            if flags & RENAME_EXCHANGE:
                between = self._aside + b"/between"
                old, new = self.at(path), self.at(path2)
                os.rename(old, between)
                os.rename(new, old)
                os.rename(between, new)
                return
            os.rename(self.at(path2), self.at(path))
            if place is not None:
                os.rename(place, self.at(path2))

        self._can_undo(undo)

    # --- data and attributes ---

    def _keep(self, path: bytes, offset: int = 0, length: int = 0) -> Callable[[], None]:
        """What puts its content, size and times back."""
        descriptor = os.open(self.inside(path), os.O_RDWR)
        state = os.fstat(descriptor)
        old = os.pread(descriptor, state.st_size, 0)
        self._written.append((len(self.records), descriptor, offset, length))

        def undo() -> None:
            os.ftruncate(descriptor, state.st_size)
            os.pwrite(descriptor, old, 0)
            os.utime(descriptor, ns=(state.st_atime_ns, state.st_mtime_ns))

        return undo

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        undo = self._keep(path, offset, len(data))
        super().write(path, offset, data)
        self._can_undo(undo)

    def truncate(self, path: bytes, size: int) -> None:
        undo = self._keep(path)
        super().truncate(path, size)
        self._can_undo(undo)

    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        undo = self._keep(path)
        super().fallocate(path, mode, offset, length)
        self._can_undo(undo)

    def _keep_attributes(self, path: bytes) -> Callable[[], None]:
        full = self.at(path)
        state = os.lstat(full)
        xattrs = {
            n: os.getxattr(full, n, follow_symlinks=False) for n in os.listxattr(full, follow_symlinks=False)
        }

        def undo() -> None:
            place = self.at(path)
            os.lchown(place, state.st_uid, state.st_gid)
            if not stat.S_ISLNK(state.st_mode):
                os.chmod(place, stat.S_IMODE(state.st_mode))
            for name in os.listxattr(place, follow_symlinks=False):
                if os.fsencode(name) not in {os.fsencode(n) for n in xattrs}:
                    os.removexattr(place, name, follow_symlinks=False)
            for name, value in xattrs.items():
                with suppress(OSError):
                    os.setxattr(place, name, value, follow_symlinks=False)
            os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns), follow_symlinks=False)

        return undo

    def chmod(self, path: bytes, mode: int) -> None:
        undo = self._keep_attributes(path)
        super().chmod(path, mode)
        self._can_undo(undo)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        undo = self._keep_attributes(path)
        super().chown(path, uid, gid)
        self._can_undo(undo)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        undo = self._keep_attributes(path)
        super().utime(path, mtime_ns)
        self._can_undo(undo)

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        undo = self._keep_attributes(path)
        super().setxattr(path, name, value)
        self._can_undo(undo)

    def removexattr(self, path: bytes, name: bytes) -> None:
        undo = self._keep_attributes(path)
        super().removexattr(path, name)
        self._can_undo(undo)
