"""Several journals as one stream, in the order in which their operations returned.

Order is (boot, stamp). A record is given out only when no other journal can still get an older one. With one
journal there is nothing to merge, and nothing is added.
"""

from collections.abc import Sequence

import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Position, Record
from replicator.queue.cursor import Cursor, Run

_Key = tuple[bool, int, int]


class Merge:
    """Runs of several cursors.

    The cursors are positioned by their owner before the first `read`, and not after it.
    """

    def __init__(self, cursors: Sequence[Cursor]) -> None:
        self._cursors = tuple(cursors)
        self._runs: list[Run | None] = [None] * len(self._cursors)
        self._next: list[int] = [0] * len(self._cursors)  # first record of the run not given out
        self._pause_s = limits.MERGE_PAUSE_FIRST_S
        # When a boot began, by the wall clock of the first record seen of it: the order of former boots.
        self._began: dict[int, int] = {}

    @property
    def unread_bytes(self) -> int:
        """In the journals, and not read by these cursors yet."""
        return sum(cursor.backlog()[1] for cursor in self._cursors)

    def read(self, max_bytes: int = limits.RUN_BYTES) -> tuple[int, Run] | None:
        """(index of the cursor, its next run), or None: nothing may be given out now. Raises JournalError."""
        if len(self._cursors) == 1:
            run = self._cursors[0].read(max_bytes)
            return None if run is None else (0, run)
        boot = self._cursors[0].boot if self._cursors else 0
        heads: list[tuple[_Key, int]] = []
        mark: _Key | None = None
        for index, cursor in enumerate(self._cursors):
            if self._runs[index] is None:
                # The mark first: what comes after an empty read is not below it.
                low_mark = cursor.low_mark()
                self._runs[index] = cursor.read(max_bytes)
                self._next[index] = 0
                if self._runs[index] is None:
                    key = (True, 0, low_mark)
                    mark = key if mark is None else min(mark, key)
                    continue
            heads.append((self._key(self._record(index), boot), index))
        if not heads:
            return None
        heads.sort()
        index = heads[0][1]
        limit = heads[1][0] if len(heads) > 1 else None
        run = self._take(index, boot, limit, mark)
        if run is None:
            return None
        self._pause_s = limits.MERGE_PAUSE_FIRST_S
        return index, run

    def _record(self, index: int) -> Record:
        run = self._runs[index]
        assert run is not None
        return run.records[self._next[index]][2]

    def _key(self, record: Record, boot: int) -> _Key:
        if record.boot == boot:
            return True, 0, record.monotonic_ns
        began = self._began.setdefault(record.boot, record.wall_ns - record.monotonic_ns)
        return False, began, record.monotonic_ns

    def _take(self, index: int, boot: int, limit: _Key | None, mark: _Key | None) -> Run | None:
        """The records of a run that come before what the others have (`limit`) or may still get (`mark`)."""
        run = self._runs[index]
        assert run is not None
        first = end = self._next[index]
        while end < len(run.records):
            key = self._key(run.records[end][2], boot)
            if (limit is not None and key > limit) or (mark is not None and key >= mark):
                break
            end += 1
        if end == first:
            return None
        if end == len(run.records):
            self._runs[index] = None
        self._next[index] = end
        if end - first == len(run.records):
            return run
        return _part(run, first, end)

    async def wait(self) -> None:
        """Return when `read` may have something. Raises JournalError when a journal was stopped."""
        if len(self._cursors) == 1:
            await self._cursors[0].wait()
            return
        if any(self._runs):
            # Held back by a journal that is idle (for the margin of its low mark) or whose writer is in an
            # append.
            await trio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, limits.MERGE_PAUSE_MAX_S)
            return
        problem: JournalError | None = None
        async with trio.open_nursery() as nursery:

            async def first(cursor: Cursor) -> None:
                nonlocal problem
                try:
                    await cursor.wait()
                except JournalError as error:
                    problem = error
                nursery.cancel_scope.cancel()

            for cursor in self._cursors:
                nursery.start_soon(first, cursor)
        if problem is not None:
            raise problem


def _part(run: Run, first: int, end: int) -> Run:
    start = run.records[first][0]
    stop = run.records[end - 1][0] + run.records[end - 1][1]
    return Run(
        _position(run.records[first - 1][2]) if first else run.previous,
        _position(run.records[end - 1][2]),
        run.data[start:stop],
        [(offset - start, length, record) for offset, length, record in run.records[first:end]],
    )


def _position(record: Record) -> Position:
    return Position(record.sequence, record.chain)
