"""The dirty map: what a copy may have wrong, folded from the operations that did not reach it.

Pure: no I/O, no clock. Paths are bytes relative to the root of a mount, as in records. The map covers at
least all that differs and never less; where it would become too large it becomes coarser. Its entries:

    directory  NAMES       the list of its names may differ (not what they refer to)
               FILES       all its files and other objects that are no directories may differ
               ATTRIBUTES  its own mode, owner, times, extended attributes may
    file       regions     these bytes, the size and the times may differ
               ATTRIBUTES  as above
               WHOLE       all of it may, even which object it is
    any        TREE        everything at this path and below it may

What a directory or path above covers has no entry of its own. An object that got its name (by creation, link
or rename) is whole, or a tree, at that name; so removals and renames need no memory of where things were.

Files with several names are apart. A write through one name changes what all of them show, and the name it
went through may be gone when the map is used, so what differs in such a file is kept by identity (LINKED),
with the last name known. A TREE does not cover it: other names may lie outside. Where nothing differs, such
an entry only says that a file the copy has under this name has got another one.

That is for a source that has done all that is folded; the copy may be at any point of it. After a loss of
power the source may have lost some of it, too, and the copy be ahead of it. A map that is made for `either`
side keeps old names as well: whatever a name referred to is dirty, for it may be there still or again.
"""

from array import array
from bisect import bisect_left, bisect_right

from replicator import limits
from replicator.ops import RENAME_EXCHANGE, RENAME_NOREPLACE, Flag, Kind, Record
from replicator.queue import dirty_codec, regions
from replicator.queue.dirty_codec import CorruptDirtyMap
from replicator.queue.dirty_entry import Dirty, Estimate, Node, Scope
from replicator.queue.dirty_tree import DirtyTree, parent_of

__all__ = ["CorruptDirtyMap", "Dirty", "DirtyMap", "Estimate", "Scope"]

# Enumerations are slow where it counts.
_NAMES, _TREE, _WHOLE = map(int, (Scope.NAMES, Scope.TREE, Scope.WHOLE))
_ATTRIBUTES, _DIRECTORY = map(int, (Scope.ATTRIBUTES, Scope.DIRECTORY))
_WRITE = int(Kind.WRITE)
_MULTILINK = int(Flag.MULTILINK)
_IS_DIRECTORY = int(Flag.DIRECTORY)
_BLOCK_MASK = -regions.BLOCK_BYTES
_ROUND_UP = regions.BLOCK_BYTES - 1
_WHERE_SAID = 0x01 | 0x02 | 0x10 | 0x40  # fallocate(2): keep size, punch, zero, unshare change no other bytes
_HOT_PATH_BYTES = 512

_COVERED = Node()  # for paths below what covers them


class DirtyMap(DirtyTree):
    """See the module. `either`: both sides may be at any point of what is folded, not only the copy."""

    def __init__(self, limit_bytes: int = limits.DIRTY_MAP_BYTES, *, either: bool = False) -> None:
        super().__init__(limit_bytes)
        self._either = either

    def fold(self, record: Record) -> None:
        """This operation did not reach the copy. Any record: one that is not understood makes everything
        dirty.
        """
        if record.kind == _WRITE and not record.flags & _MULTILINK:
            node = self._hot.get(record.path)  # most writes go to files written before
            if node is not None:
                bounds = node.bounds
                if bounds is not None:  # else it is whole, or covered
                    offset = record.arg0
                    start = offset & _BLOCK_MASK
                    end = offset + len(record.payload) + _ROUND_UP & _BLOCK_MASK
                    first = bisect_left(bounds, start)
                    if not first & 1 or first != bisect_right(bounds, end):
                        self._widen(node, *regions.rounded(offset, len(record.payload)))
                        if self.cost_bytes > self.limit_bytes:
                            self.coarsen()
                return
        self._fold(record)
        if self.cost_bytes > self.limit_bytes:
            self.coarsen()

    def _fold(self, record: Record) -> None:
        kind, path = record.kind, record.path
        if kind == Kind.WRITE:
            self._content(record, *regions.rounded(record.arg0, len(record.payload)))
        elif kind == Kind.TRUNCATE:
            self._content(record, regions.rounded(record.arg0, 0)[0], regions.END)
        elif kind == Kind.FALLOCATE:
            mode = int.from_bytes(record.payload[:4], "little") if len(record.payload) == 4 else -1
            start, end = regions.rounded(record.arg0, record.arg1)
            self._content(record, start, regions.END if mode & ~_WHERE_SAID else end)
        elif kind in (Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR):
            self._attributes(record)
        elif kind in (Kind.CREATE, Kind.FILE, Kind.SYMLINK, Kind.MKNOD):
            self._unlink_identity(_identity_of(record))  # the inode number is given again: that file is gone
            self._new_name(path, _WHOLE, _identity_of(record))
        elif kind == Kind.MKDIR:
            self._unlink_identity(_identity_of(record))
            self._new_name(path, _TREE, _identity_of(record))
        elif kind == Kind.LINK:
            self._link(record)
        elif kind == Kind.UNLINK:
            if not record.flags & _MULTILINK:  # its last name
                self._unlink_identity(_identity_of(record))
            self._lost_name(path, _WHOLE)
        elif kind in (Kind.RMDIR, Kind.REMOVE_TREE):
            self._lost_name(path, _TREE)
        elif kind == Kind.RENAME:
            self._rename(record)
        elif kind == Kind.DOUBT:
            self.add(path, _TREE)
            if record.path2:
                self.add(record.path2, _TREE)
        elif kind == Kind.HOLE and len(record.payload) and not self._either:
            self._hole(record)
        else:
            self.add(b"", _TREE)

    def _content(self, record: Record, start: int, end: int) -> None:
        path = record.path
        if record.flags & _MULTILINK:
            node = self._linked(_identity_of(record), path)
        else:
            node = self._file(path, _identity_of(record))
            if len(self._hot) >= self._hot_files:
                self._hot.clear()
            if len(path) <= _HOT_PATH_BYTES:
                self._hot[path] = node or _COVERED
        if node is None or node.scope & _WHOLE:
            return
        if node.bounds is None:
            self._set_bounds(node, array(regions.type_code, (start, end)))
        else:
            self._widen(node, start, end)

    def _attributes(self, record: Record) -> None:
        if record.flags & _IS_DIRECTORY:
            self._add_to_directory(record.path, _ATTRIBUTES | _DIRECTORY)
            return
        if record.flags & _MULTILINK:
            node = self._linked(_identity_of(record), record.path)
        else:
            node = self._file(record.path, _identity_of(record))
        if node is not None and not node.scope & _WHOLE:
            node.scope |= _ATTRIBUTES

    def _new_name(self, path: bytes, scope: int, identity: int) -> None:
        self._lost_name(path, scope)
        self.add(path, scope, identity)

    def _lost_name(self, path: bytes, scope: int) -> None:
        """Whatever had this name does not have it any more, and the directory's list of names has changed.
        `scope`: all of what may have had it.
        """
        if not path:  # the root has no name: no writer of ours records that
            self.add(b"", _TREE)
            return
        if self._either:
            self.add(path, scope)
        else:
            self._detach(path)
        self._add_to_directory(parent_of(path), _NAMES)

    def _link(self, record: Record) -> None:
        identity = _identity_of(record)
        if identity and not self.is_whole(record.path):
            self._linked(identity, record.path)  # or nobody knew that the copy has it there
        self._new_name(record.path2, _WHOLE, identity)

    def _rename(self, record: Record) -> None:
        path, path2, flags = record.path, record.path2, record.arg0
        unsure = record.flags & _IS_DIRECTORY or flags & RENAME_EXCHANGE
        scope = _TREE if unsure else _WHOLE
        self._lost_name(path, scope)
        self._lost_name(path2, scope)
        if flags & ~RENAME_NOREPLACE:  # an exchange: what is at the old name now may be of another type
            self.add(path, _TREE)
        self.add(path2, scope, _identity_of(record))

    def _linked(self, identity: int, path: bytes) -> Node | None:
        if self._either and identity in self.links and self.is_whole(path):
            path = self.links[identity][1]  # a name that was not touched is on both sides
        return super()._linked(identity, path)

    def _hole(self, record: Record) -> None:
        """It says itself what was lost, unless it is damaged (or does not know of old names)."""
        try:
            for item in dirty_codec.items(record.payload):
                self.include(*item)
        except CorruptDirtyMap:
            self.add(b"", _TREE)


def _identity_of(record: Record) -> int:
    return record.generation << 64 | record.inode
