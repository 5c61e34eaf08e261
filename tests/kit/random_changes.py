"""Random changes of a small tree: few names, so that they meet one another often."""

import os
import random
import stat

from kit.recording import Source
from replicator.ops import RENAME_EXCHANGE, RENAME_NOREPLACE

NAMES = (b"a", b"b", b"c", b"d")
DEPTH_MAX = 3
SIZE_MAX = 400
_EARLY_NS = 1_000_000_000 * 10**9


class RandomChanges:
    """Each `step` tries changes until the kernel accepts one."""

    def __init__(
        self, source: Source, chance: random.Random, *, specials: bool = True, links: bool = True
    ) -> None:
        self.restores_times = True  # whether a change may hide behind an unchanged size and mtime
        self._source = source
        self._chance = chance
        self._kinds = [
            *[self._create] * 3,
            *[self._mkdir] * 2,
            *[self._write] * 5,
            self._write_and_restore_time,
            self._truncate,
            self._unlink,
            self._rmdir,
            *[self._rename] * 3,
            *([self._link] if links else []),
            self._chmod,
            self._chown,
            self._utime,
        ]
        if specials:
            self._kinds += [
                self._appear,
                self._symlink,
                self._fifo,
                self._setxattr,
                self._removexattr,
                self._punch,
                self._rename_flags,
            ]

    def step(self) -> None:
        for _ in range(50):
            try:
                self._chance.choice(self._kinds)()
                return
            except OSError:
                pass

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def _path(self) -> bytes:
        return b"/".join(self._chance.choice(NAMES) for _ in range(self._chance.randint(1, DEPTH_MAX)))

    def _file(self) -> bytes:
        path = self._path()
        if not stat.S_ISREG(os.lstat(self._source.at(path)).st_mode):
            raise OSError("not a file")
        return path

    def _owner(self) -> tuple[int, int]:
        return self._chance.choice(((0, 0), (1000, 1000), (4_000_000_000, 7)))

    def _create(self) -> None:
        self._source.create(self._path(), self._chance.choice((0o644, 0o600, 0o4755)), self._owner())

    def _mkdir(self) -> None:
        self._source.mkdir(self._path(), self._chance.choice((0o755, 0o2775, 0o700)), self._owner())

    def _write(self) -> None:
        data = self._chance.randbytes(self._chance.randint(1, 150))
        self._source.write(self._file(), self._chance.randrange(SIZE_MAX), data)

    def _write_and_restore_time(self) -> None:
        """The same size and mtime afterwards: what a comparison by these two must not be fooled by."""
        if not self.restores_times:
            raise OSError("not now")
        path = self._file()
        state = os.lstat(self._source.at(path))
        if not state.st_size:
            raise OSError("empty")
        self._source.write(path, self._chance.randrange(state.st_size), self._chance.randbytes(1))
        self._source.utime(path, state.st_mtime_ns)

    def _truncate(self) -> None:
        self._source.truncate(self._file(), self._chance.randrange(SIZE_MAX))

    def _punch(self) -> None:
        self._source.fallocate(
            self._file(), 3, self._chance.randrange(SIZE_MAX), self._chance.randint(1, 100)
        )

    def _unlink(self) -> None:
        self._source.unlink(self._path())

    def _rmdir(self) -> None:
        self._source.rmdir(self._path())

    def _rename(self) -> None:
        old, new = self._path(), self._path()
        if old != new and os.path.samestat(os.lstat(self._source.at(old)), self._lstat(new)):
            raise OSError("rename(2) does nothing with two names of one file")
        self._source.rename(old, new)

    def _lstat(self, path: bytes) -> os.stat_result:
        try:
            return os.lstat(self._source.at(path))
        except OSError:
            return os.stat("/")

    def _rename_flags(self) -> None:
        self._source.rename(
            self._path(), self._path(), self._chance.choice((RENAME_EXCHANGE, RENAME_NOREPLACE))
        )

    def _link(self) -> None:
        self._source.link(self._path(), self._path())

    def _appear(self) -> None:
        extents = {
            self._chance.randrange(SIZE_MAX): self._chance.randbytes(self._chance.randint(1, 50))
            for _ in range(self._chance.randrange(3))
        }
        xattrs = {b"user.x": self._chance.randbytes(3)} if self._chance.random() < 0.3 else {}
        mode = self._chance.choice((0o644, 0o600, 0o4755))
        self._source.appear(
            self._path(), extents, self._chance.randrange(SIZE_MAX), xattrs, mode, self._owner()
        )

    def _symlink(self) -> None:
        self._source.symlink(self._path(), self._path(), self._owner())

    def _fifo(self) -> None:
        self._source.mknod(self._path(), stat.S_IFIFO | 0o640, 0, self._owner())

    def _chmod(self) -> None:
        path = self._path()
        if stat.S_ISLNK(os.lstat(self._source.at(path)).st_mode):
            raise OSError("a symlink")
        self._source.chmod(path, self._chance.choice((0o640, 0o755, 0o1777, 0o4711)))

    def _chown(self) -> None:
        self._source.chown(self._path(), *self._owner())

    def _utime(self) -> None:
        self._source.utime(self._path(), _EARLY_NS + self._chance.randrange(10**18))

    def _setxattr(self) -> None:
        name = self._chance.choice((b"user.x", b"user.y"))
        path = self._path()
        if not stat.S_ISREG(os.lstat(self._source.at(path)).st_mode):
            name = name.replace(b"user", b"trusted")
        self._source.setxattr(path, name, self._chance.randbytes(self._chance.randint(0, 20)))

    def _removexattr(self) -> None:
        self._source.removexattr(self._path(), b"user.x")
