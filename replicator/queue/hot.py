"""What of a captured directory is hot: noted in the activity log already, so that one look tells there is
nothing to do.

Pure. The notes are records without data, in regions of `limits.ACTIVITY_REGION_BYTES`, made to be folded into
a dirty map for when either side may be ahead (`DirtyMap(either=True)`). That forgets no name, so what is
hot stays covered whatever is renamed or removed later.

    path                      all of a file, or a tree; or the region noted last
    path + "/"                attributes of a directory
    inode number              a file with several names: its attributes; all of a new file, whatever its names
    (one of these, region)    a region; `~region`: from there to the end
"""

from collections.abc import Iterator

from replicator import limits
from replicator.ops import RENAME_NOREPLACE, Flag, Kind, Record

_WHOLE, _TREE = -1, -2
_SHIFT = limits.ACTIVITY_REGION_BYTES.bit_length() - 1
assert limits.ACTIVITY_REGION_BYTES == 1 << _SHIFT
_NO_MODE = bytes(4)  # of fallocate(2)
_WHERE_SAID = 0x01 | 0x02 | 0x10 | 0x40  # keep size, punch, zero, unshare: no other bytes change
# Enumerations are slow where it counts.
_WRITE, _SETATTR, _UNLINK = int(Kind.WRITE), int(Kind.SETATTR), int(Kind.UNLINK)
_MULTILINK, _DIRECTORY = int(Flag.MULTILINK), int(Flag.DIRECTORY)
_NEW_FILES = frozenset({Kind.CREATE, Kind.SYMLINK, Kind.MKNOD, Kind.FILE})
_DIRECTORIES = frozenset({Kind.MKDIR, Kind.RMDIR, Kind.REMOVE_TREE})
_ATTRIBUTE_KINDS = frozenset({Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR})

Key = bytes | int | tuple[bytes | int, int]


class HotSet:
    """See the module. At most about `limits.ACTIVITY_HOT` keys: then all are forgotten, and noted again."""

    def __init__(self) -> None:
        self._known: dict[Key, int] = {}

    def clear(self) -> None:
        self._known.clear()

    def covers(self, kind: int, path: bytes, flags: int, offset: int, length: int) -> bool:
        """The common cases, quickly. False: `notes` knows."""
        known = self._known.get(path)
        if known is None or flags & (_MULTILINK | _DIRECTORY):
            return kind == _SETATTR and flags & _DIRECTORY > 0 and path + b"/" in self._known
        if kind == _WRITE:
            if known < 0:
                return True
            region = offset >> _SHIFT
            if region != offset + length - 1 >> _SHIFT:
                return False
            return known == region or (path, region) in self._known
        if kind == _SETATTR:
            return True  # noted with whatever was noted first
        return known < 0 and kind == _UNLINK

    def notes(self, operation: Record) -> list[Record]:
        """What has to be noted of this operation; from now on it is hot."""
        if len(self._known) > limits.ACTIVITY_HOT:
            self._known.clear()
        return list(self._notes(operation))

    def _notes(self, operation: Record) -> Iterator[Record]:
        kind = operation.kind
        if kind == Kind.WRITE:
            yield from self._content(operation, operation.arg0, len(operation.payload))
        elif kind == Kind.FALLOCATE:
            mode = int.from_bytes(operation.payload[:4], "little")
            if mode & ~_WHERE_SAID:
                yield from self._end(operation)
            else:
                yield from self._content(operation, operation.arg0, operation.arg1)
        elif kind == Kind.TRUNCATE:
            yield from self._end(operation)
        elif kind in _ATTRIBUTE_KINDS:
            yield from self._attributes(operation)
        elif kind in _NEW_FILES or kind == Kind.UNLINK:
            if not self._is_whole(operation.path):
                self._known[operation.path] = _WHOLE
                yield _bare(operation)
            if kind != Kind.UNLINK:  # each name it will ever have is new as well
                self._known[operation.inode] = _WHOLE
        elif kind in _DIRECTORIES:
            if not self._is_tree(operation.path):
                yield _bare(operation)
            self._known[operation.path] = _TREE
        elif kind == Kind.RENAME:
            yield from self._rename(operation)
        elif kind == Kind.LINK:
            # Which file it is matters, too: its old name is how a copy knows it.
            if not (self._is_whole(operation.path) and self._is_whole(operation.path2)):
                self._known[operation.path2] = _WHOLE
                yield _bare(operation)
        else:
            yield _bare(operation)

    # --- what is in a file ---

    def _content(self, operation: Record, offset: int, length: int) -> Iterator[Record]:
        key: bytes | int = operation.inode if operation.flags & _MULTILINK else operation.path
        if self._file_is_covered(key):
            return
        first, last = offset >> _SHIFT, offset + max(length, 1) - 1 >> _SHIFT
        known = self._known
        if last - first >= limits.ACTIVITY_REGIONS:
            yield from self._first(operation, key, first)
            yield _region(operation, first, last)
            return
        for region in range(first, last + 1):
            if (key, region) not in known:
                yield from self._first(operation, key, region)
                known[key, region] = 0
                yield _region(operation, region, region)
        if key in known:
            known[key] = last

    def _end(self, operation: Record) -> Iterator[Record]:
        """Everything from its offset on."""
        key: bytes | int = operation.inode if operation.flags & _MULTILINK else operation.path
        region = operation.arg0 >> _SHIFT
        if self._file_is_covered(key) or (key, ~region) in self._known:
            return
        yield from self._first(operation, key, region)
        self._known[key, ~region] = 0
        yield operation._replace(kind=Kind.TRUNCATE, arg0=region << _SHIFT, arg1=0, payload=b"")

    def _first(self, operation: Record, key: bytes | int, region: int) -> Iterator[Record]:
        """Whatever changes in a file, its times do: its attributes are noted with the first region."""
        if key not in self._known:
            self._known[key] = region
            yield operation._replace(kind=Kind.SETATTR, arg0=0, arg1=0, payload=b"")

    def _attributes(self, operation: Record) -> Iterator[Record]:
        flags, path = operation.flags, operation.path
        key: bytes | int = path
        if flags & _DIRECTORY:
            if self._is_tree(path):
                return
            key = path + b"/"
        elif flags & _MULTILINK:
            key = operation.inode
            if self._file_is_covered(key):
                return
        elif self._file_is_covered(path):
            return
        if key not in self._known:
            # No region has this number, so that a write that follows is looked at.
            self._known[key] = 1 << 62
            yield _bare(operation)

    # --- names ---

    def _file_is_covered(self, key: bytes | int) -> bool:
        return self._is_whole(key) if isinstance(key, bytes) else self._known.get(key) == _WHOLE

    def _is_whole(self, path: bytes) -> bool:
        known = self._known.get(path)
        if known is not None and known < 0:
            return True
        if self._parent_is_tree(path):
            self._known[path] = _WHOLE
            return True
        return False

    def _is_tree(self, path: bytes) -> bool:
        return self._known.get(path) == _TREE or self._parent_is_tree(path)

    def _parent_is_tree(self, path: bytes) -> bool:
        slash = path.rfind(b"/")
        return slash >= 0 and self._known.get(path[:slash]) == _TREE

    def _rename(self, operation: Record) -> Iterator[Record]:
        paths = operation.path, operation.path2
        if operation.flags & _DIRECTORY or operation.arg0 & ~RENAME_NOREPLACE:
            if not all(map(self._is_tree, paths)):
                yield _bare(operation)
            for path in paths:
                self._known[path] = _TREE
        elif not all(map(self._is_whole, paths)):
            for path in paths:
                if not self._is_tree(path):
                    self._known[path] = _WHOLE
            yield _bare(operation)


def _bare(operation: Record) -> Record:
    return operation._replace(payload=b"")


def _region(operation: Record, first: int, last: int) -> Record:
    start, end = first << _SHIFT, last + 1 << _SHIFT
    return operation._replace(kind=Kind.FALLOCATE, arg0=start, arg1=end - start, payload=_NO_MODE)
