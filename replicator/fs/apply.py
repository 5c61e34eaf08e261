"""Apply one record to a target tree, exactly, and as one step that others can see.

Strict, an operation that is not possible is an error: source and target have diverged, and going on would
hide it. Tolerant, while a mirror is active, the target may lack what the record speaks of: the mirror brings
it later. What must hold then is that no name keeps standing for something the source no longer has there
(docs/developers/architecture.md, "Ordering").

The process needs `credentials.prepare_process()` once: with a umask, a new object would have two modes one
after the other.
"""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from replicator.fs import apply_data
from replicator.fs.apply_creation import Creation
from replicator.fs.apply_outcome import INTENT, ApplyError, Outcome
from replicator.fs.apply_renames import Renames
from replicator.fs.apply_tree import AppliedTree, Links
from replicator.fs.beneath import MISSING, Root
from replicator.ops import Flag, Identity, Kind, Record


class Transfers(Protocol):
    """Copies being built, by the identity of their source. False while there is none."""

    def __bool__(self) -> bool: ...
    def get(self, identity: Identity) -> int | None:
        """A descriptor open for writing."""
        ...


def incoming_name(tag: bytes) -> bytes:
    """What names of unfinished files begin with: those of `tag`."""
    return b".replicator-incoming-" + tag


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
        self._tree = tree = AppliedTree(maps, links)
        self.maps = tree.maps
        self.incoming = incoming_name(tag)
        """Name of a file that is not complete, where there are no files without name."""
        self.transfers = transfers
        self._source_root = source_root.rstrip(b"/") if source_root is not None else None
        creation = Creation(tree, self.incoming, self.link_text)
        self._renames = Renames(tree)
        self._names: dict[int, Callable[[Record, bool, bool, bytes], Outcome]] = {
            Kind.CREATE: creation.create,
            Kind.FILE: creation.file,
            Kind.MKDIR: creation.mkdir,
            Kind.SYMLINK: creation.symlink,
            Kind.MKNOD: creation.mknod,
            Kind.LINK: creation.link,
            Kind.UNLINK: self._unlink,
            Kind.RMDIR: self._rmdir,
            Kind.RENAME: self._renames.rename,
            Kind.REMOVE_TREE: self._remove_tree,
        }
        self._contents: dict[int, Callable[[int, Record, bool, bytes], Outcome]] = {
            Kind.WRITE: apply_data.write,
            Kind.TRUNCATE: apply_data.truncate,
            Kind.FALLOCATE: apply_data.fallocate,
        }
        self._objects: dict[int, Callable[[int, Record, bool], Outcome]] = {
            Kind.SETATTR: apply_data.change_attributes,
            Kind.SETXATTR: apply_data.set_xattr,
            Kind.REMOVEXATTR: apply_data.remove_xattr,
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
            return self._renames.intent(record)
        if record.kind == Kind.FALLOCATE and apply_data.moves_size(record):
            state = self._tree.look(record.path)
            return INTENT.pack(state.st_size, 1) if state else b""
        return b""

    @property
    def remaps_links(self) -> bool:
        """Whether `link_text` changes any."""
        return self._source_root is not None

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
        return self._tree.remove(path)

    @property
    def links(self) -> Links | None:
        return self._tree.links

    @links.setter
    def links(self, links: Links | None) -> None:
        self._tree.links = links

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
            known = self._tree.links.find(record.identity) if self._tree.links else None
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
                if tolerant and not apply_data.is_same_type(pinned, record):
                    return Outcome.IGNORED
                outcome = self._objects[record.kind](pinned, record, tolerant or in_doubt)
            finally:
                os.close(pinned)
        if record.flags & Flag.AFTER_CLOSE:
            # Kept open longer than on the source, the file could not be executed here (ETXTBSY).
            root.forget(below)
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
