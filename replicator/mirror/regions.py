"""Read some regions of one object of the source, for a target that has an old copy of it."""

import errno
import os
import stat
from collections import deque

from replicator import limits
from replicator.fs.attributes import (
    attributes_of,
    data_end,
    data_extents,
    identity_of,
    proc_path,
    read_xattrs,
)
from replicator.mirror import digests, moved
from replicator.mirror.order import parent_of
from replicator.mirror.patches import ALIGN_BYTES, Block, PatchRequest, Range, Todo, merged
from replicator.mirror.pieces import Content, Digests, Patch, Patched
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
        state = self._state()
        self.is_file = stat.S_ISREG(state.st_mode)
        self.size = state.st_size if self.is_file else 0
        self.links = state.st_nlink
        self.matched = 0  # bytes that were found equal, of blocks that were brought
        self._left: deque[Range] = deque()
        self._compare: deque[Range] = deque()
        self._blocks: deque[Block] = deque()
        self._ends = False

    def take(self, todo: Todo) -> None:
        """This is to be read, too."""
        self._ends = todo.ends
        if self.is_file:
            self._left = deque(merged([*self._left, *todo.ranges]))
            self._compare = deque(merged([*self._compare, *todo.compare]))
            self._blocks += todo.blocks
            if self.request.suspected and self._blocks:
                self._judge()

    def _judge(self) -> None:
        """Most blocks differ. Either a little of each was changed, or something has moved."""
        request = self.request
        request.suspected = False
        length = differing = 0
        for start, size, units in list(self._blocks)[
            : limits.MOVED_PROBE_BYTES // limits.COMPARE_BLOCK_BYTES
        ]:
            if units:
                content = memoryview(os.pread(self._descriptor, size, start))
                length += size
                differing += sum(end - first for first, end in digests.differing_units(content, units))
        if 2 * differing > length and self.size >= limits.MOVED_MIN_BYTES:
            request.moved = True
            moved_away = [(start, start + size) for start, size, units in self._blocks if units]
            self._blocks = deque(block for block in self._blocks if not block[2])
            self._compare = deque(merged([*self._compare, *moved_away]))

    @property
    def left(self) -> list[Range]:
        """What is not read yet, of what is to be brought."""
        return merged([*self._left, *((offset, offset + length) for offset, length, _ in self._blocks)])

    @property
    def left_to_compare(self) -> list[Range]:
        """The same, of what is to be compared."""
        return list(self._compare)

    def next(self, bytes_max: int = limits.PART_BYTES) -> Patch | Patched | Digests | None:
        """The next part, or the end; None: that has to wait for answers. OSError if it cannot be read."""
        path, identity = self.request.path, self.request.identity
        descriptor = self._descriptor
        if self.request.probing:
            return None
        if self._left or self._blocks:
            read = self._read if self._left else self._read_blocks
            extents, holes, content = read(bytes_max)
            # After the content, so that the size is not older than it: whatever changed it meanwhile is in
            # the journal behind this place.
            state = self._state()
            rebuild = self._rebuild
            return Patch(path, identity, state.st_nlink, state.st_size, extents, holes, content, rebuild)
        while self._compare:
            if (claim := self._digest(bytes_max * limits.COMPARE_WEIGHT)) is not None:
                return claim
        if not self._ends:
            return None
        state = self._state()
        xattrs = read_xattrs(descriptor, readable=self.is_file)
        size = state.st_size if self.is_file else 0
        links, attributes = state.st_nlink, attributes_of(state)
        return Patched(path, identity, links, attributes, xattrs, size, self._rebuild)

    @property
    def _rebuild(self) -> int:
        return self.request.number if self.request.rebuilt else 0

    def _state(self) -> os.stat_result:
        state = os.fstat(self._descriptor)
        self.links = state.st_nlink
        return state

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

    def _read_blocks(self, bytes_max: int) -> tuple[tuple[Range, ...], tuple[Range, ...], Content]:
        """Of blocks that the target found different, the units that are."""
        extents: list[tuple[int, int]] = []
        chunks: list[bytes | memoryview] = []
        room = bytes_max
        while self._blocks and room > 0 and len(extents) < limits.PATCH_EXTENTS:
            offset, length, units = self._blocks.popleft()
            end = offset + length
            data = os.pread(self._descriptor, length, offset) if units else b""
            if len(data) < length or _next_data(self._descriptor, offset, end) != (offset, end):
                # Nothing is known of its units, or it has holes now, or was cut off.
                self._left.append((offset, end))
                break
            view = memoryview(data)
            for start, stop in digests.differing_units(view, units):
                extents.append((offset + start, stop - start))
                chunks.append(view[start:stop])
                length -= stop - start
                room -= stop - start
            self.matched += length
        return tuple(extents), (), Content(b"".join(chunks))

    def _digest(self, bytes_max: int) -> Digests | None:
        """Digests of data of about so much; None: that range lies beyond the end."""
        start, end = self._compare.popleft()
        size = os.fstat(self._descriptor).st_size
        # Whole blocks: only these can become holes.
        stop = min(end, -(-size // ALIGN_BYTES) * ALIGN_BYTES)
        if start >= stop:
            return None
        request, block_bytes = self.request, limits.COMPARE_BLOCK_BYTES
        anchors: bytearray | None = None
        if request.moved:
            anchors = bytearray()
            if size > limits.MOVED_LARGE_BYTES:
                block_bytes = limits.MOVED_BLOCK_BYTES
        elif not request.probed and size >= limits.MOVED_MIN_BYTES:
            bytes_max = min(bytes_max, limits.MOVED_PROBE_BYTES)
            request.probed = request.probing = True
        extents, last = _extents(self._descriptor, start, stop, size, bytes_max, block_bytes)
        found, cut_at = digests.digest_blocks(
            self._descriptor, extents, block_bytes, anchors, moved.ANCHOR_BYTES
        )
        if cut_at is not None:  # the rest is looked at again, it may be of any size now
            extents = [
                (offset, min(length, cut_at - offset)) for offset, length in extents if offset < cut_at
            ]
            last = stop = cut_at
            self._compare.appendleft((last, end))
            if last == start:
                return None
        elif last < stop:
            self._compare.appendleft((last, end))
        state = self._state()
        begins = anchors is not None and not request.rebuilt
        kept: tuple[tuple[int, int], ...] = ()
        if begins:
            request.rebuilt = True
            others = merged([(start, last), *self._compare])
            kept = tuple(
                digests.gaps(
                    0, size, [(first, min(end, size) - first) for first, end in others if first < size]
                )
            )
        return Digests(
            request.path,
            request.identity,
            request.number,
            state.st_size,
            start,
            last,
            block_bytes,
            tuple(extents),
            found,
            bytes(anchors or b""),
            begins,
            kept,
        )

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


def _extents(
    descriptor: int, start: int, stop: int, size: int, bytes_max: int, block_bytes: int
) -> tuple[list[tuple[int, int]], int]:
    """Data from `start` on, up to `stop`, but not much more than `bytes_max`; and where that ends."""
    found: list[tuple[int, int]] = []
    for offset, length in data_extents(descriptor, min(stop, size), start):
        blocks = max((offset % block_bytes + bytes_max) // block_bytes, 1)
        end = min(offset // block_bytes * block_bytes + blocks * block_bytes, offset + length)
        found.append((offset, end - offset))
        bytes_max -= end - offset
        if bytes_max <= 0 or end < offset + length or len(found) >= limits.PATCH_EXTENTS:
            return found, end if end < size else stop
    return found, stop


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
    return data, data_end(descriptor, data, stop) if data < stop else stop
