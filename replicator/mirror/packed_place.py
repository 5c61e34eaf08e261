"""Put many small files, or names of files, of one directory in place: with as few calls for each as a new one
takes.

Whatever is not that simple (something has the name, the directory passes an ACL on, a call fails) is placed
as a piece of its own.
"""

import errno
import os
import stat
from typing import Protocol

from replicator import limits
from replicator.errors import ReplicatorError
from replicator.fs.apply import Applier
from replicator.fs.attributes import MIRROR_MASK, write_at
from replicator.fs.beneath import Root
from replicator.fs.many_files import make_many
from replicator.fs.path_maps import PathMaps
from replicator.fs.unfinished import CREATE_FLAGS, unlink_quietly
from replicator.mirror import alike
from replicator.mirror.links import LinkTable
from replicator.mirror.orphans import Finder
from replicator.mirror.packed import PackedFile, Several, inodes_of, kinds_of, several, unpack
from replicator.mirror.patch import NotAsClaimed
from replicator.mirror.pieces import Content, File, Files, Links, LinkTo, Object
from replicator.mirror.transfers import OpenTransfers
from replicator.ops import NO_IDENTITY, Attributes, Identity

TARGET_IS_ILL = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE}
)
"""Errors that concern the whole target and not one piece: waiting may help, refusing every piece not."""

_DEFAULT_ACL = b"system.posix_acl_default"
_NO_ACL = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS})

Failed = tuple[File | Object | LinkTo, str, NotAsClaimed | None]
"""What was refused, why, and what of it did not hold."""


class Single(Protocol):
    """Places one at a time, whatever is there. Errors as of `Placer.place`."""

    def place_file(self, entry: File) -> None: ...
    def place_object(self, entry: Object) -> None: ...
    def place_link(self, entry: LinkTo) -> None: ...
    def know(self, path: bytes, identity: Identity, links: int) -> None: ...
    def state(self, path: bytes) -> os.stat_result | None: ...
    def ensure_directory(self, root: Root, path: bytes) -> int: ...
    def refuse_what_is_in_the_way(self, root: Root, directory: bytes) -> None: ...


class Plainly:
    """In which directories what is made is root's, with the mode it is made with; known for one batch."""

    def __init__(self, maps: PathMaps) -> None:
        self._maps = maps
        self._inheriting: dict[bytes, bool] = {}

    def begin(self) -> None:
        """Another batch: others may have changed directories."""
        self._inheriting.clear()

    def dressed(self, path: bytes) -> None:
        """That directory got its attributes."""
        self._inheriting.pop(path, None)

    def is_root_s(self, path: bytes, directory: int) -> bool:
        """Whether that is so in this open directory, and no mapping of its own begins in it."""
        if not self._maps.are_names(path):
            return False
        inherits = self._inheriting.get(path)
        if inherits is None:
            state = os.fstat(directory)
            inherits = bool(state.st_mode & stat.S_ISGID) or os.geteuid() != 0 or _has_default_acl(directory)
            self._inheriting[path] = inherits
        return not inherits

    def passes_on(self, path: bytes, directory: int, descriptor: int) -> bool:
        """Whether the directory gave what was just made in it more than this process's ids: its group, or
        an ACL.
        """
        inherits = self._inheriting.get(path)
        if inherits is None:
            made = os.fstat(descriptor)
            inherits = bool(made.st_uid or made.st_gid) or _has_default_acl(directory)
            self._inheriting[path] = inherits
        return inherits


class ManyPlacer:
    """Of one journal: a part of its `Placer`, which is `single`."""

    def __init__(
        self,
        single: Single,
        plainly: Plainly,
        applier: Applier,
        links: LinkTable,
        transfers: OpenTransfers,
        finder: Finder | None,
        *,
        keeps_existing: bool,
    ) -> None:
        """Arguments as of `Placer`."""
        self._single = single
        self._plainly = plainly
        self._maps = applier.maps
        self._link_text = applier.link_text
        self._remaps_links = applier.remaps_links
        self._links = links
        self._transfers = transfers
        self._finder = finder
        self._keeps_existing = keeps_existing

    def place(self, entry: Files | Links) -> list[Failed]:
        """What was refused of it. ReplicatorError: all of it. OSError: the target is ill, or the directory
        cannot be had.
        """
        if not alike.are_names(entry.names):
            raise ReplicatorError("malformed piece: its names are none")
        failed = self._place_files(entry) if isinstance(entry, Files) else self._place_links(entry)
        if self._finder is not None:
            self._finder.are_the_sources(entry.path, entry.names)
        return failed

    def _open(self, path: bytes) -> tuple[Root, bytes, int]:
        root, below = self._maps.place(path)
        if self._keeps_existing:
            self._single.refuse_what_is_in_the_way(root, below)
        return root, below, self._single.ensure_directory(root, below)

    # --- files and symbolic links ---

    def _place_files(self, entry: Files) -> list[Failed]:
        kinds = kinds_of(entry)
        if kinds is None:
            raise ReplicatorError("malformed piece: its states do not describe its files")
        root, below, directory = self._open(entry.path)
        data = memoryview(entry.data.buffer)
        plainly = not self._transfers and self._plainly.is_root_s(entry.path, directory)
        known = self._links.names_in(entry.path)
        failed: list[Failed] = []
        count = end = 0  # what needs no care, as long as nothing is there
        texts_stay = not self._remaps_links or stat.S_IFLNK not in kinds
        if plainly and texts_stay and not self._keeps_existing and known.isdisjoint(entry.names):
            count, end = make_many(directory, entry.names, entry.states, data)
        made = several(entry, count)
        for file in unpack(entry, count, end) if count < len(entry.names) else ():
            if self._keeps_existing and self._single.state(_join(entry.path, file.name)) is not None:
                continue
            if plainly and file.name not in known and self._make(directory, file, data):
                if file.inode:
                    made.append(Several(file.name, file.inode, file.links))
                continue
            self._place_one(_as_entry(entry.path, file, data), failed)
            directory = root.directory(below)
        self._know(entry.path, made)
        return failed

    def _make(self, directory: int, file: PackedFile, data: memoryview) -> bool:
        """False: it takes more than that, and nothing is there that was not before. The umask is 0."""
        if file.is_link:
            return self._make_symlink(directory, file, data)
        name, _, mode, uid, gid, mtime_ns, offset, end, _, _ = file
        try:
            # With its mode at once: what is read too early here is what its readers may read in a moment.
            descriptor = os.open(name, CREATE_FLAGS, mode & 0o777, dir_fd=directory)
        except OSError:
            return False
        try:
            if end - offset > limits.WRITE_BYTES:
                write_at(descriptor, data[offset:end], 0)
            elif offset < end and os.pwrite(descriptor, data[offset:end], 0) != end - offset:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if uid or gid:
                os.fchown(descriptor, uid, gid)
            if mode & 0o7000:
                os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        except BaseException:
            unlink_quietly(directory, name)
            raise
        finally:
            os.close(descriptor)
        return True

    def _make_symlink(self, directory: int, file: PackedFile, data: memoryview) -> bool:
        """As `_make`."""
        name, _, _, uid, gid, mtime_ns, offset, end, _, _ = file
        try:
            os.symlink(self._link_text(bytes(data[offset:end])), name, dir_fd=directory)
        except (OSError, ValueError):  # the latter: of a NUL
            return False
        try:
            if uid or gid:
                os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
        except BaseException:
            unlink_quietly(directory, name)
            raise
        return True

    def _know(self, path: bytes, made: list[Several]) -> None:
        """These were made where nothing known was."""
        if not made:
            return
        known = self._links.names_of([file.inode for file in made])
        for file in made:
            if file.inode in known:
                self._single.know(_join(path, file.name), Identity(file.inode, 0), file.links)
        self._links.add_many((_join(path, file.name), file.inode) for file in made if file.inode not in known)

    # --- further names ---

    def _place_links(self, entry: Links) -> list[Failed]:
        inodes = inodes_of(entry)
        if len(inodes) != len(entry.names):
            raise ReplicatorError("malformed piece: it does not say whose names its names are")
        root, below, directory = self._open(entry.path)
        here = self._links.names_in(entry.path)
        names_of = self._links.names_of(inodes)
        plainly = self._maps.are_names(entry.path)
        failed: list[Failed] = []
        made: list[tuple[bytes, int]] = []
        for name, inode in zip(entry.names, inodes, strict=True):
            path = _join(entry.path, name)
            if self._keeps_existing and self._single.state(path) is not None:
                continue
            known = names_of.get(inode)
            if known and plainly and name not in here and self._link(root, known, directory, name):
                made.append((path, inode))
                continue
            self._links.add_many(made)  # it may be another name of one of these
            made.clear()
            self._place_one(LinkTo(path, Identity(inode, 0), 2), failed)
            directory = root.directory(below)
        self._links.add_many(made)
        return failed

    def _link(self, root: Root, known: bytes, directory: int, name: bytes) -> bool:
        """As `_make`: a name of what is known at that path."""
        try:
            other, path = self._maps.place_name(known)
            if other is not root:
                return False
            source, source_name = root.parent(path)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    # --- one by one ---

    def _place_one(self, one: File | Object | LinkTo, failed: list[Failed]) -> None:
        try:
            if isinstance(one, File):
                self._single.place_file(one)
            elif isinstance(one, Object):
                self._single.place_object(one)
            else:
                self._single.place_link(one)
        except NotAsClaimed as claim:
            failed.append((one, str(claim), claim))
        except ReplicatorError as error:
            failed.append((one, str(error), None))
        except OSError as error:
            if error.errno in TARGET_IS_ILL:
                raise
            failed.append((one, error.strerror or str(error), None))


def _has_default_acl(directory: int) -> bool:
    try:
        os.getxattr(directory, _DEFAULT_ACL)
    except OSError as error:
        if error.errno in _NO_ACL:
            return False
        raise
    return True


def _as_entry(directory: bytes, file: PackedFile, data: memoryview) -> File | Object:
    mask, path = int(MIRROR_MASK), _join(directory, file.name)
    identity, links = (Identity(file.inode, 0), file.links) if file.inode else (NO_IDENTITY, 1)
    kind = stat.S_IFLNK if file.is_link else stat.S_IFREG
    attributes = Attributes(mask, kind | file.mode, file.uid, file.gid, 0, file.mtime_ns, file.mtime_ns)
    size = file.end - file.offset
    content = data[file.offset : file.end]
    if file.is_link:
        return Object(path, identity, links, attributes, {}, bytes(content))
    extents = ((0, size),) if size else ()
    return File(path, identity, links, attributes, {}, size, extents, Content(content))


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
