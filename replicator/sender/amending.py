"""What a scanner brings for a recovery that knows what is old: lists of names, regions of files.

As all of a scanner's work: read in small steps, each at a place of its own, and void where a name changed
meanwhile.
"""

import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from replicator import limits
from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.names import NamesRead, names_changed, read_names_of
from replicator.mirror.order import name_change_touches
from replicator.mirror.patches import PatchRequest, Range, Todo, counted_bytes
from replicator.mirror.pieces import Digests, Patch, Patched
from replicator.mirror.regions import PatchReader, open_patch
from replicator.mirror.scan import Found, Source, join
from replicator.ops import Kind
from replicator.sender.flow import Flow, QueuedPiece
from replicator.sender.pace import Pace
from replicator.world import World

_UNSURE = frozenset({Kind.HOLE, Kind.DOUBT})


class Amender:
    """Part of a scanner; the arguments are its own."""

    def __init__(
        self,
        world: World,
        run: Callable[[], MirrorRun | None],
        may_scan: Callable[[], Awaitable[None]],
        queue: Callable[[Flow, QueuedPiece], None],
        pace: Pace,
    ) -> None:
        self._world = world
        self._pace = pace
        self._mirror_run = run
        self._may_scan = may_scan
        self._queue = queue

    async def bring_something(self, flow: Flow) -> bool:
        """One patch, or one list of names. False: there is none."""
        request = flow.order.next_patch()
        if request is not None:
            await self._bring_patch(flow, request)
            return True
        directory = flow.order.next_names()
        if directory is not None:
            await self._bring_names(flow, directory)
            return True
        return False

    # --- names ---

    async def _bring_names(self, flow: Flow, directory: bytes) -> None:
        try:
            await self._may_scan()
            place = flow.open_place()
            read = await self._world.in_thread(partial(read_names_of, flow.source, directory))
        except trio.Cancelled:
            flow.abort_place()
            flow.order.require_names(directory, orphans=True)  # if it is for them: it is still required
            raise
        changes = flow.close_place()
        kept: set[bytes] = set()
        for record in changes:
            names = None if record.kind in _UNSURE else names_changed(record, directory)
            if names is None:
                flow.order.require_names(directory, orphans=True)
                self._queue(flow, QueuedPiece(place, []))
                return
            kept |= names
        orphans, walked = flow.order.names_read(directory)
        if not isinstance(read, NamesRead):
            if read is not None:
                self._report(directory, read)
            flow.order.names_sent(directory)  # it is gone: whatever holds its name says so
            self._queue(flow, QueuedPiece(place, []))
            return
        if not directory and not read.names:
            # An empty root is no reason to empty the target: that has to be asked for by name.
            self._report(directory, "the source is empty: the target was left as it is")
            flow.order.names_sent(directory)
            self._queue(flow, QueuedPiece(place, []))
            return
        if flow.order.brings_files_of(directory):
            for name in read.other_than_directories():
                flow.read_again(join(directory, name))
        listed = (name for name, _ in read.names)
        spared = kept | flow.order.pending_names(directory, listed, len(read.names))
        if walked:
            for name in read.directories():
                flow.order.walk_names(join(directory, name))
        for piece in read.pieces(spared, orphans=orphans):
            self._queue(flow, QueuedPiece(place, [Found(directory, piece)], bytes=_size(piece.names)))
        if not kept:  # a change of names journals the directory's mtime by itself
            self._queue(flow, QueuedPiece(place, [Found(directory, read.times)]))

    # --- regions ---

    async def _bring_patch(self, flow: Flow, request: PatchRequest) -> None:
        reader: PatchReader | None = None
        ranges: list[Range] = []  # taken from the request, and not in a piece yet
        compare: list[Range] = []
        try:
            while not request.void:
                await self._may_scan()
                if request.void:
                    break
                place = flow.open_place()
                todo = request.take()
                ranges, compare = ranges + todo.left, compare + todo.compare
                matched = reader.matched if reader is not None else 0
                step = partial(_read, flow.source, request, reader, todo, self._pace.part_bytes)
                reader, found = await self._world.in_thread(step)
                changes = flow.close_place()
                if reader is None or any(
                    r.kind in _UNSURE or name_change_touches(r, request.path) for r in changes
                ):
                    # What the target has of it is brought under whatever names it has now.
                    flow.order.drop_patch(request)
                    flow.order.require(request.path)
                    self._queue(flow, QueuedPiece(place, []))
                    break
                if isinstance(found, str):
                    self._report(request.path, found)
                    flow.order.drop_patch(request)
                    self._queue(flow, QueuedPiece(place, []))
                    break
                if not request.number:
                    self._measure(request, reader, todo)
                ranges, compare = reader.left, reader.left_to_compare
                # Read after this place: it had no others then, or they are gone by operations that follow.
                request.multilink = reader.links > 1
                self._count_matched(request, reader.matched - matched)
                request.unanswered += sum(isinstance(f.entry, Digests) for f in found)
                size = sum(_weight(f) for f in found)
                self._queue(flow, QueuedPiece(place, found, patch=request, bytes=size))
                if not found:
                    flow.order.park_patch(request, ranges, compare)
                    break
                if isinstance(found[-1].entry, Patched):
                    if found[-1].links > 1:
                        flow.links_seen.add(request.identity)
                    break
        except BaseException:
            flow.abort_place()
            flow.order.patch_left(request, ranges, compare)
            raise
        finally:
            if reader is not None:
                reader.close()

    def _measure(self, request: PatchRequest, reader: PatchReader, todo: Todo) -> None:
        """Only now it is known how much of the file lies in what was asked for."""
        run = self._mirror_run()
        if run is not None and not request.measured:
            request.measured = True
            inside = sum(max(min(end, reader.size) - start, 0) for start, end in todo.ranges)
            run.expect(0, inside - counted_bytes(todo.ranges))

    def _count_matched(self, request: PatchRequest, size: int) -> None:
        run = self._mirror_run()
        if run is not None and request.number:
            run.matched(size)

    def _report(self, path: bytes, reason: str) -> None:
        run = self._mirror_run()
        if run is not None:
            run.problem(path, reason)


def _weight(found: Found) -> int:
    """What a piece counts of what may be on its way: bytes sent, or the time that comparing takes."""
    entry = found.entry
    if isinstance(entry, Digests):
        return sum(length for _, length in entry.extents) // limits.COMPARE_WEIGHT
    return found.size


def _read(
    source: Source, request: PatchRequest, reader: PatchReader | None, todo: Todo, part_bytes: int
) -> tuple[PatchReader | None, list[Found] | str]:
    """Parts of about `part_bytes` together, or a reason; no reader: it is another object now. Nothing found:
    its end has to wait.
    """
    found: list[Found] = []
    total = 0
    try:
        if reader is None:
            reader = open_patch(source, request)
            if reader is None:
                return None, []
        reader.take(todo)
        while total < part_bytes and len(found) < limits.STEP_FILES:
            entry = reader.next(part_bytes - total)
            if entry is None:
                break
            size = len(entry.data) if isinstance(entry, Patch) else 0
            links = reader.links if isinstance(entry, Digests) else entry.links
            found.append(Found(request.path, entry, request.identity, links, size, whole=True))
            total += size
            if isinstance(entry, Patched | Digests):
                break
    except OSError as error:
        return reader, os.strerror(error.errno) if error.errno else str(error)
    return reader, found


def _size(names: tuple[bytes, ...]) -> int:
    return sum(map(len, names)) + len(names)
