"""A paired source that wants out of its root gets nowhere (guarantee 7): random operations and pieces with
paths, names and link texts that lead elsewhere, whatever the target makes of them, change nothing outside.

The tree is real. Beside the root lie a file, a directory and a symlink of somebody else, of which every byte,
name, inode and time is compared after each run. CONFINED_RUNS makes it longer.

Whatever this finds, it also does: where the confinement fails, or is made to fail to see this test find it,
root's rights write and remove where paths lead. So all of it leads to directories of the test's own: nothing
absolute but what lies there, and the root so deep that no path gets above them. And the attack runs in a
mount namespace where everything else is read-only, which it makes sure of before it begins.
"""

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit import machine
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

_OUT = [b"../outside", b"../outside/secret", b".."]
_NAMES = [b"a", b"b", b"c", b"d"]
_HOSTILE = [b"..", b".", b"", b"../outside", b"a/../../outside/x", b"a\0b", b"x" * 300]
DEPTH = 12
"""Directories between the test's own and the root. A path has three components; each is one of the names
above, or a link with one of the texts: three levels up at most."""
_FILE = Attributes(31, stat.S_IFREG | 0o666, 0, 0, 0, 7, 7)
_TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR]


class Attacker:
    """Draws what a source could send, most of it near what is there, so that it does something."""

    def __init__(self, seed: int, outside: bytes) -> None:
        self._random = random.Random(seed)
        self._texts = [*_OUT, outside, outside + b"/secret"]
        self._hostile = [*_HOSTILE, outside + b"/secret"]

    def name(self) -> bytes:
        return self._random.choice(_NAMES if self._random.random() < 0.93 else self._hostile)

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


def attack(own: Path, *, by_kernel: bool) -> None:
    """In a process that can write nowhere else."""
    parent = own.joinpath(*"d" * DEPTH)
    outside, root_path = parent / "outside", parent / "root"
    (outside / "below").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (outside / "way").symlink_to("secret")
    os.setxattr(outside / "secret", "user.precious", b"1")
    root_path.mkdir()
    os.umask(0)
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


def shut_in(own: Path) -> None:
    """This process has a mount namespace of its own: only `own` stays writable in it. Makes sure of that."""
    subprocess.run(["mount", "--bind", own, own], check=True)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mountpoint = line.split()[4].encode().decode("unicode_escape")
        if Path(mountpoint) != own:
            subprocess.run(["mount", "-o", "remount,bind,ro", mountpoint], stderr=subprocess.DEVNULL)
    for directory in ("/", "/etc", "/tmp", "/var", str(own.parent), str(Path(__file__).parent)):
        try:
            descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.ENOENT):
                continue
            raise
        os.close(descriptor)
        raise SystemExit(f"{directory} is still writable: not begun")


@pytest.mark.fs
@pytest.mark.skipif(not machine.is_root(), reason="only root has the rights that this is about")
@pytest.mark.parametrize("how", ["openat2", "component"])
def test_nothing_outside_changes(tmp_path: Path, how: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, str(own), how]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":
    shut_in(Path(sys.argv[1]))
    attack(Path(sys.argv[1]), by_kernel=sys.argv[2] == "openat2")
