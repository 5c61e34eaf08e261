"""Read the list of names of one directory of the source, for a target that has the directory.

Nothing below it is looked at: of a name, only what kind of object it is.
"""

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from replicator import limits
from replicator.fs.attributes import attributes_of, read_xattrs
from replicator.mirror.order import is_below_or_equal, parent_of
from replicator.mirror.pieces import NAME_TYPES, Names, Times, Xattrs
from replicator.mirror.scan import Source, join
from replicator.ops import NAME_KINDS, TWO_PATH_KINDS, Attributes, Record

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_DIRECTORY, _FILE, _SYMLINK, _OTHER = NAME_TYPES


class NamesRead(NamedTuple):
    """What was read of one directory: `names` with their types, sorted."""

    path: bytes
    attributes: Attributes
    xattrs: Xattrs
    mtime_ns: int
    names: list[tuple[bytes, int]]

    def pieces(self, kept: set[bytes], *, orphans: bool = False) -> list[Names]:
        """All of the list, cut. `kept`: names that operations since the place of the read have changed, or
        that are brought anyway: these do the rest, until then the target keeps what it has there.
        `orphans`: other names are not known to have been removed.
        """
        spared = sorted(kept)
        pieces: list[Names] = []
        after = b""
        step = limits.NAMES_PER_PIECE
        for start in range(0, max(len(self.names), 1), step):
            chunk = self.names[start : start + step]
            until = chunk[-1][0] if start + step < len(self.names) else b""
            asked = [(name, kind) for name, kind in chunk if name not in kept]
            pieces.append(
                Names(
                    self.path,
                    self.attributes,
                    self.xattrs,
                    after,
                    until,
                    tuple(name for name, _ in asked),
                    bytes(kind for _, kind in asked),
                    tuple(n for n in spared if n > after and (not until or n <= until)),
                    orphans,
                )
            )
            after = until
        return pieces

    def directories(self) -> Iterator[bytes]:
        return (name for name, kind in self.names if kind == _DIRECTORY)

    def other_than_directories(self) -> Iterator[bytes]:
        return (name for name, kind in self.names if kind != _DIRECTORY)

    @property
    def times(self) -> Times:
        return Times(self.path, self.mtime_ns)


def read_names_of(source: Source, path: bytes) -> NamesRead | str | None:
    """What the directory at `path` holds of the set; None if there is no directory, a reason if it cannot be
    read.
    """
    try:
        descriptor = source.root.open_directory(path)
    except OSError as error:
        return None if error.errno in _GONE else _reason(error)
    try:
        state = os.fstat(descriptor)
        if state.st_dev != source.root.device:
            return "another file system is mounted here: protect it by itself"
        rules = source.filter
        names: list[tuple[bytes, int]] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if rules.may_contain(join(path, name)):
                        names.append((name, _DIRECTORY))
                elif rules.includes(join(path, name)):
                    names.append((name, type_of_entry(entry)))
        names.sort()
        mtime_ns = os.fstat(descriptor).st_mtime_ns
        return NamesRead(path, attributes_of(state), read_xattrs(descriptor), mtime_ns, names)
    except OSError as error:
        return _reason(error)
    finally:
        os.close(descriptor)


def type_of_entry(entry: "os.DirEntry[str]") -> int:
    """The letter of `NAME_TYPES` for what a scan of a directory found."""
    if entry.is_dir(follow_symlinks=False):
        return _DIRECTORY
    if entry.is_file(follow_symlinks=False):
        return _FILE
    return _SYMLINK if entry.is_symlink() else _OTHER


def names_changed(record: Record, directory: bytes) -> set[bytes] | None:
    """Names of `directory` that this record changed; None: it changed what `directory` itself is."""
    if record.kind not in NAME_KINDS:
        return set()
    paths = (record.path, record.path2) if record.kind in TWO_PATH_KINDS else (record.path,)
    if any(is_below_or_equal(directory, path) for path in paths):
        return None
    cut = len(directory) + 1 if directory else 0
    return {path[cut:] for path in paths if parent_of(path) == directory}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
