"""Makes ordinary files of a bundle, in a directory of their own.

    files/<absolute path on the losing host>   what was saved
    partial     files of which only some was saved, and which bytes: the rest of such a file is a hole
    removed     names that the losing branch did not have (any more)
    names       all names of each directory of which some were changed, a line each: a name of the surviving
                branch that is not among them was removed as well
    manifest.json

Written beneath the directory and nowhere else. Blocks; for a thread.
"""

import errno
import os
import stat
from typing import NamedTuple, TextIO

import msgspec

from replicator.errors import UsageError
from replicator.failover.bundle_format import MANIFEST, Absent, BundleError, Manifest, Part, Saved
from replicator.failover.bundle_read import Item, RootReader
from replicator.fs import unfinished
from replicator.fs.attributes import set_attributes, write_at, write_xattrs
from replicator.fs.beneath import Root
from replicator.fs.unfinished import CREATE_FLAGS
from replicator.mirror.links import LinkTable
from replicator.mirror.scan import join
from replicator.ops import AttributeMask, Attributes, Identity, shown

_MASK = AttributeMask.MODE | AttributeMask.UID | AttributeMask.GID | AttributeMask.MTIME
_NOT_HERE = frozenset({errno.ENOTSUP, errno.EPERM, errno.EINVAL})  # what this file system cannot hold
_PROBLEMS_KEPT = 20


class Exported(msgspec.Struct, kw_only=True):
    """What was made. `problems`: what the file system of the directory cannot hold, the first of them."""

    directory: str
    objects: int = 0
    partial: int = 0
    removed: int = 0
    bytes: int = 0
    problem_count: int = 0
    problems: list[str] = msgspec.field(default_factory=list)


def export(bundle: str, manifest: Manifest, directory: str) -> Exported:
    """All of the bundle in `bundle` to `directory`, which must not be there yet, or be empty.

    UsageError: it is neither. BundleError: damaged, or it cannot be written; what was made stays.
    """
    _make_empty(directory)
    result = Exported(directory=directory)
    try:
        with (
            open(os.path.join(directory, "partial"), "w") as partial,
            open(os.path.join(directory, "removed"), "w") as removed,
            open(os.path.join(directory, "names"), "w") as names,
        ):
            lists = Lists(partial, removed, names)
            for number, root in enumerate(manifest.roots):
                place = os.path.join(directory, "files", root.path.strip("/"))
                os.makedirs(place, exist_ok=True)
                with RootReader(bundle, number, root) as reader, Root(place) as there:
                    _Exporter(reader, there, root.path, lists, result).run()
        with open(os.path.join(directory, MANIFEST), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    except OSError as error:
        raise BundleError(f"{error.filename or directory!r} cannot be written: {error.strerror}") from error
    return result


def _make_empty(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.listdir(directory):
            raise UsageError(f"{directory} is not empty: name a directory that is, or a new one")
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from None


class Lists(NamedTuple):
    """The files of lists, open."""

    partial: TextIO
    removed: TextIO
    names: TextIO


class _Exporter:
    """Of one root, in two passes: attributes of directories come when nothing more is made in them."""

    def __init__(self, reader: RootReader, root: Root, path: str, lists: Lists, result: Exported) -> None:
        self._reader = reader
        self._root = root
        self._path = path
        self._lists = lists
        self._result = result
        self._links = LinkTable()  # inode in the losing branch → path that was made

    def run(self) -> None:
        try:
            for item in self._reader.items():
                if isinstance(item, Absent):
                    print(self._shown(item.path), file=self._lists.removed)
                    self._result.removed += 1
                else:
                    self._make(item)
            for item in self._reader.items():
                if not isinstance(item, Absent) and stat.S_ISDIR(item.saved.mode):
                    self._dress(item.saved)
        finally:
            self._links.close()

    def _make(self, item: Item) -> None:
        saved = item.saved
        for name in item.names or ():
            print(self._shown(join(saved.path, name)), file=self._lists.names)
        if stat.S_ISDIR(saved.mode):
            self._root.make_directories(saved.path)
        else:
            above = saved.path.rpartition(b"/")[0]
            if above:
                self._root.make_directories(above)
            self._make_object(item)
        if saved.part is not Part.ABOVE:
            self._result.objects += 1

    def _make_object(self, item: Item) -> None:
        saved = item.saved
        made = self._link(saved)
        if made and saved.same_as is not None:
            return  # all of it is there
        if stat.S_ISREG(saved.mode):
            self._write(item, made=made)
        elif not made and not self._make_special(saved):
            return
        self._dress(saved)

    def _link(self, saved: Saved) -> bool:
        """Whether the file is there already: this very name, or another one, of which it is now one more."""
        directory, name = self._root.parent(saved.path)
        if unfinished.exists(name, directory):
            return True
        if saved.links <= 1 and saved.same_as is None:
            return False
        identity = Identity(saved.inode, 0)
        known = self._links.find(identity)
        self._links.add(identity, saved.path)
        if known is None:
            return False
        old_directory, old_name = self._root.parent(known)
        old = os.open(old_name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=old_directory)
        try:
            directory, name = self._root.parent(saved.path)
            os.link(f"/proc/self/fd/{old}", name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(old)
        return True

    def _make_special(self, saved: Saved) -> bool:
        directory, name = self._root.parent(saved.path)
        try:
            if stat.S_ISLNK(saved.mode):
                os.symlink(saved.text, name, dir_fd=directory)
            else:
                os.mknod(name, stat.S_IFMT(saved.mode) | 0o600, saved.rdev, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            self._problem(saved.path, error)
            return False
        return True

    def _write(self, item: Item, *, made: bool) -> None:
        saved = item.saved
        directory, name = self._root.parent(saved.path)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC if made else CREATE_FLAGS
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            for offset, length, digest, at in item.blocks:
                write_at(descriptor, self._reader.block(length, digest, at), offset)
                self._result.bytes += length
            os.ftruncate(descriptor, saved.size)
        finally:
            os.close(descriptor)
        if saved.part is not Part.WHOLE:
            spans = " ".join(f"{start}-{end}" for start, end in saved.regions)
            print(f"{self._shown(saved.path)}\t{spans or 'attributes only'}", file=self._lists.partial)
            self._result.partial += 1

    def _dress(self, saved: Saved) -> None:
        attributes = Attributes(int(_MASK), saved.mode, saved.uid, saved.gid, 0, 0, saved.mtime_ns)
        descriptor = self._root.open_object(saved.path)
        try:
            set_attributes(descriptor, attributes)
            try:
                write_xattrs(descriptor, dict(saved.xattrs))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._problem(saved.path, error)
            set_attributes(descriptor, attributes._replace(mask=int(AttributeMask.MTIME)))
        finally:
            os.close(descriptor)

    def _problem(self, path: bytes, error: OSError) -> None:
        self._result.problem_count += 1
        if len(self._result.problems) < _PROBLEMS_KEPT:
            self._result.problems.append(f"{self._shown(path)}: {error.strerror}")

    def _shown(self, path: bytes) -> str:
        """As one line, whatever is in a name."""
        text = f"{self._path.rstrip('/')}/{shown(path)}".rstrip("/")
        return "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in text)
