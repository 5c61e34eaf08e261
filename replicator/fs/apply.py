"""Apply one record to a target tree, exactly, and as one step that others can see.

Strict, an operation that is not possible is an error: source and target have diverged, and going on would
hide it. Tolerant, while a mirror is active, the target may lack what the record speaks of: the mirror brings
it later. What must hold then is that no name keeps standing for something the source no longer has there
(docs/developers/architecture.md, "Ordering").

The process needs `credentials.prepare_process()` once: with a umask, a new object would have two modes one
after the other.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from replicator.errors import ReplicatorError
from replicator.fs import calls
from replicator.fs.attributes import is_replicated_xattr, proc_path, set_attributes, write_at
from replicator.fs.beneath import MISSING, Root
from replicator.fs.credentials import as_owner
from replicator.fs.unfinished import CREATE_FLAGS
from replicator.fs.whole_file import WholeFile, place_whole
from replicator.ops import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttributeMask,
    Attributes,
    Flag,
    Identity,
    Kind,
    Record,
    shown,
)

_OWNER = AttributeMask.UID | AttributeMask.GID
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})
_SIZE_MOVING = calls.FALLOC_COLLAPSE_RANGE | calls.FALLOC_INSERT_RANGE
_ALLOCATE_MODE = struct.Struct("<I")
_INTENT = struct.Struct("<QQ")
_ZEROS = bytes(1 << 20)


class Outcome(Enum):
    """What became of a record."""

    APPLIED = "applied"
    ALREADY = "already"  # in doubt, and found done
    IGNORED = "ignored"  # tolerant: the mirror brings it, or nothing was there to change


class ApplyError(ReplicatorError):
    """A record that cannot be applied. `errno` is 0 if the reason is not the operating system's."""

    def __init__(self, record: Record, reason: str, number: int = 0) -> None:
        name = Kind(record.kind).name if record.kind in Kind.__members__.values() else f"kind {record.kind}"
        paths = shown(record.path)
        if record.kind in (Kind.LINK, Kind.RENAME):
            paths += " -> " + shown(record.path2)
        super().__init__(f"cannot apply {name} {paths}: {reason}")
        self.path = record.path
        self.errno = number


class CrossDevice(ApplyError):
    """A rename or link between mapped roots on different file systems: the path has to be sent again."""


class OutsideError(ReplicatorError):
    """A path outside of every mapping, or the root of a mapping where a name inside is needed."""


class Links(Protocol):
    """Which paths hold the files that have several names, by identity. False while it knows none."""

    def __bool__(self) -> bool: ...
    def add(self, identity: Identity, path: bytes) -> None: ...
    def find(self, identity: Identity) -> bytes | None: ...
    def names(self, identity: Identity) -> list[bytes]: ...
    def forget(self, path: bytes) -> None:
        """`path` and all below it."""
        ...

    def rename(self, old: bytes, new: bytes) -> None: ...
    def exchange(self, one: bytes, other: bytes) -> None: ...


class Transfers(Protocol):
    """Copies being built, by the identity of their source. False while there is none."""

    def __bool__(self) -> bool: ...
    def get(self, identity: Identity) -> int | None:
        """A descriptor open for writing."""
        ...


class Place(NamedTuple):
    """A path of the source, where it lies on the target."""

    root: Root
    path: bytes


def incoming_name(tag: bytes) -> bytes:
    """What names of unfinished files begin with: those of `tag`."""
    return b".replicator-incoming-" + tag


class PathMaps:
    """Where the paths of one journal lie on the target. The longest prefix decides."""

    def __init__(self, maps: Sequence[tuple[bytes, Root]]) -> None:
        ordered = sorted(maps, key=lambda item: len(item[0]), reverse=True)
        self._maps = [(prefix, prefix + b"/", root) for prefix, root in ordered]
        self._everything = ordered[0][1] if len(ordered) == 1 and not ordered[0][0] else None
        self._starts = [prefix + b"/" for prefix, _ in ordered if prefix]
        self.roots = tuple(dict.fromkeys(root for _, root in ordered))

    def place(self, path: bytes) -> Place:
        """OutsideError if no mapping has it."""
        if self._everything is not None:
            return Place(self._everything, path)
        for prefix, start, root in self._maps:
            if not prefix:
                return Place(root, path)
            if path.startswith(start):
                return Place(root, path[len(start) :])
            if path == prefix:
                return Place(root, b"")
        raise OutsideError(f"{shown(path)} is outside of every mapped path")

    def place_name(self, path: bytes) -> Place:
        """As `place`, for a name to be created, moved or removed: never a mapped root, nor above one."""
        place = self.place(path)
        if not place.path or any(start.startswith(path + b"/") for start in self._starts):
            raise OutsideError(f"{shown(path) or '/'} is the root of a mapping, or holds one")
        return place

    def are_names(self, directory: bytes) -> bool:
        """Whether no mapping of its own begins in that directory."""
        start = directory + b"/" if directory else b""
        return not any(root.startswith(start) for root in self._starts)

    def is_root(self, path: bytes) -> bool:
        """Whether a mapping of its own begins at `path`."""
        return path + b"/" in self._starts

    def target_text(self, path: bytes) -> bytes | None:
        """The absolute path on the target, None if no mapping has it."""
        try:
            root, below = self.place(path)
        except OutsideError:
            return None
        return root.path + b"/" + below if below else root.path


class Applier:
    """Applies the records of one journal. One thread at a time; the roots stay the caller's.

    `source_root`, the absolute path of the journal's root on the source, turns on the rewriting of symlinks
    that point into it (LK-02).
    """

    def __init__(
        self,
        maps: Sequence[tuple[bytes, Root]],
        *,
        source_root: bytes | None = None,
        links: Links | None = None,
        transfers: Transfers | None = None,
        tag: bytes = b"0",
    ) -> None:
        """`tag` makes the names of unfinished files this connection's own."""
        self.maps = PathMaps(maps)
        self.incoming = incoming_name(tag)
        """Name of a file that is not complete, where there are no files without name."""
        self.links = links
        self.transfers = transfers
        self._source_root = source_root.rstrip(b"/") if source_root is not None else None
        self._names: dict[int, Callable[[Record, bool, bool, bytes], Outcome]] = {
            Kind.CREATE: self._create,
            Kind.FILE: self._file,
            Kind.MKDIR: self._mkdir,
            Kind.SYMLINK: self._symlink,
            Kind.MKNOD: self._mknod,
            Kind.LINK: self._link,
            Kind.UNLINK: self._unlink,
            Kind.RMDIR: self._rmdir,
            Kind.RENAME: self._rename,
            Kind.REMOVE_TREE: self._remove_tree,
        }
        self._contents: dict[int, Callable[[int, Record, bool, bytes], Outcome]] = {
            Kind.WRITE: _write,
            Kind.TRUNCATE: _truncate,
            Kind.FALLOCATE: _fallocate,
        }
        self._objects: dict[int, Callable[[int, Record, bool], Outcome]] = {
            Kind.SETATTR: _set_attributes,
            Kind.SETXATTR: _set_xattr,
            Kind.REMOVEXATTR: _remove_xattr,
        }

    def apply(
        self,
        record: Record,
        *,
        tolerant: bool,
        by_identity: bool = False,
        in_doubt: bool = False,
        intent: bytes = b"",
    ) -> Outcome:
        """Apply one record.

        `by_identity`: only to a copy known by identity (a hard link, an open transfer), never by path.
        `in_doubt`: this may have been done before a kill; `intent` is then what `intent()` said before it.
        Raises ApplyError (CrossDevice), OutsideError or UnsafePathError; the tree is then as before, but for
        a removal of a tree that stopped half-way.
        """
        kind = record.kind
        try:
            if kind in self._contents or kind in self._objects:
                return self._apply_data(record, tolerant, by_identity, in_doubt, intent)
            if kind == Kind.DOUBT or kind == Kind.HOLE:
                return Outcome.IGNORED
            handler = self._names.get(kind)
            if handler is None:
                raise ApplyError(record, "a target knows no such operation")
            return handler(record, tolerant, in_doubt, intent)
        except OSError as error:
            raise ApplyError(record, error.strerror or str(error), error.errno or 0) from error

    def intent(self, record: Record) -> bytes:
        """What to remember before this record is applied, so that it can be recognised as done after a kill.

        b"" for most: their result tells. At most 16 bytes.
        """
        if record.kind == Kind.RENAME:
            old, new = self._look(record.path), self._look(record.path2)
            return _INTENT.pack(old.st_ino if old else 0, new.st_ino if new else 0)
        if record.kind == Kind.FALLOCATE and _allocate_mode(record) & _SIZE_MOVING:
            state = self._look(record.path)
            return _INTENT.pack(state.st_size, 1) if state else b""
        return b""

    def link_text(self, text: bytes) -> bytes:
        """The text of a symlink as it has to be on the target."""
        source_root = self._source_root
        if source_root is None or not text.startswith(b"/"):
            return text
        if text == source_root:
            return self.maps.target_text(b"") or text
        if not text.startswith(source_root + b"/"):
            return text
        return self.maps.target_text(text[len(source_root) + 1 :]) or text

    def remove(self, path: bytes) -> bool:
        """Remove whatever is at `path`, with all below. False if there was nothing."""
        root, below = self.maps.place_name(path)
        if self.links:
            self.links.forget(path)
        return root.remove(below)

    # --- data and attributes ---

    def _apply_data(
        self, record: Record, tolerant: bool, by_identity: bool, in_doubt: bool, intent: bytes
    ) -> Outcome:
        contents = self._contents.get(record.kind)
        path = record.path
        if tolerant and self.transfers:
            descriptor = self.transfers.get(record.identity)
            if descriptor is not None:
                if contents is not None:
                    return contents(descriptor, record, in_doubt, intent)
                return self._objects[record.kind](descriptor, record, True)
        if by_identity:
            known = self.links.find(record.identity) if self.links else None
            if known is None:
                return Outcome.IGNORED
            path = known
        root, below = self.maps.place(path)
        if contents is not None:
            try:
                descriptor = root.file(below)
            except OSError as error:
                if tolerant and error.errno in MISSING:
                    return Outcome.IGNORED
                raise
            return contents(descriptor, record, in_doubt, intent)
        lent = root.opened(below) if below else root.descriptor
        if lent is not None:
            outcome = self._objects[record.kind](lent, record, tolerant or in_doubt)
        else:
            try:
                pinned = root.open_object(below)
            except OSError as error:
                if tolerant and error.errno in MISSING:
                    return Outcome.IGNORED
                raise
            try:
                if tolerant and not _same_type(pinned, record):
                    return Outcome.IGNORED
                outcome = self._objects[record.kind](pinned, record, tolerant or in_doubt)
            finally:
                os.close(pinned)
        if record.flags & Flag.AFTER_CLOSE:
            # Kept open longer than on the source, the file could not be executed here (ETXTBSY).
            root.forget(below)
        return outcome

    # --- names: creating ---

    def _create(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                descriptor = os.open(name, CREATE_FLAGS, attributes.mode & 0o7777, dir_fd=directory)
            root.keep_file(path, descriptor)
            set_attributes(descriptor, attributes, current=os.fstat(descriptor))

        def keep(state: os.stat_result) -> bool:
            if tolerant or not stat.S_ISREG(state.st_mode) or state.st_size:
                return False
            set_attributes(root.file(path), attributes, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def _file(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        try:
            whole = WholeFile.decode(record.payload)
        except ValueError as error:
            raise ApplyError(record, str(error)) from error

        def make(directory: int, name: bytes) -> None:
            place_whole(whole, directory, name, self.incoming)

        def keep(state: os.stat_result) -> bool:
            # It was there with all it holds, or not at all: in doubt, what looks like it is it.
            same = state.st_size == whole.size and state.st_mtime_ns == whole.attributes.mtime_ns
            return stat.S_ISREG(state.st_mode) and same and not tolerant

        return self._make(record, tolerant, in_doubt, make, keep)

    def _mkdir(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.mkdir(name, attributes.mode & 0o7777, dir_fd=directory)
            descriptor = root.directory(path)
            set_attributes(descriptor, attributes, current=os.fstat(descriptor))

        def keep(state: os.stat_result) -> bool:
            if not stat.S_ISDIR(state.st_mode):
                return False
            set_attributes(root.directory(path), attributes, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def _symlink(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        text = self.link_text(record.path2)
        root, path = self.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.symlink(text, name, dir_fd=directory)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            set_attributes(directory, attributes, name=name, current=state)

        def keep(state: os.stat_result) -> bool:
            if tolerant or not stat.S_ISLNK(state.st_mode):
                return False
            directory, name = root.parent(path)
            if os.readlink(name, dir_fd=directory) != text:
                return False
            set_attributes(directory, attributes, name=name, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def _mknod(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        attributes = Attributes.decode(record.payload)
        root, path = self.maps.place_name(record.path)

        def make(directory: int, name: bytes) -> None:
            with as_owner(attributes.uid, attributes.gid):
                os.mknod(name, attributes.mode, attributes.rdev, dir_fd=directory)
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            set_attributes(directory, attributes, name=name, current=state)

        def keep(state: os.stat_result) -> bool:
            same = stat.S_IFMT(state.st_mode) == stat.S_IFMT(attributes.mode)
            if tolerant or not same or state.st_rdev != attributes.rdev:
                return False
            directory, name = root.parent(path)
            set_attributes(directory, attributes, name=name, current=state)
            return True

        return self._make(record, tolerant, in_doubt, make, keep)

    def _make(
        self,
        record: Record,
        tolerant: bool,
        in_doubt: bool,
        make: Callable[[int, bytes], None],
        keep: Callable[[os.stat_result], bool],
    ) -> Outcome:
        """Make an object; `keep` completes what is in its place already, if that will do."""
        root, path = self.maps.place_name(record.path)
        try:
            directory, name = root.parent(path)
        except OSError as error:
            if tolerant and error.errno in MISSING:
                return Outcome.IGNORED
            raise
        try:
            make(directory, name)
            return Outcome.APPLIED
        except FileExistsError:
            if not (tolerant or in_doubt):
                raise
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if keep(state):
            return Outcome.ALREADY
        if not tolerant:
            raise FileExistsError(errno.EEXIST, "something else has this name")
        self.remove(record.path)
        make(*root.parent(path))
        return Outcome.APPLIED

    def _link(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        links = self.links if tolerant else None
        old_root, old = self.maps.place_name(record.path)
        new_root, new = self.maps.place_name(record.path2)
        state = self._look(record.path) if tolerant or in_doubt else None
        if tolerant and (state is None or stat.S_ISDIR(state.st_mode)):
            self.remove(record.path2)
            return Outcome.IGNORED
        try:
            source, target = old_root.parent(old), new_root.parent(new)
        except OSError as error:
            if tolerant and error.errno in MISSING:
                return Outcome.IGNORED
            raise
        outcome = Outcome.APPLIED
        try:
            _hard_link(record, source, target)
        except CrossDevice:
            if not tolerant:
                raise
            self.remove(record.path2)
            return Outcome.IGNORED
        except FileExistsError:
            if not (tolerant or in_doubt):
                raise
            there = self._look(record.path2)
            if state is None or there is None or not os.path.samestat(state, there):
                if not tolerant:
                    raise
                self.remove(record.path2)
                _hard_link(record, old_root.parent(old), new_root.parent(new))
            else:
                outcome = Outcome.ALREADY
        if links:
            # Only what is known to be the source's file is worth knowing under a second name; what is still
            # to be brought may be anything here.
            known = record.path in links.names(record.identity)
            links.forget(record.path2)
            if known:
                links.add(record.identity, record.path2)
        return outcome

    # --- names: removing ---

    def _unlink(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        if tolerant:
            return Outcome.APPLIED if self.remove(record.path) else Outcome.IGNORED
        root, path = self.maps.place_name(record.path)
        if root.keeper is not None and root.keeper(root, path):
            return Outcome.APPLIED
        directory, name = root.parent(path)
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            if not in_doubt:
                raise
            return Outcome.ALREADY
        root.forget(path)
        return Outcome.APPLIED

    def _rmdir(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        if tolerant:
            return Outcome.APPLIED if self.remove(record.path) else Outcome.IGNORED
        root, path = self.maps.place_name(record.path)
        directory, name = root.parent(path)
        try:
            os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            if not in_doubt:
                raise
            return Outcome.ALREADY
        root.forget_below(path)
        return Outcome.APPLIED

    def _remove_tree(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        return Outcome.APPLIED if self.remove(record.path) else Outcome.IGNORED

    # --- names: renaming ---

    def _rename(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        if in_doubt and self._was_renamed(record, intent):
            if self.links and record.arg0 & RENAME_EXCHANGE:
                # Whether the table has followed nobody knows, and a second time would lead it back.
                self.links.forget(record.path)
                self.links.forget(record.path2)
            else:
                self._follow_rename(record, record.arg0, tolerant)
            return Outcome.ALREADY
        if tolerant:
            return self._rename_tolerantly(record)
        self._move(record, record.path, record.path2, record.arg0)
        return Outcome.APPLIED

    def _was_renamed(self, record: Record, intent: bytes) -> bool:
        old, new = self._look(record.path), self._look(record.path2)
        if len(intent) == _INTENT.size:
            old_inode, new_inode = _INTENT.unpack(intent)
            if record.arg0 & RENAME_EXCHANGE:
                return bool(old and new and old.st_ino == new_inode and new.st_ino == old_inode)
            return bool(old_inode) and old is None and new is not None and new.st_ino == old_inode
        return not record.arg0 & RENAME_EXCHANGE and old is None and new is not None

    def _rename_tolerantly(self, record: Record) -> Outcome:
        old, new = self._look(record.path), self._look(record.path2)
        exchange = bool(record.arg0 & RENAME_EXCHANGE)
        if exchange and old is not None and new is not None:
            self._move(record, record.path, record.path2, RENAME_EXCHANGE)
            self._follow_rename(record, RENAME_EXCHANGE, True)
            return Outcome.APPLIED
        path, path2 = record.path, record.path2
        if exchange and old is None:
            path, path2, old, new = path2, path, new, old
        if old is None:
            return Outcome.APPLIED if self.remove(path2) else Outcome.IGNORED
        if path == path2:
            return Outcome.ALREADY
        if new is not None and os.path.samestat(old, new):
            # Two names of one file here, but not on the source: rename(2) would do nothing.
            self.remove(path)
            return Outcome.APPLIED
        try:
            self._move_over(record, path, path2)
        except CrossDevice:
            # The destination is pending with all below it: the mirror brings it.
            self.remove(path)
            self.remove(path2)
            return Outcome.IGNORED
        except OSError as error:
            if error.errno not in MISSING:
                raise
            self.remove(path)  # nowhere to go: the destination's parent is missing
            return Outcome.IGNORED
        if self.links:
            self.links.forget(path2)
            self.links.rename(path, path2)
        return Outcome.APPLIED

    def _move_over(self, record: Record, path: bytes, path2: bytes) -> None:
        try:
            self._move(record, path, path2, 0)
        except OSError as error:
            if error.errno not in _IN_THE_WAY or self._look(path2) is None:
                raise
            self.remove(path2)
            self._move(record, path, path2, 0)

    def _move(self, record: Record, path: bytes, path2: bytes, flags: int) -> None:
        """One rename, and no descriptor left that stands for an old name."""
        old_root, old = self.maps.place_name(path)
        new_root, new = self.maps.place_name(path2)
        old_directory, old_name = old_root.parent(old)
        new_directory, new_name = new_root.parent(new)
        state = os.stat(old_name, dir_fd=old_directory, follow_symlinks=False)
        try:
            if flags:
                calls.renameat2(old_directory, old_name, new_directory, new_name, flags)
            else:
                os.rename(old_name, new_name, src_dir_fd=old_directory, dst_dir_fd=new_directory)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise CrossDevice(record, "the two lie on different file systems", errno.EXDEV) from error
            raise
        if flags & RENAME_EXCHANGE or stat.S_ISDIR(state.st_mode):
            old_root.forget_below(old)
            new_root.forget_below(new)
        else:
            old_root.forget(old)
            new_root.forget(new)

    def _follow_rename(self, record: Record, flags: int, tolerant: bool) -> None:
        if tolerant and self.links:
            if flags & RENAME_EXCHANGE:
                self.links.exchange(record.path, record.path2)
            else:
                self.links.forget(record.path2)
                self.links.rename(record.path, record.path2)

    def _look(self, path: bytes) -> os.stat_result | None:
        """The state of what is at `path` itself, None if there is nothing."""
        root, below = self.maps.place(path)
        try:
            if not below:
                return os.fstat(root.descriptor)
            directory, name = root.parent(below)
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise


def _hard_link(record: Record, source: tuple[int, bytes], target: tuple[int, bytes]) -> None:
    try:
        os.link(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0], follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise CrossDevice(record, "the two lie on different file systems", errno.EXDEV) from error
        raise


def _same_type(descriptor: int, record: Record) -> bool:
    """Whether the object is of the type that a SETATTR names; others name none."""
    if record.kind != Kind.SETATTR:
        return True
    wanted = stat.S_IFMT(Attributes.decode(record.payload).mode)
    return not wanted or wanted == stat.S_IFMT(os.fstat(descriptor).st_mode)


# --- operations on descriptors ---


def _write(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    write_at(descriptor, record.payload, record.arg0)
    return Outcome.APPLIED


def _truncate(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    os.ftruncate(descriptor, record.arg0)
    return Outcome.APPLIED


def _allocate_mode(record: Record) -> int:
    mode: int = _ALLOCATE_MODE.unpack_from(record.payload)[0]
    return mode


def _fallocate(descriptor: int, record: Record, in_doubt: bool, intent: bytes) -> Outcome:
    mode, offset, length = _allocate_mode(record), record.arg0, record.arg1
    if in_doubt and mode & _SIZE_MOVING and len(intent) == _INTENT.size:
        before = _INTENT.unpack(intent)[0]
        if os.fstat(descriptor).st_size != before:
            return Outcome.ALREADY
    allocate(descriptor, mode, offset, length)
    return Outcome.APPLIED


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), also on file systems that have none. OSError."""
    try:
        calls.fallocate(descriptor, mode, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or mode & _SIZE_MOVING:
            raise
        _allocate_by_hand(descriptor, mode, offset, length)


def _allocate_by_hand(descriptor: int, mode: int, offset: int, length: int) -> None:
    """The same content where the file system cannot allocate; what it cannot promise is the space."""
    size = os.fstat(descriptor).st_size
    if mode & (calls.FALLOC_PUNCH_HOLE | calls.FALLOC_ZERO_RANGE):
        end = min(offset + length, size)
        for start in range(offset, end, len(_ZEROS)):
            write_at(descriptor, memoryview(_ZEROS)[: end - start], start)
    if not mode & calls.FALLOC_KEEP_SIZE and offset + length > size:
        os.ftruncate(descriptor, offset + length)


def _set_attributes(descriptor: int, record: Record, lenient: bool) -> Outcome:
    attributes = Attributes.decode(record.payload)
    mask = attributes.mask
    if mask & AttributeMask.MODE and mask & _OWNER and not stat.S_ISLNK(attributes.mode):
        # Between the two steps nobody may do what neither the old owner and mode nor the new ones allow.
        mode = os.fstat(descriptor).st_mode & 0o7777
        common = mode & attributes.mode & 0o777
        if common != mode:
            os.chmod(proc_path(descriptor), common)
    set_attributes(descriptor, attributes)
    return Outcome.APPLIED


def _set_xattr(descriptor: int, record: Record, lenient: bool) -> Outcome:
    if not is_replicated_xattr(record.path2):
        return Outcome.IGNORED
    # The flags of setxattr(2) decided on the source whether it may happen; here it has happened.
    os.setxattr(proc_path(descriptor), record.path2, record.payload)
    return Outcome.APPLIED


def _remove_xattr(descriptor: int, record: Record, lenient: bool) -> Outcome:
    if not is_replicated_xattr(record.path2):
        return Outcome.IGNORED
    try:
        os.removexattr(proc_path(descriptor), record.path2)
    except OSError as error:
        if not (lenient and error.errno == errno.ENODATA):
            raise
        return Outcome.ALREADY
    return Outcome.APPLIED


__all__ = [
    "RENAME_NOREPLACE",
    "Applier",
    "ApplyError",
    "CrossDevice",
    "Links",
    "Outcome",
    "OutsideError",
    "PathMaps",
    "Place",
    "Transfers",
    "allocate",
]
