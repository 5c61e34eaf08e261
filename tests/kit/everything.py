"""A tree of all that a copy is to have (guarantee 6), and a change for each thing in which it may differ."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kit.trees import acl

KIB = 1024
PATH_BYTES = 4090  # of the longest, from / on: a kernel takes 4,095 (PATH_MAX)


def make_everything(root: Path, longest_root: int) -> None:
    """`longest_root`: bytes of the longer path of both sides: on each the deepest name can be reached."""
    base = os.fsencode(root)
    for name in (b"\xff\xfe not text", b"n" * 255, b"line\nbreak", b"file", b"set-user-ID", b"no permission"):
        with open(os.path.join(base, name), "wb") as file:
            file.write(name * 100)
    os.chmod(root / "set-user-ID", 0o6755)
    os.chmod(root / "no permission", 0)
    os.chown(root / "file", 12, 13)
    os.setxattr(root / "file", "user.colour", b"blue")
    os.setxattr(root / "file", "system.posix_acl_access", acl(1000, 4))
    (root / "large").write_bytes(os.urandom(3000 * KIB))
    (root / "nothing in it").touch()
    _make_deep(base, PATH_BYTES - longest_root - 1)
    (root / "empty").mkdir(mode=0o1777)
    (root / "directory").mkdir()
    os.chown(root / "directory", 7, 8)
    os.setxattr(root / "directory", "trusted.of root", b"\0\xff")
    os.setxattr(root / "directory", "system.posix_acl_default", acl(1001, 6, 0o770))
    (root / "directory" / "inner").write_text("inner")
    os.mkfifo(root / "fifo", 0o640)
    os.setxattr(root / "fifo", "system.posix_acl_access", acl(1000, 4))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(root / "device", 0o20600, os.makedev(1, 7))
    os.mknod(root / "block device", 0o60600, os.makedev(7, 200))
    os.symlink(b"\xff/nowhere", base + b"/link")
    os.chown(root / "link", 5, 6, follow_symlinks=False)
    os.setxattr(root / "link", "trusted.link", b"l", follow_symlinks=False)
    with open(root / "sparse", "wb") as file:
        file.truncate(5 * 1024 * KIB)
        os.pwrite(file.fileno(), b"data", 3 * 1024 * KIB)
    os.setxattr(root / "sparse", "user.empty", b"")
    (root / "one name").write_text("linked")
    os.link(root / "one name", root / "directory" / "another name")
    os.symlink("to nowhere", root / "other link")
    os.symlink("to nowhere", root / "linked link")
    os.link(root / "linked link", root / "directory" / "linked link", follow_symlinks=False)
    (root / "twin").write_text("equal")
    (root / "other twin").write_text("equal")
    for name in ("twin", "other twin"):
        os.utime(root / name, ns=(0, 10**18 + 1))
    os.utime(root / "sparse", ns=(0, -123_456_789))
    os.utime(root / "link", ns=(0, 2**62), follow_symlinks=False)


def _make_deep(base: bytes, length: int) -> None:
    """A file whose path below `base` has so many bytes."""
    deep, name = base, b"d" * 200
    while length > 400:
        deep = os.path.join(deep, name)
        os.mkdir(deep)
        length -= len(name) + 1
    with open(os.path.join(deep, b"e" * min(length, 255)), "wb") as file:
        file.write(b"deep")


class Change(NamedTuple):
    """Of `path` in a copy. A verification says `aspects` of it; `hidden`: size and time do not tell."""

    label: str
    path: str
    change: Callable[[Path], object]
    aspects: frozenset[str]
    hidden: bool = False

    def make(self, root: Path) -> None:
        """Do it, and keep the mtimes of the object, unless it is about these, and of its directory."""
        path = root / self.path
        state, parent = path.lstat(), path.parent.lstat()
        self.change(path)
        if os.path.lexists(path) and "mtime" not in self.aspects:
            os.utime(path, ns=(0, state.st_mtime_ns), follow_symlinks=False)
        if self.path:
            os.utime(path.parent, ns=(0, parent.st_mtime_ns))


def _said(*aspects: str) -> frozenset[str]:
    return frozenset(aspects)


def _overwrite(offset: int) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with open(path, "r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)

    return change


def _fill(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), bytes(64 * KIB), 0)


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """By another object, dressed as the former."""

    def change(path: Path) -> None:
        state = path.lstat()
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        make(path)
        os.chown(path, state.st_uid, state.st_gid, follow_symlinks=False)

    return change


def _parted(path: Path) -> None:
    """A file of its own, equal to the one whose name it was."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def _joined(path: Path) -> None:
    path.unlink()
    os.link(path.parent / "twin", path)


def _later(step_ns: int) -> Callable[[Path], object]:
    return lambda path: os.utime(path, ns=(0, path.lstat().st_mtime_ns + step_ns), follow_symlinks=False)


def _chown(uid: int, gid: int) -> Callable[[Path], object]:
    return lambda path: os.chown(path, uid, gid, follow_symlinks=False)


def _set(name: str, value: bytes) -> Callable[[Path], object]:
    return lambda path: os.setxattr(path, name, value, follow_symlinks=False)


def _removed(name: str) -> Callable[[Path], object]:
    return lambda path: os.removexattr(path, name, follow_symlinks=False)


_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

CHANGES = (
    Change("one bit of a file", "file", _overwrite(100), _said("content"), hidden=True),
    Change("one bit of a large file", "large", _overwrite(2000 * KIB + 1), _said("content"), hidden=True),
    Change("one bit in a hole", "sparse", _overwrite(5), _said("content"), hidden=True),
    Change("zeros instead of a hole", "sparse", _fill, _said(), hidden=True),
    Change("a shorter file", "file", lambda p: os.truncate(p, 399), _said("size")),
    Change("a longer file", "large", lambda p: os.truncate(p, 3000 * KIB + 1), _said("size")),
    Change("a file that is not empty", "nothing in it", lambda p: p.write_text("x"), _said("size")),
    Change("mode of a file", "large", lambda p: p.chmod(0o601), _said("mode")),
    Change("set-user-ID", "set-user-ID", lambda p: p.chmod(0o755), _said("mode")),
    Change("no permission", "no permission", lambda p: p.chmod(0o400), _said("mode")),
    Change("sticky directory", "empty", lambda p: p.chmod(0o777), _said("mode")),
    Change("mode of a socket", "socket", lambda p: p.chmod(0o601), _said("mode")),
    Change("mode of a device", "device", lambda p: p.chmod(0o601), _said("mode")),
    Change("owner of a file", "file", _chown(99, -1), _said("owner")),
    Change("group of a file", "file", _chown(-1, 99), _said("owner")),
    Change("owner of a directory", "directory", _chown(99, -1), _said("owner")),
    Change("group of a symlink", "link", _chown(-1, 99), _said("owner")),
    Change("owner of a device", "block device", _chown(99, -1), _said("owner")),
    Change("a nanosecond of a file", "file", _later(-1), _said("mtime")),
    Change("a nanosecond more", "file", _later(1), _said("mtime")),
    Change("a nanosecond before 1970", "sparse", _later(-1), _said("mtime")),
    Change("a nanosecond of a directory", "empty", _later(-1), _said("mtime")),
    Change("a nanosecond of the root", "", _later(-1), _said("mtime")),
    Change("a nanosecond of a symlink", "link", _later(-1), _said("mtime")),
    Change("a nanosecond of a fifo", "fifo", _later(-1), _said("mtime")),
    Change("a nanosecond of a device", "device", _later(-1), _said("mtime")),
    Change("another value of an xattr", "file", _set("user.colour", b"red"), _said("xattrs")),
    Change("an xattr less", "file", _removed("user.colour"), _said("xattrs")),
    Change("an xattr more", "large", _set("user.new", b""), _said("xattrs")),
    Change("an empty xattr less", "sparse", _removed("user.empty"), _said("xattrs")),
    Change("xattr of a directory", "directory", _set("trusted.of root", b"\0"), _said("xattrs")),
    Change("xattr of a symlink", "link", _removed("trusted.link"), _said("xattrs")),
    Change("another ACL", "file", _set(_ACCESS, acl(1000, 6)), _said("acl")),
    Change("an ACL more", "no permission", _set(_ACCESS, acl(1000, 4, 0)), _said("acl")),
    Change("an ACL less", "file", _removed(_ACCESS), _said("acl")),
    Change("ACL of a fifo", "fifo", _set(_ACCESS, acl(1002, 4)), _said("acl")),
    Change("default ACL", "directory", _set(_DEFAULT, acl(1001, 4, 0o770)), _said("acl")),
    Change("text of a symlink", "other link", _replaced(lambda p: p.symlink_to("x")), _said("link text")),
    Change("number of a device", "device", _replaced(lambda p: os.mknod(p, 0o20600, 259)), _said("device")),
    Change("block device", "device", _replaced(lambda p: os.mknod(p, 0o60600, 263)), _said("type")),
    Change("a file that is a fifo", "large", _replaced(lambda p: os.mkfifo(p, 0o644)), _said("type")),
    Change("a fifo that is a file", "fifo", _replaced(Path.touch), _said("type")),
    Change("a directory that is a file", "empty", _replaced(Path.touch), _said("type")),
    Change("a file that is a directory", "large", _replaced(Path.mkdir), _said("type")),
    Change("a symlink that is a file", "other link", _replaced(Path.touch), _said("type")),
    Change("no file", "large", Path.unlink, _said("missing")),
    Change("no directory", "empty", Path.rmdir, _said("missing")),
    Change("no symlink", "other link", Path.unlink, _said("missing")),
    Change("no fifo", "fifo", Path.unlink, _said("missing")),
    Change("no device", "device", Path.unlink, _said("missing")),
    Change("no long name", "n" * 255, Path.unlink, _said("missing")),
    Change("no name that is text", os.fsdecode(b"\xff\xfe not text"), Path.unlink, _said("missing")),
    Change("two files instead of one", "one name", _parted, _said("hard link")),
    Change("one file instead of two", "other twin", _joined, _said("hard link")),
)
