"""Read of a source what a target is to be compared with.

Blocking functions, meant for a thread; beneath the capture mount, as all of a scanner's reading. What changes
while it is read is the caller's business (`replicator.sender.touched`).
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from replicator import limits
from replicator.bounds import Extent
from replicator.fs.attributes import attributes_of, data_extents, identity_of, read_xattrs
from replicator.mirror import digests
from replicator.mirror.checks import Check, Content
from replicator.mirror.links import LinkTable
from replicator.mirror.order import parent_of
from replicator.mirror.scan import Source, join
from replicator.ops import Identity

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


class Unreadable(NamedTuple):
    """What cannot be compared, and why."""

    path: bytes
    reason: str


class Looked(NamedTuple):
    """One object, or a part of a large file.

    `rest`: from where on its content is still to be read; None: nothing is. `ctime_ns`: another one, and it
    was changed.
    """

    check: Check
    rest: int | None = None
    ctime_ns: int = 0


class ListedDirectory(NamedTuple):
    """A directory and its names, sorted, restricted to the set."""

    looked: Looked
    directories: list[bytes]
    others: list[bytes]


class Reader:
    """How to look at objects of one journal. Not thread-safe: one call at a time.

    `links`: names of files that have several, by their identity; its caller clears it for each run.
    """

    def __init__(self, source: Source, links: LinkTable) -> None:
        self._source = source
        self._links = links

    def directory(self, path: bytes) -> ListedDirectory | Unreadable | None:
        """None: there is no directory at `path` now."""
        try:
            descriptor = self._source.root.open_directory(path)
        except OSError as error:
            return _failed(path, error)
        try:
            directories: list[bytes] = []
            others: list[bytes] = []
            rules = self._source.filter
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    below = join(path, name)
                    if entry.is_dir(follow_symlinks=False):
                        if rules.may_contain(below):
                            directories.append(name)
                    elif rules.includes(below):
                        others.append(name)
            state = os.fstat(descriptor)
            if state.st_dev != self._source.root.device:
                return Unreadable(path, "another file system is mounted here: protect it by itself")
            check = Check(path, identity_of(state), attributes_of(state), read_xattrs(descriptor))
            directories.sort()
            others.sort()
            return ListedDirectory(Looked(check, ctime_ns=state.st_ctime_ns), directories, others)
        except OSError as error:
            return _failed(path, error)
        finally:
            os.close(descriptor)

    def files(
        self, directory: bytes, names: Sequence[bytes], *, bytes_max: int, checksum: bool
    ) -> tuple[list[Looked | Unreadable], int]:
        """As many of `names` as one step allows, at least one, and how many these are.

        A file of which more is to be read ends the step. What is gone is left out.
        """
        found: list[Looked | Unreadable] = []
        total = count = 0
        for name in names:
            if total >= bytes_max:
                break
            count += 1
            path = join(directory, name)
            looked = self.file(path, bytes_max=bytes_max - total, checksum=checksum)
            if looked is None:
                continue
            found.append(looked)
            if isinstance(looked, Looked):
                total += content_bytes(looked.check)
                if looked.rest is not None:
                    break
        return found, count

    def file(
        self,
        path: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        bytes_max: int,
        checksum: bool,
    ) -> Looked | Unreadable | None:
        """What is at `path`, and no directory; with `checksum`, also what its content is from `start` on, up
        to about `bytes_max` of data, or up to `end`.
        """
        try:
            parent = self._source.root.open_directory(parent_of(path))
        except OSError as error:
            return _failed(path, error)
        try:
            return self._file(parent, path, start, end, bytes_max, checksum)
        except OSError as error:
            return _failed(path, error)
        finally:
            os.close(parent)

    def _file(
        self,
        parent: int,
        path: bytes,
        start: int,
        end: int | None,
        bytes_max: int,
        checksum: bool,
    ) -> Looked | None:
        name = path.rpartition(b"/")[2]
        state = os.stat(name, dir_fd=parent, follow_symlinks=False)
        mode = state.st_mode
        if stat.S_ISDIR(mode):
            return None
        content: Content | None = None
        rest: int | None = None
        text = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(mode) else b""
        if stat.S_ISREG(mode) and checksum and state.st_size > start:
            descriptor = os.open(name, _READ_FLAGS, dir_fd=parent)
            try:
                state = os.fstat(descriptor)  # the open may have met another one
                if not stat.S_ISREG(state.st_mode):
                    return None
                content = read_content(descriptor, state.st_size, start, end, bytes_max)
                if content.end < state.st_size and end is None:
                    rest = content.end
            finally:
                os.close(descriptor)
        xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (parent, name))
        identity = identity_of(state)
        check = Check(
            path,
            identity,
            attributes_of(state),
            xattrs,
            state.st_size if stat.S_ISREG(mode) else 0,
            state.st_nlink,
            text,
            content,
            self._peer(path, identity, state) if state.st_nlink > 1 else b"",
        )
        return Looked(check, rest, state.st_ctime_ns)

    def _peer(self, path: bytes, identity: Identity, state: os.stat_result) -> bytes:
        """Another name of this object that was met before, and still is one."""
        known = self._links.find(identity)
        if known == path:
            return b""
        if known is not None:
            if self._is_at(known, state):
                return known
            self._links.forget(known)
        self._links.add(identity, path)
        return b""

    def same_object(self, one: bytes, other: bytes) -> bool | None:
        """Whether two names are one object; None if one of them is gone."""
        states = [self._state(one), self._state(other)]
        if states[0] is None or states[1] is None:
            return None
        return os.path.samestat(states[0], states[1])

    def _is_at(self, path: bytes, state: os.stat_result) -> bool:
        there = self._state(path)
        return there is not None and os.path.samestat(there, state)

    def _state(self, path: bytes) -> os.stat_result | None:
        try:
            parent = self._source.root.open_directory(parent_of(path))
        except OSError:
            return None
        try:
            return os.stat(path.rpartition(b"/")[2], dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(parent)


def read_content(descriptor: int, size: int, start: int, end: int | None, bytes_max: int) -> Content:
    """Digests of a file from `start` on: of about `bytes_max` of data, or up to `end`."""
    block_bytes = limits.COMPARE_BLOCK_BYTES
    limit = size if end is None else min(end, size)
    extents: list[Extent] = []
    total, stop = 0, limit
    for offset, length in data_extents(descriptor, limit, start):
        if total >= bytes_max:
            stop = offset
            break
        room = max(bytes_max - total, 1)
        if length > room and end is None:
            # Cut where a block ends, so that no block is read twice.
            cut = -(-(offset + room) // block_bytes) * block_bytes
            if cut < offset + length:
                extents.append((offset, cut - offset))
                stop = cut
                break
        extents.append((offset, length))
        total += length
    read, cut_at = digests.digest_blocks(descriptor, extents, block_bytes)
    if cut_at is not None:  # it was cut off meanwhile: what is told is what could be read
        extents = [(o, min(o + n, cut_at) - o) for o, n in extents if o < cut_at]
        stop = max(cut_at, start)
    return Content(start, stop, block_bytes, tuple(extents), read)


def content_bytes(check: Check) -> int:
    """How much of a file's data the target has to read for it."""
    return sum(length for _, length in check.content.extents) if check.content is not None else 0


def _failed(path: bytes, error: OSError) -> Unreadable | None:
    return None if error.errno in _GONE else Unreadable(path, error.strerror or str(error))
