"""What changed at the source while it was compared: the places of checks in the stream, and the operations
since.

A check stands at a place S, and was read after it. It says what the source was at S unless an operation
behind S touched what was read. Operations are journaled a moment after they can be seen, so whoever decides
looks at the journal later than the read (`limits.CHECK_SETTLE_S`).
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from replicator import limits
from replicator.errors import JournalError
from replicator.mirror.checks import AnyCheck, CheckNames
from replicator.mirror.names import names_changed
from replicator.mirror.order import name_change_in_directory, name_change_touches
from replicator.ops import NAME_KINDS, Kind, Record
from replicator.queue.cursor import Cursor

_UNSURE = frozenset({Kind.HOLE, Kind.DOUBT})
_RESIZING = frozenset({Kind.TRUNCATE, Kind.FALLOCATE, Kind.FILE})
_TO_END = 2**63 - 1


@dataclass
class QueuedChecks:
    """Checks that were read; they go into the stream when it has reached `place`."""

    place: int
    checks: list[AnyCheck]
    key: int  # what its verifier knows them by
    bytes: int = 0  # of content, which the target has to read


class _Change(NamedTuple):
    """An operation on one file. `start`, `end`: of its content; equal: of its attributes only."""

    sequence: int
    start: int
    end: int


class Touched:
    """Of one journal. Memory: the operations since the oldest check that is not decided."""

    def __init__(self, cursor: Cursor | None) -> None:
        self.place: int | None = None
        """The open place: the stream waits there."""
        self._cursor = cursor
        self._lost_until = 0  # what changed up to here is not known
        self._names: deque[Record] = deque()
        self._changes: dict[int, deque[_Change]] = {}  # by inode
        self._order: deque[tuple[int, int]] = deque()  # (sequence, inode) of these

    @property
    def usable(self) -> bool:
        return self._cursor is not None

    # --- places ---

    def begin(self) -> None:
        """Nothing is on its way."""
        assert self._cursor is not None
        self._forget_all(self._cursor.seek_head().sequence)

    def open_place(self) -> int:
        """A read of the source begins."""
        assert self.place is None and self._cursor is not None
        self.place = self._cursor.head().sequence
        return self.place

    def close_place(self) -> list[Record]:
        """The read has ended. Returns the changes of names since it began, as far as they are known."""
        place = self.abort_place()
        assert place is not None
        self.read()
        if place < self._lost_until:
            return []  # nothing of it will be believed
        return [record for record in self._names if record.sequence > place]

    def abort_place(self) -> int | None:
        place, self.place = self.place, None
        return place

    # --- operations ---

    @property
    def head(self) -> int:
        """The last operation that is journaled."""
        assert self._cursor is not None
        return self._cursor.head().sequence

    def read(self) -> int:
        """Take what is journaled. Returns up to where."""
        cursor = self._cursor
        assert cursor is not None
        try:
            while (run := cursor.read()) is not None:
                for _, _, record in run.records:
                    self._take(record)
        except JournalError:  # it was collected, or is damaged
            self._forget_all(cursor.seek_head().sequence)
        if len(self._order) + len(self._names) > limits.TOUCHED_KEPT:
            self._forget_all(cursor.position.sequence)
        return cursor.position.sequence

    def _take(self, record: Record) -> None:
        kind, sequence = record.kind, record.sequence
        if kind in NAME_KINDS or kind in _UNSURE:
            self._names.append(record._replace(payload=b""))
        start = end = 0
        if kind == Kind.WRITE:
            start, end = record.arg0, record.arg0 + len(record.payload)
        elif kind in _RESIZING:
            end = _TO_END
        self._changes.setdefault(record.inode, deque()).append(_Change(sequence, start, end))
        self._order.append((sequence, record.inode))

    def _forget_all(self, sequence: int) -> None:
        self._lost_until = sequence
        self._names.clear()
        self._changes.clear()
        self._order.clear()

    def forget(self, sequence: int) -> None:
        """Nobody asks about operations up to this one any more."""
        while self._names and self._names[0].sequence <= sequence:
            self._names.popleft()
        while self._order and self._order[0][0] <= sequence:
            _, inode = self._order.popleft()
            changes = self._changes[inode]
            changes.popleft()
            if not changes:
                del self._changes[inode]

    # --- deciding ---

    def names_since(self, place: int, check: AnyCheck) -> bool:
        """Whether what was read for `check` may be another object than what was there at `place`."""
        if place < self._lost_until:
            return True
        for record in self._names:
            if record.sequence <= place:
                continue
            if record.kind in _UNSURE or name_change_touches(record, check.path):
                return True
            if isinstance(check, CheckNames):
                names = names_changed(record, check.path)
                if names is None or not names <= set(check.kept):
                    return True
            elif (check.peer and name_change_touches(record, check.peer)) or (
                # A directory's own times follow its names.
                name_change_in_directory(record, check.path)
            ):
                return True
        return False

    def object_since(self, place: int, inode: int) -> bool:
        """Whether this object was changed after `place`."""
        changes = self._changes.get(inode)
        return place < self._lost_until or (changes is not None and changes[-1].sequence > place)

    def content_since(self, place: int, inode: int, start: int, end: int) -> bool:
        """Whether this part of a file's content was changed after `place`."""
        if place < self._lost_until:
            return True
        for change in reversed(self._changes.get(inode, ())):
            if change.sequence <= place:
                return False
            if change.start < end and start < change.end:
                return True
        return False
