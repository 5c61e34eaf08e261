"""What a bundle has and the surviving branch has not, or otherwise. Reads both, changes nothing. Blocks."""

import errno
import os
import stat
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from replicator.failover.bundle_format import Absent, Manifest, Part, Saved
from replicator.failover.bundle_read import Item, RootReader
from replicator.fs.attributes import read_xattrs
from replicator.fs.beneath import MISSING, Root
from replicator.mirror.scan import join
from replicator.ops import shown

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class What(StrEnum):
    """How a path differs."""

    ONLY_BUNDLE = "only in the bundle"  # the surviving branch lacks it
    ONLY_HERE = "removed in the bundle"  # the surviving branch has it, the losing one had not
    TYPE = "another type"
    CONTENT = "content"
    ATTRIBUTES = "attributes"


class Difference(msgspec.Struct, frozen=True):
    """`detail` for people. `regions`: [start, end) in bytes, of content that differs, by blocks."""

    path: str  # absolute
    what: What
    detail: str = ""
    regions: tuple[tuple[int, int], ...] = ()


def differences(bundle: str, manifest: Manifest, path: str = "") -> Iterator[Difference]:
    """Between the bundle in `bundle` and the directories that its manifest names, as they are now. `path`:
    only there and below. BundleError; OSError.
    """
    for number, root in enumerate(manifest.roots):
        with RootReader(bundle, number, root) as reader:
            try:
                there = Root(root.path)
            except OSError as error:
                if error.errno not in MISSING:
                    raise
                yield Difference(root.path, What.ONLY_BUNDLE, "the directory is gone")
                continue
            with there:
                for found, name in _of_root(reader, there):
                    shown_path = f"{root.path.rstrip('/')}/{shown(name)}".rstrip("/")
                    if not path or shown_path == path or shown_path.startswith(path.rstrip("/") + "/"):
                        yield msgspec.structs.replace(found, path=shown_path)


def _of_root(reader: RootReader, there: Root) -> Iterator[tuple[Difference, bytes]]:
    for item in reader.items():
        if isinstance(item, Absent):
            if _exists(there, item.path):
                yield Difference("", What.ONLY_HERE), item.path
        elif item.saved.part is not Part.ABOVE:
            found = _compared(reader, there, item)
            if found is not None:
                yield found, item.saved.path
            if item.names is not None:
                directory = item.saved.path
                known = set(item.names)
                for name in _names(there, directory):
                    if name not in known:
                        yield Difference("", What.ONLY_HERE), join(directory, name)


def _compared(reader: RootReader, there: Root, item: Item) -> Difference | None:
    saved = item.saved
    descriptor = _open(there, saved.path)
    if descriptor is None:
        return Difference("", What.ONLY_BUNDLE)
    try:
        state = os.fstat(descriptor)
        if stat.S_IFMT(state.st_mode) != stat.S_IFMT(saved.mode):
            detail = f"{_type(saved.mode)} in the bundle, {_type(state.st_mode)} here"
            return Difference("", What.TYPE, detail)
        differing = _content(reader, there, item, state)
        attributes = _attributes(saved, state, descriptor)
    finally:
        os.close(descriptor)
    if differing is not None:
        return differing
    return Difference("", What.ATTRIBUTES, ", ".join(attributes)) if attributes else None


def _content(reader: RootReader, there: Root, item: Item, state: os.stat_result) -> Difference | None:
    saved = item.saved
    if stat.S_ISLNK(saved.mode):
        text = os.readlink(saved.path.rpartition(b"/")[2], dir_fd=there.parent(saved.path)[0])
        return Difference("", What.CONTENT, "another text") if text != saved.text else None
    if stat.S_ISCHR(saved.mode) or stat.S_ISBLK(saved.mode):
        return Difference("", What.CONTENT, "another device") if state.st_rdev != saved.rdev else None
    if not stat.S_ISREG(saved.mode) or saved.same_as is not None:
        return None
    regions = ((0, saved.size),) if saved.part is Part.WHOLE else saved.regions
    differing = _differing(reader, there, item, regions)
    if state.st_size != saved.size:
        detail = f"{saved.size} bytes in the bundle, {state.st_size} here"
        return Difference("", What.CONTENT, detail, tuple(differing))
    if differing:
        count = sum(end - start for start, end in differing)
        return Difference("", What.CONTENT, f"within {count} bytes", tuple(differing))
    return None


def _differing(
    reader: RootReader, there: Root, item: Item, regions: tuple[tuple[int, int], ...]
) -> list[tuple[int, int]]:
    """What of these regions is not the same here, joined where it touches. Holes are zeros."""
    descriptor = os.open(
        item.saved.path.rpartition(b"/")[2], _OPEN_FILE, dir_fd=there.parent(item.saved.path)[0]
    )
    found: list[tuple[int, int]] = []

    def note(start: int, end: int) -> None:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))

    try:
        blocks = iter(item.blocks)
        block = next(blocks, None)
        for start, end in regions:
            position = start
            while position < end:
                if block is not None and block[0] == position:
                    _, length, digest, at = block
                    data = reader.block(length, digest, at)
                    block = next(blocks, None)
                else:  # a hole, up to the next block
                    until = end if block is None else min(end, max(block[0], position + 1))
                    length = min(until - position, 1 << 20)
                    data = b""
                here = os.pread(descriptor, length, position)
                if here.ljust(length, b"\0") != data.ljust(length, b"\0"):
                    note(position, position + length)
                position += length
        return found
    finally:
        os.close(descriptor)


def _attributes(saved: Saved, state: os.stat_result, descriptor: int) -> list[str]:
    found = []
    if stat.S_IMODE(state.st_mode) != stat.S_IMODE(saved.mode):
        found.append(f"mode {stat.S_IMODE(saved.mode):o}, here {stat.S_IMODE(state.st_mode):o}")
    if (state.st_uid, state.st_gid) != (saved.uid, saved.gid):
        found.append(f"owner {saved.uid}:{saved.gid}, here {state.st_uid}:{state.st_gid}")
    if not stat.S_ISDIR(saved.mode) and state.st_mtime_ns != saved.mtime_ns:
        found.append("mtime")
    if tuple(sorted(read_xattrs(descriptor).items())) != saved.xattrs:
        found.append("extended attributes")
    return found


def _type(mode: int) -> str:
    return _TYPES.get(stat.S_IFMT(mode), "object")


def _open(root: Root, path: bytes) -> int | None:
    try:
        return root.open_object(path)
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise


def _exists(root: Root, path: bytes) -> bool:
    descriptor = _open(root, path)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def _names(root: Root, directory: bytes) -> Iterator[bytes]:
    try:
        descriptor = root.open_directory(directory)
    except OSError as error:
        if error.errno in MISSING or error.errno == errno.EXDEV:
            return
        raise
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
    finally:
        os.close(descriptor)
