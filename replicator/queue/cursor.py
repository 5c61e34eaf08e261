"""The reading side of a journal: one cursor per reader, in any process of the host."""

import contextlib
from collections import deque
from typing import NamedTuple
from uuid import UUID

import trio

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Position, Record
from replicator.queue import header as headers
from replicator.queue import record as records
from replicator.queue import segment as segments
from replicator.queue.answers import Teller
from replicator.queue.doorbell import bell_path, urgent_path
from replicator.queue.header import Head, Header, State, identify, short_boot_id
from replicator.queue.recovery import row_start
from replicator.queue.segment import SegmentHeader
from replicator.queue.settings import JournalSettings
from replicator.world import Bell, World


class UnreadableJournal(JournalError):
    """The disk does not give what the journal has; it may do so later."""


class Run(NamedTuple):
    """Records that follow one another without a gap, verified. Offsets count from the start of `data`."""

    previous: Position
    last: Position
    data: memoryview
    records: list[tuple[int, int, Record]]  # (offset, length, record)


class _Place:
    """A place in the row of segments, and the reading from there on."""

    def __init__(self, world: World, settings: JournalSettings, journal: UUID, head: Head) -> None:
        self._disk = world.disk
        self._directories = (settings.memory_directory, settings.disk_directory)
        self._journal = journal
        self._handle: int | None = None
        self._following: tuple[int, SegmentHeader] | None = None
        self.segment = head.segment
        self.offset = head.offset
        self.position = head.position
        self.bytes = head.bytes  # of all records up to here

    def close(self) -> None:
        handles = (self._handle, self._following[0] if self._following else None)
        self._handle = self._following = None
        for handle in handles:
            if handle is not None:
                with contextlib.suppress(OSError):  # it was only read from
                    self._disk.close(handle)

    def find_segment(self, sequence: int, newest: int) -> None:
        """Go to the start of the segment that holds the record after `sequence`.

        JournalError: there is none.
        """
        numbers = sorted(
            {
                n
                for directory in self._directories
                for n in segments.numbers_in(self._disk, directory)
                if n <= newest
            }
        )
        low, high = 0, len(numbers)
        while high - low > 1:  # the last segment that does not begin behind the place
            middle = (low + high) // 2
            handle, header = self._open(numbers[middle])
            self._disk.close(handle)
            if header.first_sequence <= sequence + 1:
                low = middle
            else:
                high = middle
        if not numbers:
            raise JournalError(f"record {sequence} is not in the journal: it is empty")
        self._enter(*self._open(numbers[low]))
        if self.position.sequence > sequence:
            raise JournalError(f"record {sequence} is no longer in the journal")

    def read(self, head: Head, bytes_max: int) -> Run | None:
        """The next run, or None at the head."""
        if self.position.sequence == head.sequence:
            return None
        end = self._end(head)
        while self.offset >= end:
            if self.segment >= head.segment:
                raise JournalError(f"position {self.position.sequence} is no longer in the journal")
            handle, header = self._following or self._open(self.segment + 1)
            self._following = None
            if header.previous != self.position:
                self._disk.close(handle)
                raise JournalError(f"position {self.position.sequence} is no longer in the journal")
            self._enter(handle, header)
            end = self._end(head)
        if self._handle is None:
            self._handle, _ = self._open(self.segment)
        return self._read(self._handle, end - self.offset, bytes_max)

    def _read(self, handle: int, available: int, bytes_max: int) -> Run:
        wanted = min(available, max(bytes_max, records.HEADER_BYTES))
        data = memoryview(self._disk.read(handle, wanted, self.offset))
        if len(data) == wanted:
            first = records.record_length(data)
            if wanted < first <= available:
                data = memoryview(self._disk.read(handle, first, self.offset))
        found: list[tuple[int, int, Record]] = []
        sequence, chain = self.position
        offset = 0
        try:
            if not data:
                raise records.IncompleteRecord("the segment ends too early")
            while offset < len(data):
                record, length = records.decode(data, offset)
                if record.sequence != sequence + 1:
                    raise records.CorruptRecord(f"record {record.sequence} stands in place of {sequence + 1}")
                chain = records.check(data, offset, length, chain)
                sequence += 1
                found.append((offset, length, record))
                offset += length
        except JournalError as error:
            if not found:
                where = f"segment {self.segment}, byte {self.offset}"
                raise records.CorruptRecord(f"the journal is damaged in {where}: {error}") from error
            # Cut off by `wanted`, or damaged: the next read sees which.
        previous = self.position
        self.position = Position(sequence, chain)
        self.offset += offset
        self.bytes += offset
        return Run(previous, self.position, data[:offset], found)

    def back(self, run: Run) -> None:
        """Undo the read that returned `run`."""
        self.position = run.previous
        self.offset -= len(run.data)
        self.bytes -= len(run.data)

    def forward(self, run: Run, sequence: int) -> None:
        """Go over the records of `run`, which begins here, up to that one."""
        for _, length, record in run.records[: sequence - self.position.sequence]:
            self.position = Position(record.sequence, record.chain)
            self.offset += length
            self.bytes += length

    def _end(self, head: Head) -> int:
        """Where the records of the current segment end. Behind that may lie what a failed write left."""
        if self.segment == head.segment:
            return head.offset
        if not self.offset:
            return 0  # a row that had no segment yet
        if self._following is None:
            self._following = self._open(self.segment + 1)
        return self.offset + self._following[1].bytes_before - self.bytes

    def _enter(self, handle: int, header: SegmentHeader) -> None:
        self.close()
        self._handle = handle
        self.segment = header.number
        self.offset = segments.HEADER_BYTES
        self.position = header.previous
        self.bytes = header.bytes_before

    def _open(self, number: int) -> tuple[int, SegmentHeader]:
        for directory in self._directories:
            try:
                handle = self._disk.open_read(segments.path_of(directory, number))
            except FileNotFoundError:
                continue
            try:
                header = segments.read_header(self._disk, handle)
                if header.number != number or header.journal != self._journal:
                    raise JournalError(f"segment {number} is not of this journal")
            except BaseException:
                self._disk.close(handle)
                raise
            return handle, header
        raise JournalError(f"segment {number} is no longer in the journal")


class Cursor:
    """One reader of a journal. Open it with `Cursor.open`. Errors of the disk are JournalErrors.

    Its slot in the shared header keeps what it has not acknowledged, across restarts of either side; a cursor
    without slot only looks.
    """

    def __init__(
        self, world: World, settings: JournalSettings, header: Header, cursor: UUID | None, slot: int | None
    ) -> None:
        self._world = world
        self._settings = settings
        self._header = header
        self._journal = header.journal
        self._uuid = cursor
        self._slot = slot
        self._bell: Bell | None = None
        self._stamp = 0
        self._problem: JournalError | None = None  # why the acknowledged mark could not be found
        self.failed_at: Position | None = None  # where the last `read` or `seek` could not go on
        self._place = self._place_at(header.head())
        # (sequence, bytes up to it) of what was read and not yet acknowledged, by runs
        self._read_marks: deque[tuple[int, int]] = deque()

    # --- opening and closing ---

    @classmethod
    def open(
        cls,
        world: World,
        settings: JournalSettings,
        journal_id: str,
        cursor_id: str | None,
        create: bool = False,
    ) -> "Cursor":
        """Open the cursor of that id at the last record it has acknowledged.

        `create` registers it, at the head, if it is new.
        `cursor_id` None: a cursor without slot, at the head; nothing is kept for it. Raises JournalError: the
        journal is not open, the cursor is unknown, or all slots are taken.
        """
        header = cls._open_header(world, settings, journal_id)
        try:
            if cursor_id is None:
                return cls(world, settings, header, None, None)
            cursor = identify(cursor_id)
            slot = header.find_slot(cursor)
            if slot is None:
                if not create:
                    raise JournalError(f"journal {journal_id} knows no cursor {cursor_id}")
                slot = cls._register(world, settings, header, cursor)
                return cls(world, settings, header, cursor, slot)
            opened = cls(world, settings, header, cursor, slot)
            opened._resume()
            return opened
        except OSError as error:
            header.close()
            raise JournalError(f"cannot open a cursor in {settings.memory_directory}: {error}") from error
        except BaseException:
            header.close()
            raise

    @staticmethod
    def _open_header(world: World, settings: JournalSettings, journal_id: str) -> Header:
        try:
            header = Header(world, settings.memory_directory)
        except (OSError, ValueError) as error:
            raise JournalError(f"journal {journal_id} is not open: {error}") from error
        if (
            header.valid
            and header.state == State.OPEN
            and header.journal == identify(journal_id)
            and header.boot_id == world.clock.boot_id()
        ):
            return header
        header.close()
        raise JournalError(f"journal {journal_id} is not open")

    @staticmethod
    def _register(world: World, settings: JournalSettings, header: Header, cursor: UUID) -> int:
        with header.lock():
            if header.state != State.OPEN:
                raise JournalError("the journal was stopped")
            head = header.head()
            slot = header.take_slot(cursor, head.sequence, head.bytes)
            try:
                # On disk too, so that a journal whose memory tier is lost knows that somebody has to be told.
                headers.save(world, settings.disk_directory, header.image(State.OPEN))
            except BaseException:
                header.give_slot(slot)
                raise
        header.fence()  # from here on the writer keeps everything; the head is read again after this
        return slot

    def close(self) -> None:
        """Stop reading. The slot stays, and with it all that was not acknowledged."""
        self._place.close()
        if self._bell is not None:
            self._bell.close()
        self._header.close()

    def remove(self) -> None:
        """Give up the slot and close: nothing is kept for this reader any more.

        JournalError: that could not be saved, or the journal was stopped meanwhile; the slot is kept then.
        """
        try:
            if self._slot is not None:
                with self._header.lock():
                    if self._header.state != State.OPEN:
                        raise JournalError("the journal was stopped")
                    self._header.give_slot(self._slot)
                    headers.save(self._world, self._settings.disk_directory, self._header.image(State.OPEN))
        except OSError as error:
            raise JournalError(f"cannot save that a cursor was removed: {error}") from error
        finally:
            self.close()
            if self._uuid is not None:
                self._world.doorbells.remove(bell_path(self._settings.memory_directory, self._uuid))
                self._world.doorbells.remove(urgent_path(self._settings.memory_directory, self._uuid))

    def teller(self) -> Teller:
        """Of a cursor with a slot: tells the writer how far the target is."""
        if self._slot is None or self._uuid is None:
            raise ValueError("a cursor without a slot tells nobody")
        return Teller(self._world, self._settings.memory_directory, self._header, self._slot, self._uuid)

    # --- position ---

    @property
    def boot(self) -> int:
        """What records of the current boot carry in `boot`."""
        return short_boot_id(self._world.clock.boot_id())

    @property
    def position(self) -> Position:
        """Position of the last record read."""
        return self._place.position

    def head(self) -> Position:
        """Position of the last record of the journal."""
        return self._header.head().position

    def reach(self) -> tuple[int, int]:
        """(sequence, bytes of all records ever) of the last record of the journal."""
        head = self._header.head()
        return head.sequence, head.bytes

    @property
    def losing(self) -> bool:
        """Whether the journal can take nothing at the moment: what was lost is not even recorded yet."""
        return self._header.pending_ops > 0

    @property
    def resumed(self) -> bool:
        """Whether the journal has what follows the last record that was acknowledged."""
        return self._problem is None

    @property
    def acknowledged(self) -> int:
        """Sequence up to which this cursor has acknowledged."""
        return self._header.durable_sequence(self._slot) if self._slot is not None else self.position.sequence

    def seek(self, position: Position) -> None:
        """Go on reading after `position`.

        JournalError: no such record is in the journal, or it is a different one. UnreadableJournal: whether
        it is there cannot be seen.
        """
        self.failed_at = position
        self._seek(position)

    def _seek(self, position: Position) -> None:
        head = self._header.head()
        if position == head.position:
            self._move(self._place_at(head))
            return
        if position.sequence >= head.sequence:
            raise JournalError(f"record {position.sequence} with that checksum is not in the journal")
        place = self._place_at(head)
        try:
            self._walk(place, head, position.sequence)
            if place.position != position:
                raise JournalError(f"record {position.sequence} of the journal is a different one")
        except BaseException:
            place.close()
            raise
        self._move(place)

    def seek_head(self) -> Position:
        """Go to the head: only records appended from now on are read."""
        head = self._header.head()
        self._move(self._place_at(head))
        return head.position

    def seek_kept(self) -> Position:
        """Go to the oldest place that is kept for this cursor: what it acknowledged last, or where it was
        registered. JournalError: the journal does not have it any more.
        """
        self.look_from(self.acknowledged)
        return self.position

    def look_from(self, sequence: int) -> None:
        """Go on after the record of this sequence, whichever it is: for looking, not for replicating.

        JournalError: it is not in the journal.
        """
        head = self._header.head()
        place = self._place_at(head)
        try:
            self._walk(place, head, sequence)
        except BaseException:
            place.close()
            raise
        self._move(place)

    def _resume(self) -> None:
        """Go to the acknowledged mark."""
        head = self._header.head()
        sequence = self.acknowledged
        if sequence >= head.sequence:
            return
        place = self._place_at(head)
        try:
            self._walk(place, head, sequence)
        except JournalError as error:
            # Not the caller's problem yet: he may seek elsewhere. But nothing is read as if nothing were
            # missing.
            place.close()
            self._problem = error
        except BaseException:
            place.close()
            raise
        else:
            self._move(place)

    def _walk(self, place: _Place, head: Head, sequence: int) -> None:
        try:
            place.find_segment(sequence, head.segment)
            while place.position.sequence < sequence:
                run = place.read(head, limits.READ_CHUNK_BYTES)
                if run is None:
                    break
                if run.last.sequence > sequence:
                    place.back(run)
                    place.forward(run, sequence)
        except OSError as error:
            raise UnreadableJournal(f"cannot read the journal: {error}") from error

    def _place_at(self, head: Head) -> _Place:
        return _Place(self._world, self._settings, self._journal, head)

    def _move(self, place: _Place) -> None:
        self._place.close()
        self._place = place
        self._problem = self.failed_at = None
        self._read_marks.clear()
        self._mark()

    def _mark(self) -> None:
        place = self._place
        self._read_marks.append((place.position.sequence, place.bytes))
        if self._slot is not None:
            self._header.set_read(self._slot, place.position.sequence)

    def row_start(self) -> tuple[Position, Record] | None:
        """Where the present row of the journal begins, and its first record; None: it is not kept."""
        head = self._header.head()
        place = self._place_at(head)
        try:
            self._walk(place, head, row_start(self._header.row))
            position = place.position
            run = place.read(head, 1)
        except (OSError, JournalError):
            return None
        finally:
            place.close()
        return None if run is None else (position, run.records[0][2])

    @property
    def covered(self) -> int:
        """See `Header.covered_sequence`. 0 for a cursor without slot."""
        return self._header.covered_sequence(self._slot) if self._slot is not None else 0

    # --- reading ---

    def read(self, max_bytes: int = limits.RUN_BYTES) -> Run | None:
        """The next records: as many whole ones as `max_bytes` hold, but at least one; None at the head.

        A run may be shorter than what there is. Raises JournalError if the journal is damaged here (the
        position does not move), or if what would follow is gone.
        """
        if self._problem is not None:
            raise self._problem
        self.failed_at = self._place.position
        try:
            run = self._covered_part(self._place.read(self._header.head(), max_bytes))
        except OSError as error:
            raise UnreadableJournal(f"cannot read the journal: {error}") from error
        self.failed_at = None
        if run is not None:
            self._mark()
        return run

    def _covered_part(self, run: Run | None) -> Run | None:
        """What a reader may have of it: no copy gets what the activity log does not tell of yet."""
        uncovered = self._header.uncovered  # looked at after the head
        if run is None or self._slot is None or not uncovered or run.last.sequence < uncovered:
            return run
        place = self._place
        place.back(run)
        count = uncovered - run.records[0][2].sequence
        if count <= 0:
            return None
        place.forward(run, uncovered - 1)
        offset, length, _ = run.records[count - 1]
        return Run(run.previous, place.position, run.data[: offset + length], run.records[:count])

    def peek(self) -> Record | None:
        """The next record, without moving; None at the head. Raises JournalError as `read` does."""
        if self._problem is not None:
            raise self._problem
        place = self._place
        try:
            run = place.read(self._header.head(), 1)
        except OSError as error:
            raise UnreadableJournal(f"cannot read the journal: {error}") from error
        if run is None:
            return None
        place.back(run)
        return run.records[0][2]

    @property
    def readable(self) -> bool:
        """Whether `read` would return something (or raise)."""
        if self._problem is not None:
            return True
        sequence = self._place.position.sequence
        if self._header.head().sequence == sequence:
            return False
        uncovered = self._header.uncovered
        return not uncovered or self._slot is None or sequence + 1 < uncovered

    async def wait(self) -> None:
        """Return when there is something to read. JournalError: the journal was stopped, nothing will follow.

        Only a cursor with a slot can wait, and only one task of it. Cancellation is harmless.
        """
        if self._slot is None or self._uuid is None:
            raise ValueError("a cursor without a slot cannot wait")
        await trio.lowlevel.checkpoint()
        header = self._header
        if self._bell is None:
            self._bell = self._world.doorbells.listen(bell_path(self._settings.memory_directory, self._uuid))
        try:
            while not self.readable:
                if header.state != State.OPEN:
                    raise JournalError("the journal was stopped")
                header.set_sleeping(self._slot, True)
                # Only now look again: the writer publishes first and looks for sleepers then.
                header.fence()
                if self.readable or header.state != State.OPEN:
                    continue
                with trio.move_on_after(limits.WAKE_CHECK_S):
                    await self._bell.wait()
        finally:
            header.set_sleeping(self._slot, False)

    def low_mark(self) -> int:
        """No record still to come will have a stamp below this (monotonic ns of this boot).

        Ask for it before `read`, not after: what is published until then may have any stamp.
        """
        # A writer is busy before it takes a stamp. The margin is for its store to become visible to this
        # processor.
        now = self._world.clock.monotonic_ns() - limits.STAMP_MARGIN_NS
        self._header.fence()
        busy = self._header.busy_stamp
        mark = min(now, busy) if busy else now
        if self._header.uncovered:  # what is not read yet is still to come
            mark = min(mark, self._header.uncovered_stamp)
        self._stamp = max(self._stamp, mark)
        return self._stamp

    # --- what is kept for this reader ---

    def backlog(self) -> tuple[int, int]:
        """(operations, bytes) in the journal that this cursor has not read yet."""
        head = self._header.head()
        return self._distance(head, self._place.position.sequence, self._place.bytes)

    def held(self) -> tuple[int, int]:
        """(operations, bytes) that this cursor has not acknowledged yet; bytes up to a run too many."""
        head = self._header.head()
        if self._slot is None:
            return 0, 0
        return self._distance(head, self.acknowledged, self._header.durable_bytes(self._slot))

    def room_bytes(self) -> int | None:
        """What the journal can still take, as its writer saw it last; None: not known."""
        full_at = self._header.full_at_bytes
        return max(full_at - self._header.head().bytes, 0) if full_at else None

    def kept_most_bytes(self) -> int:
        """What the journal keeps for the reader that holds it back most."""
        header = self._header
        oldest = min((header.durable_bytes(index) for index in header.readers()), default=None)
        return 0 if oldest is None else max(header.head().bytes - oldest, 0)

    @staticmethod
    def _distance(head: Head, sequence: int, total: int) -> tuple[int, int]:
        return max(0, head.sequence - sequence), max(0, head.bytes - total)

    def acknowledge(self, sequence: int) -> None:
        """Records up to `sequence` are durable elsewhere: the journal need not keep them for this cursor.

        Lower than before is ignored; higher than what was read is a JournalError.
        """
        if sequence > self._place.position.sequence:
            raise JournalError(f"record {sequence} was acknowledged before it was sent")
        if self._slot is None or sequence <= self.acknowledged:
            return
        total = self._header.durable_bytes(self._slot)
        while self._read_marks and self._read_marks[0][0] <= sequence:
            total = max(total, self._read_marks.popleft()[1])
        self._header.set_durable(self._slot, sequence, total)
