"""Large files of which only a part has arrived: a kill of either side does not lose it.

Each has a hidden name in the target directory itself, which no operation of the source moves. The name says
of which file it is, and since when that had not been changed when its transfer began (its ctime). A file that
still has that ctime holds what was read of it then; so the copy is right up to where it ends, and the rest
follows. Otherwise its blocks are compared. There is nothing else to remember, or to be wrong.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from replicator.fs.attributes import set_times
from replicator.fs.beneath import Root
from replicator.fs.unfinished import CREATE_FLAGS, UNFINISHED_MODE, unlink_quietly
from replicator.ops import Identity

MARK = b"+"
"""Follows the connection's own prefix in names of such files."""

_OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class BegunFile(NamedTuple):
    """One that was found. Whoever gets it closes `descriptor`."""

    descriptor: int
    name: bytes
    unchanged: bool  # the file of the source is as it was when this was begun


class BegunFiles:
    """Those of one journal. `prefix`: of names that belong to it alone. For one thread."""

    def __init__(self, roots: Iterable[Root], prefix: bytes) -> None:
        self._roots = tuple(roots)
        self._prefix = prefix + MARK
        self._may_be_left = True  # by a predecessor

    def begin(self, root: Root, identity: Identity, changed_ns: int) -> tuple[int, bytes]:
        """An empty file for reading and writing, and its name. OSError."""
        name = b"%s%d" % (self._of(identity), changed_ns)
        self._may_be_left = True
        with keeping_mtime(root.descriptor):
            unlink_quietly(root.descriptor, name)
            return os.open(name, CREATE_FLAGS, UNFINISHED_MODE, dir_fd=root.descriptor), name

    def find(self, root: Root, identity: Identity, changed_ns: int) -> BegunFile | None:
        """What is there of that file. `changed_ns`: its ctime on the source, 0: it changes just now.
        OSError.
        """
        mine = self._of(identity)
        with os.scandir(root.descriptor) as entries:
            found = [name for entry in entries if (name := os.fsencode(entry.name)).startswith(mine)]
        same = b"%s%d" % (mine, changed_ns)
        for name in sorted(found, key=lambda name: name != same):
            try:
                descriptor = os.open(name, _OPEN_FLAGS, dir_fd=root.descriptor)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR):
                    continue
                raise
            return BegunFile(descriptor, name, changed_ns != 0 and name == same)
        return None

    def remove(self, root: Root, name: bytes) -> None:
        """OSError."""
        with keeping_mtime(root.descriptor):
            unlink_quietly(root.descriptor, name)

    def remove_all(self) -> None:
        """Nobody goes on with any of them. OSError."""
        if not self._may_be_left:
            return
        for root in self._roots:
            remove_begun(root.descriptor, self._prefix)
        self._may_be_left = False

    def _of(self, identity: Identity) -> bytes:
        return b"%s%d.%d." % (self._prefix, identity.inode, identity.generation)


def remove_begun(directory: int, prefix: bytes) -> None:
    """All whose names begin so. OSError."""
    with os.scandir(directory) as entries:
        names = [name for entry in entries if (name := os.fsencode(entry.name)).startswith(prefix)]
    if names:
        with keeping_mtime(directory):
            for name in names:
                unlink_quietly(directory, name)


@contextmanager
def keeping_mtime(directory: int) -> Iterator[None]:
    """What is done to its names within leaves no trace: its time may be the source's already."""
    mtime_ns = os.fstat(directory).st_mtime_ns
    yield
    set_times(directory, None, mtime_ns)
