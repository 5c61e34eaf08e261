"""Compare two directory trees in everything a program can see of them.

    compare_trees.py A B [--no-content] [--json] [--show N]

Names, types, content, size, holes, mode, owner, modification time to the nanosecond, extended attributes
(ACLs are some of them), link texts, device numbers, and which names are hard links of each other. Links are
not followed. Standard library only: it shares no code with what it judges.

Exit code: 0 equal, 1 different, 2 could not be compared (not a directory, something unreadable).
"""

import argparse
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BLOCK_BYTES = 1 << 20
HOLE_TOLERANCE_BYTES = 64 << 10  # file systems place the edges of holes differently


@dataclass
class Difference:
    path: str
    what: str
    a: str
    b: str


@dataclass
class Comparison:
    """Two trees, and what was found so far."""

    a: bytes
    b: bytes
    content: bool = True
    entries: int = 0
    bytes_compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    # Inode of A → inode of B and back, for everything with several names: links are equal if this is one to
    # one.
    _links: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    _links_back: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def run(self) -> None:
        # A stack, not recursion: trees can be deeper than Python's stack.
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                if self._compare(path):
                    pending += self._below(path)
            except OSError as error:
                self.errors.append(f"{_text(path)}: {error.strerror}")

    def _compare(self, path: bytes) -> bool:
        """One name on both sides. True if both are directories."""
        a, b = _join(self.a, path), _join(self.b, path)
        stat_a, stat_b = os.lstat(a), os.lstat(b)
        self.entries += 1
        kind = stat.S_IFMT(stat_a.st_mode)
        if kind != stat.S_IFMT(stat_b.st_mode):
            self._differ(path, "type", _kind(stat_a.st_mode), _kind(stat_b.st_mode))
            return False
        self._value(path, "mode", oct(stat_a.st_mode & 0o7777), oct(stat_b.st_mode & 0o7777))
        self._value(path, "uid", stat_a.st_uid, stat_b.st_uid)
        self._value(path, "gid", stat_a.st_gid, stat_b.st_gid)
        self._value(path, "mtime (ns)", stat_a.st_mtime_ns, stat_b.st_mtime_ns)
        self._xattrs(path, a, b)
        if kind == stat.S_IFLNK:
            self._value(path, "link text", os.readlink(a), os.readlink(b))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            self._value(path, "device number", stat_a.st_rdev, stat_b.st_rdev)
        elif kind == stat.S_IFREG:
            self._value(path, "size", stat_a.st_size, stat_b.st_size)
            if self.content and stat_a.st_size == stat_b.st_size:
                self._content(path, a, b, stat_a.st_size)
        if kind != stat.S_IFDIR:
            self._hard_links(path, stat_a, stat_b)
        return kind == stat.S_IFDIR

    def _below(self, path: bytes) -> Iterator[bytes]:
        names_a, names_b = set(os.listdir(_join(self.a, path))), set(os.listdir(_join(self.b, path)))
        for name in sorted(names_a ^ names_b):
            there, missing = ("exists", "missing") if name in names_a else ("missing", "exists")
            self._differ(_join(path, name), "name", there, missing)
        return (_join(path, name) for name in sorted(names_a & names_b, reverse=True))

    def _xattrs(self, path: bytes, a: bytes, b: bytes) -> None:
        xattrs_a, xattrs_b = _xattrs(a), _xattrs(b)
        if xattrs_a == xattrs_b:
            return
        for name in sorted(xattrs_a.keys() | xattrs_b.keys()):
            self._value(path, f"xattr {name}", xattrs_a.get(name), xattrs_b.get(name))

    def _content(self, path: bytes, a: bytes, b: bytes, size: int) -> None:
        file_a = _open(a)
        try:
            file_b = _open(b)
            try:
                data_a, data_b = _data_bytes(file_a, size), _data_bytes(file_b, size)
                offset = 0
                while True:
                    block_a = os.pread(file_a, BLOCK_BYTES, offset)
                    block_b = os.pread(file_b, BLOCK_BYTES, offset)
                    if block_a != block_b:
                        at = next(
                            (i for i, (x, y) in enumerate(zip(block_a, block_b, strict=False)) if x != y),
                            min(len(block_a), len(block_b)),
                        )
                        self._differ(
                            path, f"content at byte {offset + at}", block_a[at : at + 8], block_b[at : at + 8]
                        )
                        return
                    if not block_a:
                        break
                    offset += len(block_a)
                self.bytes_compared += offset
                if data_a is not None and data_b is not None and abs(data_a - data_b) > HOLE_TOLERANCE_BYTES:
                    self._differ(path, "bytes that are not holes", data_a, data_b)
            finally:
                os.close(file_b)
        finally:
            os.close(file_a)

    def _hard_links(self, path: bytes, stat_a: os.stat_result, stat_b: os.stat_result) -> None:
        if stat_a.st_nlink == 1 and stat_b.st_nlink == 1:
            return
        self._value(path, "number of links", stat_a.st_nlink, stat_b.st_nlink)
        inode_a, inode_b = (stat_a.st_dev, stat_a.st_ino), (stat_b.st_dev, stat_b.st_ino)
        if self._links.setdefault(inode_a, inode_b) != inode_b:
            self._differ(path, "hard link", "of an earlier name", "of another file")
        elif self._links_back.setdefault(inode_b, inode_a) != inode_a:
            self._differ(path, "hard link", "of another file", "of an earlier name")

    def _value(self, path: bytes, what: str, a: object, b: object) -> None:
        if a != b:
            self._differ(path, what, a, b)

    def _differ(self, path: bytes, what: str, a: object, b: object) -> None:
        self.differences.append(Difference(_text(path), what, str(a), str(b)))


def _join(directory: bytes, name: bytes) -> bytes:
    return b"/".join(part for part in (directory, name) if part)


def _text(path: bytes) -> str:
    return os.fsdecode(path) or "."


def _kind(mode: int) -> str:
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }[stat.S_IFMT(mode)]


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise


def _open(path: bytes) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _data_bytes(descriptor: int, size: int) -> int | None:
    """Bytes of a file that are not holes; None where the file system does not tell."""
    # To ext4 preallocated blocks are data while they are cached: by us, or by whoever read them.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    total = position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            return None
        total += position - start
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--no-content", action="store_true", help="attributes and names only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", type=int, default=20, help="differences printed (default 20)")
    options = parser.parse_args()

    for root in (options.a, options.b):
        if not os.path.isdir(root):
            print(f"compare_trees: {root} is not a directory", file=sys.stderr)
            return 2
    started = time.monotonic()
    comparison = Comparison(os.fsencode(options.a), os.fsencode(options.b), not options.no_content)
    comparison.run()
    elapsed_s = time.monotonic() - started
    found, errors = comparison.differences, comparison.errors
    if options.json:
        document = {
            "entries": comparison.entries,
            "bytes": comparison.bytes_compared,
            "seconds": round(elapsed_s, 3),
            "difference_count": len(found),
            "differences": [vars(difference) for difference in found[: options.show]],
            "errors": errors,
        }
        print(json.dumps(document, indent=2))
    else:
        for difference in found[: options.show]:
            print(f"{difference.path!r}: {difference.what}: {difference.a} | {difference.b}")
        for error in errors[: options.show]:
            print(f"error: {error!r}")
        print(
            f"{comparison.entries} entries, {comparison.bytes_compared} bytes compared in {elapsed_s:.1f} s:"
            f" {len(found)} differences, {len(errors)} errors"
        )
    return 2 if errors else 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
