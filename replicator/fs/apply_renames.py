"""Renames, and how one that was done before a kill is recognised."""

import errno
import os
import stat

from replicator.fs import calls
from replicator.fs.apply_outcome import INTENT, CrossDevice, Outcome
from replicator.fs.apply_tree import AppliedTree
from replicator.fs.beneath import MISSING
from replicator.ops import RENAME_EXCHANGE, Record

_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})


class Renames:
    """Each record is applied as `Applier.apply` says."""

    def __init__(self, tree: AppliedTree) -> None:
        self._tree = tree

    def intent(self, record: Record) -> bytes:
        """See `Applier.intent`."""
        old, new = self._tree.look(record.path), self._tree.look(record.path2)
        return INTENT.pack(old.st_ino if old else 0, new.st_ino if new else 0)

    def rename(self, record: Record, tolerant: bool, in_doubt: bool, intent: bytes) -> Outcome:
        if in_doubt and self._was_renamed(record, intent):
            if self._tree.links and record.arg0 & RENAME_EXCHANGE:
                # Whether the table has followed nobody knows, and a second time would lead it back.
                self._tree.links.forget(record.path)
                self._tree.links.forget(record.path2)
            else:
                self._follow_rename(record, record.arg0, tolerant)
            return Outcome.ALREADY
        if tolerant:
            return self._rename_tolerantly(record)
        self._move(record, record.path, record.path2, record.arg0)
        return Outcome.APPLIED

    def _was_renamed(self, record: Record, intent: bytes) -> bool:
        old, new = self._tree.look(record.path), self._tree.look(record.path2)
        if len(intent) == INTENT.size:
            old_inode, new_inode = INTENT.unpack(intent)
            if record.arg0 & RENAME_EXCHANGE:
                return bool(old and new and old.st_ino == new_inode and new.st_ino == old_inode)
            return bool(old_inode) and old is None and new is not None and new.st_ino == old_inode
        return not record.arg0 & RENAME_EXCHANGE and old is None and new is not None

    def _rename_tolerantly(self, record: Record) -> Outcome:
        old, new = self._tree.look(record.path), self._tree.look(record.path2)
        exchange = bool(record.arg0 & RENAME_EXCHANGE)
        if exchange and old is not None and new is not None:
            self._move(record, record.path, record.path2, RENAME_EXCHANGE)
            self._follow_rename(record, RENAME_EXCHANGE, True)
            return Outcome.APPLIED
        path, path2 = record.path, record.path2
        if exchange and old is None:
            path, path2, old, new = path2, path, new, old
        if old is None:
            return Outcome.APPLIED if self._tree.remove(path2) else Outcome.IGNORED
        if path == path2:
            return Outcome.ALREADY
        if new is not None and os.path.samestat(old, new):
            # Two names of one file here, but not on the source: rename(2) would do nothing.
            self._tree.remove(path)
            return Outcome.APPLIED
        try:
            self._move_over(record, path, path2)
        except CrossDevice:
            # The destination is pending with all below it: the mirror brings it.
            self._tree.remove(path)
            self._tree.remove(path2)
            return Outcome.IGNORED
        except OSError as error:
            if error.errno not in MISSING:
                raise
            self._tree.remove(path)  # nowhere to go: the destination's parent is missing
            return Outcome.IGNORED
        if self._tree.links:
            self._tree.links.forget(path2)
            self._tree.links.rename(path, path2)
        return Outcome.APPLIED

    def _move_over(self, record: Record, path: bytes, path2: bytes) -> None:
        try:
            self._move(record, path, path2, 0)
        except OSError as error:
            if error.errno not in _IN_THE_WAY or self._tree.look(path2) is None:
                raise
            self._tree.remove(path2)
            self._move(record, path, path2, 0)

    def _move(self, record: Record, path: bytes, path2: bytes, flags: int) -> None:
        """One rename, and no descriptor left that stands for an old name."""
        old_root, old = self._tree.maps.place_name(path)
        new_root, new = self._tree.maps.place_name(path2)
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
        if tolerant and self._tree.links:
            if flags & RENAME_EXCHANGE:
                self._tree.links.exchange(record.path, record.path2)
            else:
                self._tree.links.forget(record.path2)
                self._tree.links.rename(record.path, record.path2)
