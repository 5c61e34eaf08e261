"""A paired source that wants out of its root gets nowhere (guarantee 7): random operations and pieces with
paths, names and link texts that lead elsewhere, whatever the target makes of them, change nothing outside.

The tree is real. Beside the root lie a file, a directory and a symlink of somebody else, of which every byte,
name, inode and time is compared after each run. CONFINED_RUNS makes it longer.
"""

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.recording import make_record

from replicator.errors import ReplicatorError
from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.mirror import pieces
from replicator.mirror.comparison import Claim
from replicator.mirror.links import LinkTable
from replicator.mirror.patch import NotAsClaimed
from replicator.mirror.place import Placer
from replicator.ops import Attributes, Identity, Kind, Record

RUNS = int(os.environ.get("CONFINED_RUNS", "25"))
STEPS = 120

_OUT = [b"../outside", b"../outside/secret", b"..", b"/", b"../../../../../../etc", b"/proc/self/root"]
_NAMES = [b"a", b"b", b"c", b"d"]
_HOSTILE = [b"..", b".", b"", b"../outside", b"/etc/passwd", b"a/../../outside/x", b"a\0b", b"x" * 300]
_FILE = Attributes(31, stat.S_IFREG | 0o666, 0, 0, 0, 7, 7)
_TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR]


class Attacker:
    """Draws what a source could send, most of it near what is there, so that it does something."""

    def __init__(self, seed: int, outside: bytes) -> None:
        self._random = random.Random(seed)
        self._texts = [*_OUT, outside, outside + b"/secret"]

    def name(self) -> bytes:
        return self._random.choice(_NAMES if self._random.random() < 0.93 else _HOSTILE)

    def path(self) -> bytes:
        return b"/".join(self.name() for _ in range(self._random.randint(1, 3)))

    def text(self) -> bytes:
        return self._random.choice(self._texts)

    def attributes(self) -> Attributes:
        kind = self._random.choice(_TYPES)
        return _FILE._replace(
            mask=self._random.randrange(64), mode=kind | self._random.randrange(0o10000), rdev=0x103
        )

    def record(self) -> Record:
        kind = self._random.choice([k for k in Kind if k < Kind.FRAME])
        attributes = _FILE if self._random.random() < 0.5 else self.attributes()
        payload: dict[int, bytes] = {
            Kind.WRITE: b"overwritten",
            Kind.SETXATTR: b"value",
            Kind.FALLOCATE: bytes(4),
        }
        second: dict[int, bytes] = {
            Kind.SYMLINK: self.text(),
            Kind.SETXATTR: b"user.taken",
            Kind.REMOVEXATTR: b"user.precious",
        }
        return make_record(
            kind,
            self.path(),
            second.get(kind, self.path()),
            payload.get(kind, attributes.encode()),
            arg0=self._random.choice([0, 0, 1, 2, 4096]),
            arg1=100,
            inode=self._random.randint(1, 6),
        )

    def entry(self) -> pieces.AnyEntry:
        rnd, path, attributes = self._random, self.path(), self.attributes()
        identity, content = Identity(rnd.randint(1, 6), 0), pieces.Content(b"overwritten")
        size, names = len(content), tuple({self.name() for _ in range(2)})
        link = attributes._replace(mode=stat.S_IFLNK | 0o777)
        directory = attributes._replace(mode=stat.S_IFDIR | 0o700)
        whole, xattrs, number = ((0, size),), {b"user.taken": b"x"}, rnd.randint(1, 3)
        return rnd.choice(
            [
                pieces.Listing(path, directory, {}, names, rnd.random() < 0.3, names),
                pieces.Object(path, identity, rnd.randint(1, 2), link, {}, self.text()),
                pieces.Object(path, identity, rnd.randint(1, 2), attributes, {}, self.text()),
                pieces.File(path, identity, rnd.randint(1, 3), _FILE, xattrs, size, whole, content),
                pieces.Part(path, identity, number, rnd.random() < 0.5, whole, content),
                pieces.Finish(path, identity, number, 1, _FILE, {}, size),
                pieces.Same(
                    path, identity, rnd.randint(1, 2), _FILE, xattrs, size, rnd.choice(list(Claim)), True
                ),
                pieces.LinkTo(path, identity, 2),
                pieces.Times(path, 7),
                pieces.Names(path, directory, {}, b"", b"", names, b"f" * len(names)),
                pieces.Patch(path, identity, 1, size, whole, (), content),
                pieces.Patched(path, identity, 1, attributes, xattrs, size),
                pieces.Digests(path, identity, number, size, 0, size, 4096, whole, bytes(8), bytes(32), True),
            ]
        )


def everything(directory: Path) -> dict[str, Any]:
    """All that can be told of what is there, times of access excepted."""
    found: dict[str, Any] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        state = path.lstat()
        content = (
            path.read_bytes()
            if stat.S_ISREG(state.st_mode)
            else os.readlink(path)
            if path.is_symlink()
            else None
        )
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path)] = (
            state.st_ino,
            state.st_mode,
            state.st_uid,
            state.st_nlink,
            state.st_size,
            state.st_mtime_ns,
            content,
            xattrs,
        )
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    former = os.umask(0)
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "below").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (outside / "way").symlink_to("secret")
    os.setxattr(outside / "secret", "user.precious", b"1")
    root.mkdir()
    yield root, outside
    os.umask(former)


@pytest.mark.parametrize("by_kernel", [True, False], ids=["openat2", "by component"])
def test_nothing_outside_changes(place: tuple[Path, Path], by_kernel: bool) -> None:
    root_path, outside = place
    before = everything(outside)
    applied = 0
    for seed in range(RUNS):
        attacker = Attacker(seed, os.fsencode(outside))
        with Root(root_path, directories_max=3, files_max=2) as root:
            root._openat2 = root._openat2 and by_kernel
            applier = Applier([(b"", root)])
            links = LinkTable()
            placer = Placer(applier, links, keeps_existing=seed % 5 == 4)
            for number in range(STEPS):
                try:
                    if attacker._random.random() < 0.5:
                        tolerant = attacker._random.random() < 0.7
                        applier.apply(attacker.record(), tolerant=tolerant, in_doubt=number % 7 == 0)
                    else:
                        placer.place(pieces.Batch(number + 1, 0, (attacker.entry(),)))
                    applied += 1
                except (ReplicatorError, NotAsClaimed, OSError, ValueError):
                    pass  # refused: what is asked here is what was done
                if number % 40 == 39:
                    root.remove(b"a")
            placer.close()
            links.close()
        assert everything(outside) == before, f"seed {seed}"
    assert applied > RUNS * STEPS / 4, "hardly anything was possible, so this shows little"
