"""Compare two trees exactly, and build random ones. Plain system calls: none of the product's own code."""

import hashlib
import os
import random
import stat
import struct
from pathlib import Path
from typing import NamedTuple

ASPECTS = ("type", "mode", "owner", "mtime_ns", "rdev", "size", "content", "holes", "xattrs", "text", "links")
_ACL_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF
_LOCAL_MAJOR = 240  # reserved for local use: nothing answers there


class Node(NamedTuple):
    """One object. `links`: all names of a hard-linked object within the tree. `holes`: the data extents."""

    type: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    rdev: int = 0
    size: int = 0
    content: str = ""
    holes: tuple[tuple[int, int], ...] = ()
    xattrs: tuple[tuple[str, bytes], ...] = ()
    text: bytes = b""
    links: tuple[bytes, ...] = ()


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def snapshot(root: str | Path) -> dict[bytes, Node]:
    """Everything at and below `root`, by path relative to it; the root itself is b""."""
    nodes: dict[bytes, Node] = {}
    names_of: dict[tuple[int, int], list[bytes]] = {}
    start = os.fsencode(root)
    pending = [b""]
    while pending:
        path = pending.pop()
        full = start + b"/" + path if path else start
        state = os.lstat(full)
        nodes[path] = _node(full, state)
        if stat.S_ISDIR(state.st_mode):
            pending += [path + b"/" + name if path else name for name in os.listdir(full)]
        elif state.st_nlink > 1:
            names_of.setdefault((state.st_dev, state.st_ino), []).append(path)
    for names in names_of.values():
        for name in names:
            nodes[name] = nodes[name]._replace(links=tuple(sorted(names)))
    return nodes


def _node(full: bytes, state: os.stat_result) -> Node:
    node = Node(
        type=_TYPES[stat.S_IFMT(state.st_mode)],
        mode=stat.S_IMODE(state.st_mode),
        owner=(state.st_uid, state.st_gid),
        mtime_ns=state.st_mtime_ns,
        xattrs=_xattrs(full),
    )
    if node.type == "symlink":
        return node._replace(text=os.readlink(full))
    if node.type.endswith("device"):
        return node._replace(rdev=state.st_rdev)
    if node.type != "file":
        return node
    descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        # To ext4 preallocated blocks are data while they are cached: by us, or by whoever read them.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        extents = data_extents(descriptor, state.st_size)
        digest = hashlib.blake2b(digest_size=16)
        offset = 0
        while data := os.pread(descriptor, 1 << 20, offset):
            digest.update(data)
            offset += len(data)
    finally:
        os.close(descriptor)
    return node._replace(size=state.st_size, content=digest.hexdigest(), holes=extents)


def _xattrs(full: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(full, follow_symlinks=False)
    return tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in sorted(names))


def data_extents(descriptor: int, size: int) -> tuple[tuple[int, int], ...]:
    """(first byte, one after the last) of what is no hole."""
    extents: list[tuple[int, int]] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            break
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        extents.append((start, min(offset, size)))
    return tuple(extents)


def differences(
    one: dict[bytes, Node], other: dict[bytes, Node], ignore: frozenset[str] = frozenset()
) -> list[str]:
    """One line per difference of two snapshots. `ignore` names aspects; "directory mtime_ns" is one more."""
    lines: list[str] = []
    for path in sorted(one.keys() | other.keys()):
        a, b = one.get(path), other.get(path)
        shown = os.fsdecode(path) or "."
        if a is None or b is None:
            lines.append(f"{shown}: only in the {'first' if a else 'second'}")
            continue
        for aspect in ASPECTS:
            if aspect in ignore or (
                aspect == "mtime_ns" and a.type == "directory" and "directory mtime_ns" in ignore
            ):
                continue
            if getattr(a, aspect) != getattr(b, aspect):
                lines.append(f"{shown}: {aspect}: {getattr(a, aspect)!r} != {getattr(b, aspect)!r}")
    return lines


def assert_same_tree(one: str | Path, other: str | Path, ignore: frozenset[str] = frozenset()) -> None:
    """Fail with every difference."""
    found = differences(snapshot(one), snapshot(other), ignore)
    assert not found, "\n" + "\n".join(found[:50])


def acl(user_id: int, permissions: int, mode: int = 0o640) -> bytes:
    """A POSIX ACL with one named user, as the value of system.posix_acl_access or _default."""
    mask = (mode >> 3) & 7
    entries = [
        (0x01, mode >> 6 & 7, _NO_ID),
        (0x02, permissions, user_id),
        (0x04, 5, _NO_ID),
        (0x10, mask, _NO_ID),
        (0x20, mode & 7, _NO_ID),
    ]
    return struct.pack("<I", 2) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)


def build_random_tree(root: str | Path, seed: int, entries: int = 60) -> None:
    """Fill the existing directory `root` with objects of all kinds; the same seed gives the same tree."""
    chance = random.Random(seed)
    base = os.fsencode(root)
    assert not os.path.islink(base)
    directories = [base]
    files: list[bytes] = []
    everything: list[bytes] = []
    for number in range(entries):
        parent = chance.choice(directories)
        name = _random_name(chance, number)
        full = parent + b"/" + name
        kind = chance.choice(
            ("file",) * 5 + ("sparse", "directory", "directory", "symlink", "special", "link")
        )
        if kind == "link" and not files:
            kind = "file"
        if kind == "directory":
            os.mkdir(full)
            directories.append(full)
        elif kind == "symlink":
            os.symlink(chance.choice((b"nowhere", b"x/../y", b"/nowhere/at/all", b"a" * 300)), full)
        elif kind == "special":
            _make_special(full, chance)
        elif kind == "link":
            os.link(chance.choice(files), full)
        else:
            _make_file(full, chance, sparse=kind == "sparse")
            files.append(full)
        everything.append(full)
    for full in everything:
        _dress(full, chance)
    for full in [*reversed(directories), *(f for f in everything if f not in directories)]:
        when = chance.randrange(2_000_000_000 * 10**9)
        os.utime(full, ns=(when, when), follow_symlinks=False)


def _random_name(chance: random.Random, number: int) -> bytes:
    style = chance.randrange(5)
    if style == 0:
        return b"\xff\xfe not text %d" % number
    if style == 1:
        return b" %d\n\t" % number
    if style == 2:
        return b"%d-" % number + b"n" * 200
    return b"name%d" % number


def _make_file(full: bytes, chance: random.Random, sparse: bool) -> None:
    descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if sparse:
            for _ in range(chance.randrange(4)):
                os.pwrite(descriptor, chance.randbytes(4096), chance.randrange(64) * 65536)
            os.ftruncate(descriptor, 65 * 65536 + chance.randrange(65536))
        else:
            os.write(descriptor, chance.randbytes(chance.choice((0, 1, 100, 5000, 70_000))))
    finally:
        os.close(descriptor)


def _make_special(full: bytes, chance: random.Random) -> None:
    kind = chance.randrange(3)
    if kind == 0:
        os.mkfifo(full)
    elif kind == 1:
        os.mknod(full, stat.S_IFSOCK | 0o600)
    elif os.geteuid() == 0:
        os.mknod(
            full,
            chance.choice((stat.S_IFCHR, stat.S_IFBLK)) | 0o600,
            os.makedev(_LOCAL_MAJOR, chance.randrange(200)),
        )
    else:
        os.mkfifo(full)


def _dress(full: bytes, chance: random.Random) -> None:
    mode = os.lstat(full).st_mode
    root = os.geteuid() == 0
    if root and chance.random() < 0.5:
        os.chown(full, chance.randrange(70_000), chance.randrange(70_000), follow_symlinks=False)
    if stat.S_ISLNK(mode):
        if root and chance.random() < 0.3:
            os.setxattr(full, "trusted.link", b"l", follow_symlinks=False)
        return
    os.chmod(full, chance.choice((0o600, 0o644, 0o4755, 0o2750, 0o1777, 0o000, 0o777)))
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        if chance.random() < 0.3:
            os.setxattr(full, "user.colour", chance.randbytes(chance.randrange(100)))
        if root and chance.random() < 0.2:
            os.setxattr(full, "system.posix_acl_access", acl(4711, 4))
        if root and stat.S_ISDIR(mode) and chance.random() < 0.2:
            os.setxattr(full, "system.posix_acl_default", acl(4712, 6, 0o770))
    if root and stat.S_ISREG(mode) and chance.random() < 0.1:
        os.setxattr(full, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
