"""One journal of a connection, as its sender sees it: where the stream stands, and what waits for its place
in it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator import limits
from replicator.errors import JournalError
from replicator.mirror.mirroring import MirrorRun
from replicator.mirror.order import Order, is_below_or_equal, parent_of
from replicator.mirror.patches import PatchRequest, aligned
from replicator.mirror.pieces import (
    Abandon,
    Alike,
    AnyEntry,
    Digests,
    Files,
    Links,
    Listing,
    Names,
    Patch,
    Patched,
    Times,
)
from replicator.mirror.scan import Found, Source, Transfer
from replicator.ops import NAME_KINDS, NO_IDENTITY, START, Identity, Kind, Position, Record
from replicator.queue.cursor import Cursor
from replicator.repset import Filter
from replicator.sender.touched import QueuedChecks, Touched


@dataclass
class OpenTransfer:
    """A large file on its way."""

    path: bytes
    number: int
    read: Transfer | None = None  # once it is opened; closed by the scanner
    started: bool = False  # its first part is queued
    sent: bool = False  # its first part is in the stream
    ended: bool = False  # nothing of it may follow
    counted_bytes: int = 0  # in the stream, of one that is not complete there


@dataclass
class QueuedPiece:
    """Something the scanner brought; it goes into the stream when the stream has reached `place`."""

    place: int
    found: list[Found]
    directories: list[bytes] = field(default_factory=list)  # of a listing: pending from here on
    names: list[bytes] = field(default_factory=list)
    transfer: OpenTransfer | None = None
    patch: PatchRequest | None = None
    bytes: int = 0


_NAMES_UNKNOWN = frozenset({Kind.HOLE, Kind.DOUBT})


class Flow:
    """The stream of one journal.

    Only the sender's tasks touch it; between two checkpoints it is consistent.
    """

    def __init__(
        self,
        index: int,
        journal_id: str,
        cursor: Cursor,
        lookahead: Cursor,
        set_filter: Filter,
        source: Source,
        checking: Cursor | None = None,
    ) -> None:
        """`checking`: a cursor of its own for a verification; None: there is none."""
        self.index = index
        self.journal_id = journal_id
        self.cursor = cursor
        self.filter = set_filter
        self.source = source
        self.order = Order()
        # Of the last record that is in the stream, or that is tracked instead (see `dirt.py`).
        self.position: Position = cursor.position if cursor.resumed else START
        self.reached: Position | None = None  # where the target is, until the stream goes on
        self.sent_max = cursor.head().sequence  # no sender of this connection has sent more
        self.passed_wall_ns = 0  # when that was done; 0: not known
        self.pieces: deque[QueuedPiece] = deque()
        self.transfers: list[OpenTransfer] = []  # being read, or read and waiting for their places
        self.copies_locally = True  # no reason against it was found in this session
        self.broken_off_bytes = 0  # counted of those that a session left unfinished
        self.again: dict[bytes, set[bytes]] = {}  # names to read again, by directory
        self.links_seen: set[Identity] = set()  # hard-linked files the scanner has read under one name
        self.times_again: set[bytes] = set()  # directories whose mtime has to be sent again
        self.all_required = False  # the mirror that runs brings everything, not some paths
        self.damaged_at: Position | None = None  # what follows in the journal cannot be read
        self._failed_at: Position | None = None
        self._lookahead = lookahead
        self._open_place: int | None = None
        self.touched = Touched(checking)
        self.checks: deque[QueuedChecks] = deque()

    def has(self, directory: bytes) -> bool:
        """Whether a directory belongs to the set's trees: above their roots nothing is ours to touch."""
        return any(is_below_or_equal(directory, root) for root in self.filter.roots)

    # --- places ---

    def open_place(self) -> int:
        """A read of the source begins: its piece will stand after the present head, and the stream waits
        there for it.
        """
        assert self._open_place is None, "one scanner at a time"
        self._open_place = self._lookahead.seek_head().sequence
        return self._open_place

    def close_place(self) -> list[Record]:
        """The read has ended.

        Returns the records since `open_place` that changed names (or may have). Call, queue the piece, and
        only then reach a checkpoint.
        """
        changes: list[Record] = []
        while (run := self._lookahead.read()) is not None:
            for _, _, record in run.records:
                if record.kind in NAME_KINDS or record.kind in _NAMES_UNKNOWN:
                    changes.append(record._replace(payload=b""))
        self.order.scanned_head = max(self.order.scanned_head, self._lookahead.position.sequence)
        self._open_place = None
        return changes

    def abort_place(self) -> None:
        """The read was cancelled."""
        self._open_place = None

    @property
    def barrier(self) -> int | None:
        """The sequence that the stream must not pass now."""
        first = self.pieces[0].place if self.pieces else None
        if self._open_place is not None:
            first = self._open_place if first is None else min(first, self._open_place)
        if self.checks or self.touched.place is not None:
            places = [first, self.checks[0].place if self.checks else None, self.touched.place]
            first = min(place for place in places if place is not None)
        return first

    def records_after(self, position: Position) -> Iterator[Record]:
        """All that the journal has behind it, with the beginning of a new row, for looking: while no session
        uses this flow. JournalError: it does not have them (any more).
        """
        self._lookahead.seek(position)
        while (run := self._lookahead.read(limits.READ_CHUNK_BYTES)) is not None:
            for _, _, record in run.records:
                yield record

    # --- reading the journal ---

    def seek(self, position: Position) -> None:
        """Go on after `position`.

        Raises JournalError if the journal does not have it (any more).
        """
        self.cursor.seek(position)
        if position != self.position:
            self.passed_wall_ns = 0
        self.position = position

    def seek_first(self) -> None:
        """Go on with the oldest record kept for this connection, with what comes next if it is lost."""
        try:
            self.position = self.cursor.seek_kept()
            self.passed_wall_ns = 0
        except JournalError:
            self.seek_head()

    def stand_at(self, sequence: int, chain: int, passed_wall_ns: int) -> None:
        """A predecessor was here; the cursor is moved when it is known where the target is."""
        self.position = Position(sequence, chain)
        self.passed_wall_ns = passed_wall_ns

    def seek_head(self) -> None:
        """Go on with what comes next."""
        self.position = self.cursor.seek_head()
        self.damaged_at = None
        self.passed_wall_ns = 0

    # --- reading the source again ---

    def read_again(self, path: bytes, touched: Identity | None = None) -> None:
        """Bring one file again.

        `touched`: whole, without comparing.
        """
        self.order.pend(path, touched=touched)
        if touched is not None:
            self.links_seen.discard(touched)
        directory = parent_of(path)
        self.again.setdefault(directory, set()).add(path[len(directory) + 1 if directory else 0 :])

    def require_all(self, run: MirrorRun | None) -> None:
        """The run that brings some paths has to bring all of them."""
        self.all_required = True
        if run is not None:
            run.bring_everything()
        for root in self.filter.roots:
            self.order.require(root)

    def lost(self, found: Found, patch: PatchRequest | None = None) -> None:
        """This, of `patch`, did not reach the target and will not: see that it is brought again."""
        entry = found.entry
        if isinstance(entry, Times):
            self.times_again.add(found.path)
        elif isinstance(entry, Listing):
            self.order.require(found.path)
        elif isinstance(entry, Names):
            self.order.require_names(found.path, orphans=entry.orphans)
        elif isinstance(entry, Patch | Patched):
            if isinstance(entry, Patched):
                self.order.patch_settled(found.identity)
            self.order.require_regions(
                found.path, found.identity, regions_of(entry), multilink=found.links > 1
            )
        elif isinstance(entry, Digests):
            assert patch is not None
            self.order.digests_lost(patch, (entry.start, entry.end))
        elif isinstance(entry, Files | Links):
            for name, inode in zip(entry.names, found.inodes, strict=True):
                path = entry.path + b"/" + name if entry.path else name
                self.read_again(path, Identity(inode, 0))
        elif isinstance(entry, Alike):
            for name in entry.names:
                self.read_again(entry.path + b"/" + name if entry.path else name)
        elif not isinstance(entry, Abandon):
            self.read_again(found.path, found.identity if found.identity != NO_IDENTITY else None)

    def nothing_to_read(self) -> bool:
        return not self.again and not self.times_again and self.order.everything_read()

    def forget_mirror(self) -> None:
        """The mirror is over, complete or stopped."""
        self.pieces.clear()
        self.again.clear()
        self.times_again.clear()
        self.links_seen.clear()
        self.all_required = False
        self.end_transfers()
        self.order.end()

    def session_ended(self) -> None:
        """What was queued is read again in the next session, at new places.

        A journal that could not be read on is tried again in the next session; at the same place a second
        time, it is damaged (AD-03).
        """
        failed_at, self.cursor.failed_at = self.cursor.failed_at, None
        if failed_at is not None:
            self.damaged_at = failed_at if failed_at == self._failed_at else None
            self._failed_at = failed_at
        for piece in self.pieces:
            for found in piece.found:
                if isinstance(found.entry, Digests):
                    self.lost(found, piece.patch)
                elif piece.patch is not None:
                    self.order.patch_left(piece.patch, aligned(regions_of(found.entry)))
                else:
                    self.lost(found)
        self.pieces.clear()
        self.checks.clear()
        self.touched.abort_place()
        self.end_transfers()
        self._open_place = None
        self.copies_locally = True

    def end_transfers(self) -> None:
        for transfer in self.transfers:
            transfer.ended = True  # the scanner, which owns the descriptor, closes it when it sees this
            self.broken_off_bytes += transfer.counted_bytes
        self.transfers.clear()

    def end_transfer(self, transfer: OpenTransfer) -> None:
        """Nothing of this transfer may follow; parts that wait are dropped."""
        transfer.ended = True
        if transfer in self.transfers:
            self.transfers.remove(transfer)
        if any(piece.transfer is transfer for piece in self.pieces):
            self.pieces = deque(piece for piece in self.pieces if piece.transfer is not transfer)


def regions_of(entry: AnyEntry | None) -> list[tuple[int, int]]:
    """(offset, length) of what a patch brings."""
    return [*entry.extents, *entry.holes] if isinstance(entry, Patch) else []
