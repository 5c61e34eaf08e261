"""Operations on ranges of a file: allocate, punch, zero, copy."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from replicator import limits
from replicator.fs import calls
from replicator.fs.attributes import data_extents, proc_path
from replicator.fs.mtimes import LateMtimes
from replicator.fs.nodes import Node
from replicator.fs.recorder import Recorder
from replicator.ops import Kind

_MODE = struct.Struct("<I")  # payload of FALLOCATE
# Collapsing and inserting move the rest of the file; the kernel passes neither on.
_ALLOCATE_FLAGS = calls.FALLOC_KEEP_SIZE | calls.FALLOC_PUNCH_HOLE | calls.FALLOC_ZERO_RANGE
_PUNCH = _MODE.pack(calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE)


@contextmanager
def readable(descriptor: int) -> Iterator[int]:
    """A descriptor of the same file to read from: the given one may be for writing only, or O_PATH."""
    reading = os.open(proc_path(descriptor), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield reading
    finally:
        os.close(reading)


class Ranges:
    """Performs and records. `path_of`: the path to record a node under."""

    def __init__(
        self, recorder: Recorder, mtimes: LateMtimes, path_of: Callable[[Node], bytes | None]
    ) -> None:
        self._recorder = recorder
        self._mtimes = mtimes
        self._path_of = path_of

    def allocate(self, node: Node, descriptor: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Records the call itself: what it does depends on the file's content and size only."""
        if mode & ~_ALLOCATE_FLAGS:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        path = self._path_of(node)
        recording = self._recorder.begin(Kind.FALLOCATE, path)
        try:
            calls.fallocate(descriptor, mode, offset, length)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        self._changed(node, path, recording)
        if recording and path is not None:
            self._recorder.append(
                Kind.FALLOCATE,
                path,
                payload=_MODE.pack(mode),
                flags=int(node.flags),
                inode=node.inode,
                arg0=offset,
                arg1=length,
            )

    def _changed(self, node: Node, path: bytes | None, recording: bool) -> None:
        if recording or (path is None and node.links > 0):
            self._mtimes.changed(node)

    def copy(self, source: int, source_offset: int, node: Node, target: int, offset: int, length: int) -> int:
        """copy_file_range(2) from one descriptor to the other, which is `node`'s; the bytes copied.

        At most `limits.COPY_RANGE_BYTES` at a time. Records what the range holds afterwards, holes included:
        whether the file system below shares extents, copies, or fills holes is its own business.
        """
        length = min(length, limits.COPY_RANGE_BYTES)
        path = self._path_of(node)
        recording = self._recorder.begin(Kind.WRITE, path)
        try:
            count = os.copy_file_range(source, target, length, source_offset, offset)
        except OSError:
            if recording:
                self._recorder.abandon()
            raise
        if not count:
            if recording:
                self._recorder.abandon()
            return 0
        self._changed(node, path, recording)
        if recording and path is not None:
            try:
                with readable(target) as descriptor:
                    self._record_content(node, path, descriptor, offset, offset + count)
            except OSError:
                self._recorder.doubt(path)
            self._recorder.abandon()  # the flight is over: what it did is told
        return count

    def _record_content(self, node: Node, path: bytes, descriptor: int, start: int, end: int) -> None:
        """Journal what a range that lies within the file holds, data and holes. Raises OSError."""
        position = start
        for extent, length in data_extents(descriptor, end, start):
            if extent > position:
                self._record_hole(node, path, position, extent)
            position = extent
            while position < extent + length:
                data = os.pread(descriptor, min(limits.REQUEST_BYTES, extent + length - position), position)
                if not data:
                    break
                self._recorder.append_more(
                    Kind.WRITE, path, payload=data, flags=int(node.flags), inode=node.inode, arg0=position
                )
                position += len(data)
        if position < end:
            self._record_hole(node, path, position, end)
            # A hole at the end of the file adds to its size, which punching does not.
            size = os.fstat(descriptor).st_size
            if end == size:
                self._recorder.append_more(
                    Kind.TRUNCATE, path, flags=int(node.flags), inode=node.inode, arg0=size
                )

    def _record_hole(self, node: Node, path: bytes, start: int, end: int) -> None:
        self._recorder.append_more(
            Kind.FALLOCATE,
            path,
            payload=_PUNCH,
            flags=int(node.flags),
            inode=node.inode,
            arg0=start,
            arg1=end - start,
        )
