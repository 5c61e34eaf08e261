"""Read some regions of one object of the source, for a target that has an old copy of it."""

import errno
import os
import stat
from collections import deque

from replicator import limits
from replicator.fs.attributes import attributes_of, identity_of, proc_path, read_xattrs
from replicator.mirror.order import parent_of
from replicator.mirror.patches import ALIGN_BYTES, PatchRequest, Range
from replicator.mirror.pieces import Content, Patch, Patched
from replicator.mirror.scan import Source

_NO_OBJECT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class PatchReader:
    """One request being read, step by step. Not thread-safe: one call at a time; owns a descriptor."""

    def __init__(self, request: PatchRequest, descriptor: int) -> None:
        """`descriptor`: of a regular file for reading, of anything else O_PATH."""
        self.request = request
        self._descriptor = descriptor
        state = os.fstat(descriptor)
        self.is_file = stat.S_ISREG(state.st_mode)
        self.size = state.st_size if self.is_file else 0
        self._left: deque[Range] = deque(request.ranges if self.is_file else ())

    @property
    def left(self) -> list[Range]:
        """What is not read yet."""
        return list(self._left)

    def next(self, bytes_max: int = limits.PART_BYTES) -> Patch | Patched:
        """The next part, or the end. OSError if it cannot be read."""
        path, identity = self.request.path, self.request.identity
        descriptor = self._descriptor
        if self._left:
            extents, holes, content = self._read(bytes_max)
            # After the content, so that the size is not older than it: whatever changed it meanwhile is in
            # the journal behind this place.
            state = os.fstat(descriptor)
            return Patch(path, identity, state.st_nlink, state.st_size, extents, holes, content)
        state = os.fstat(descriptor)
        xattrs = read_xattrs(descriptor, readable=self.is_file)
        size = state.st_size if self.is_file else 0
        return Patched(path, identity, state.st_nlink, attributes_of(state), xattrs, size)

    def _read(self, bytes_max: int) -> tuple[tuple[Range, ...], tuple[Range, ...], Content]:
        size = os.fstat(self._descriptor).st_size
        extents: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        chunks: list[bytes] = []
        room = bytes_max
        while self._left and room > 0 and len(extents) + len(holes) < limits.PATCH_EXTENTS:
            start, end = self._left.popleft()
            stop = min(end, size)
            if start >= stop:
                continue  # beyond the end, which every part tells
            data, data_end = _next_data(self._descriptor, start, stop)
            if data > start:
                # Up to the end of its last block, or that would stay allocated on the target.
                holes.append((start, -(-data // ALIGN_BYTES) * ALIGN_BYTES - start))
            if data < data_end:
                read = os.pread(self._descriptor, min(room, data_end - data), data)
                if not read:
                    continue  # cut off meanwhile
                extents.append((data, len(read)))
                chunks.append(read)
                room -= len(read)
                data += len(read)
            if data < end:
                self._left.appendleft((data, end))
        return tuple(extents), tuple(holes), Content(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_patch(source: Source, request: PatchRequest) -> PatchReader | None:
    """None if what is at the path now is another object, or nothing. OSError: it cannot be read."""
    try:
        directory = source.root.open_directory(parent_of(request.path))
        try:
            pinned = os.open(request.path.rpartition(b"/")[2] or b".", _PIN, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in _NO_OBJECT:
            return None
        raise
    try:
        state = os.fstat(pinned)
        if identity_of(state) != request.identity:
            return None
        if not stat.S_ISREG(state.st_mode):
            reader, pinned = PatchReader(request, pinned), -1
            return reader
        return PatchReader(request, os.open(proc_path(pinned), _READ))
    finally:
        if pinned >= 0:
            os.close(pinned)


def _next_data(descriptor: int, start: int, stop: int) -> tuple[int, int]:
    """The first data from `start` on: (its beginning, its end), both at most `stop`."""
    try:
        data = min(os.lseek(descriptor, start, os.SEEK_DATA), stop)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole
            return stop, stop
        if error.errno == errno.EINVAL:  # holes are unknown here
            return start, stop
        raise
    return data, min(os.lseek(descriptor, data, os.SEEK_HOLE), stop) if data < stop else stop
