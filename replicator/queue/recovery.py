"""Opening a journal: which segments belong to it, where it ends, what is torn and what is damaged.

Recovery is the normal open path. Only the tail of a journal can be torn by the end of a process; anything
wrong before the published head is damage. FORMAT.md lists the cases.
"""

import contextlib
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from uuid import UUID

from replicator.errors import JournalError
from replicator.ops import START, Position
from replicator.queue import header as headers
from replicator.queue import record, segment
from replicator.queue.durable_file import read_whole
from replicator.queue.header import Flight, Head, Header, State, identify
from replicator.queue.segment import SegmentHeader
from replicator.queue.settings import JournalSettings
from replicator.world import Disk, World

COPY_BYTES = 1 << 20


ROW_SHIFT = 40
"""A row has 2^40 sequence numbers of its own."""


class Tier(Enum):
    MEMORY = "memory"
    DISK = "disk"


@dataclass(frozen=True)
class Recovery:
    """What opening a journal found."""

    records: int  # in the journal now, the readers' and those still kept for them
    bytes: int
    torn_bytes: int  # cut from the tail and kept beside the segment
    new_boot: bool  # the memory tier was lost: the host restarted without a clean stop
    flight: Flight | None  # the operation that a predecessor was performing when it ended
    damaged: bool  # the former journal was set aside; its files are named damaged-…


@dataclass
class Segment:
    """One segment of the row, as its owner knows it."""

    number: int
    tier: Tier
    path: str
    first_sequence: int
    bytes_before: int
    size: int  # bytes in use, its header included


@dataclass
class Row:
    """The segments of a journal, oldest first, and where the last of them ends."""

    segments: list[Segment]
    head: Head
    torn_bytes: int


class Damaged(JournalError):
    """The journal is not what its header says; it has to be set aside."""


def row_of(sequence: int) -> int:
    """Each row has sequence numbers of its own, so that none is ever handed out twice."""
    return (sequence - 1) >> ROW_SHIFT if sequence else 0


def row_start(row: int) -> int:
    """The sequence before the first of a row."""
    return row << ROW_SHIFT


def directory_of(settings: JournalSettings, tier: Tier) -> str:
    return settings.memory_directory if tier is Tier.MEMORY else settings.disk_directory


def recover(world: World, settings: JournalSettings, journal_id: str) -> tuple[Header, Row, Recovery]:
    """Open or create the journal's header and find its row. Raises JournalError, OSError.

    The header says which of three things happened: the last writer's process ended (header in memory), it
    stopped cleanly (header saved on disk as closed), or the memory tier was lost. The first two go on where
    the journal ended.
    """
    world.disk.makedirs(settings.memory_directory)
    if not world.disk.exists(settings.disk_directory):
        world.disk.makedirs(settings.disk_directory)
        world.disk.fsync_directory(settings.disk_directory.rpartition("/")[0] or "/")
    header = _open_header(world, settings)
    try:
        if not header.claim():
            raise JournalError(
                f"the journal in {settings.memory_directory} is being written by another process"
            )
        row, recovery = _recover(world, settings, identify(journal_id), header)
    except BaseException:
        header.close()
        raise
    return header, row, recovery


def _open_header(world: World, settings: JournalSettings) -> Header:
    try:
        return Header(world, settings.memory_directory)
    except (FileNotFoundError, ValueError):  # none, or half of one
        return Header(world, settings.memory_directory, create=True)


def _recover(world: World, settings: JournalSettings, journal: UUID, header: Header) -> tuple[Row, Recovery]:
    saved = headers.load(world, settings.disk_directory)
    for known in (header.journal if header.valid else None, saved.journal if saved else None):
        if known is not None and known != journal:
            raise JournalError(f"{settings.disk_directory} holds the journal {known}, not {journal}")
    remove_temporaries(world, settings.disk_directory)
    boot_id = world.clock.boot_id()
    slots, lost_ops = b"", 0
    damaged = False
    flight = None
    if header.valid and header.boot_id == boot_id:
        # Closed: a clean stop, or the opening after it, was interrupted. Both tiers may hold the same.
        first = Tier.MEMORY if header.state == State.OPEN else Tier.DISK
    elif saved is not None and saved.state == State.CLOSED:
        first = Tier.DISK
        header.restore(saved.data, boot_id)
        header.make_valid()
    else:
        highest, former = discard(world, settings)
        if saved is not None:
            former = max(former, saved.row)
            slots = headers.slots_of(saved.data)
        row = _begin_row(world, settings, journal, header, former + 1, highest, slots, lost_ops)
        lost = highest > 0 or header.has_readers  # else the first opening of all was interrupted
        return row, Recovery(0, 0, 0, lost, None, False)
    flight = header.flight
    try:
        row = find_row(world, settings, header.row, header.head(), first)
    except Damaged:
        damaged = True
        slots, lost_ops, former = header.slots, header.lost_ops, header.row
        highest = max(header.head().segment + 1, set_aside(world, settings))
        row = _begin_row(world, settings, journal, header, former + 1, highest, slots, lost_ops)
    else:
        if saved is None or saved.state != State.OPEN or saved.row != header.row:
            # Before anything is appended: a closed header on disk would hide it after a loss of power.
            with header.lock():
                headers.save(world, settings.disk_directory, header.image(State.OPEN))
        header.state = State.OPEN
    records = row.head.sequence - row.segments[0].first_sequence + 1 if row.segments else 0
    size = row.head.bytes - row.segments[0].bytes_before if row.segments else 0
    return row, Recovery(records, size, row.torn_bytes, False, flight, damaged)


def _begin_row(
    world: World,
    settings: JournalSettings,
    journal: UUID,
    header: Header,
    number: int,
    highest: int,
    slots: bytes,
    lost_ops: int,
) -> Row:
    """Begin anew with sequence numbers of its own: no position of before is mistaken for one of these.

    Readers of before are told by a HOLE.
    """
    chain = world.random.getrandbits(64) if number else START.chain
    head = Head(highest, 0, row_start(number), chain, 0)
    header.prepare(journal, world.clock.boot_id(), number, head, slots, lost_ops)
    if header.has_readers:
        header.pending_ops = 1  # at least: nobody can say how many
    headers.save(world, settings.disk_directory, header.image(State.OPEN))
    header.make_valid()
    return Row([], head, 0)


def find_row(world: World, settings: JournalSettings, row: int, head: Head, first: Tier) -> Row:
    """Find the row whose published head is `head`, and go on to what was written after that.

    A number present in both tiers belongs to `first`: the other is a copy that a clean stop began or has
    left. Cuts a torn tail. Raises Damaged, OSError.
    """
    finder = _Finder(world, settings, first)
    return finder.find(row, head)


class _Finder:
    def __init__(self, world: World, settings: JournalSettings, first: Tier) -> None:
        self._disk = world.disk
        self._tiers: dict[int, Tier] = {}
        self._settings = settings
        other = Tier.DISK if first is Tier.MEMORY else Tier.MEMORY
        for tier in (first, other):
            for number in segment.numbers_in(self._disk, directory_of(settings, tier)):
                if number in self._tiers:
                    self._disk.unlink(self._path(number, tier))
                else:
                    self._tiers[number] = tier

    def _path(self, number: int, tier: Tier) -> str:
        return segment.path_of(directory_of(self._settings, tier), number)

    def find(self, row: int, head: Head) -> Row:
        tail = self._tiers.pop(head.segment + 1, None)
        headers = self._headers(row, head)
        segments = self._segments(headers, head)
        torn_bytes = 0
        scanned = self._scan(segments[-1], headers[-1], head) if segments else head
        if tail is not None:
            path = self._path(head.segment + 1, tail)
            adopted = self._adopt(path, head, tail)
            if adopted is not None:
                # The former segment ended where the head was; behind that lies at most a write that failed.
                segments.append(adopted[0])
                scanned = adopted[1]
            else:
                torn_bytes += self._keep(path, 0)
                self._disk.unlink(path)
        if segments:
            last = segments[-1]
            last.size = scanned.offset
            size = self._disk.size(last.path)
            if size > scanned.offset:
                torn_bytes += self._keep(last.path, scanned.offset)
                self._disk.truncate(last.path, scanned.offset)
        return Row(segments, scanned, torn_bytes)

    def _headers(self, row: int, head: Head) -> list[SegmentHeader]:
        headers = []
        for number in sorted(self._tiers):
            path = self._path(number, self._tiers[number])
            try:
                header = _read_header(self._disk, path)
            except JournalError as error:
                raise Damaged(f"segment {number}: {error}") from error
            if row_of(header.first_sequence) != row:
                self._disk.unlink(path)  # of a former row: its removal was interrupted
                continue
            if header.number != number:
                raise Damaged(f"segment {number} calls itself {header.number}")
            headers.append(header)
        numbers = [header.number for header in headers]
        oldest = numbers[0] if numbers else head.segment
        expected = list(range(oldest, head.segment + 1)) if head.offset else []  # offset 0: no segment yet
        if numbers != expected:
            raise Damaged(
                f"segments are missing or too many: {numbers[:3]}…{numbers[-3:]}, head in {head.segment}"
            )
        return headers

    def _segments(self, headers: list[SegmentHeader], head: Head) -> list[Segment]:
        segments = []
        for header, following in zip_longest(headers, headers[1:]):
            tier = self._tiers[header.number]
            path = self._path(header.number, tier)
            if following is None:
                size = head.offset
            else:
                size = segment.HEADER_BYTES + following.bytes_before - header.bytes_before
                if size < segment.HEADER_BYTES or following.first_sequence < header.first_sequence:
                    raise Damaged(f"segment {following.number} does not continue the one before it")
            if self._disk.size(path) < size:
                raise Damaged(f"segment {header.number} is shorter than it was")
            segments.append(
                Segment(header.number, tier, path, header.first_sequence, header.bytes_before, size)
            )
        return segments

    def _scan(self, part: Segment, header: SegmentHeader, head: Head | None) -> Head:
        """Verify a segment from its start; return its end.

        With `head`, that place must hold what was published.
        """
        data = read_whole(self._disk, part.path)
        offset = segment.HEADER_BYTES
        position = header.previous
        met = head is None
        try:
            for start, length, found in record.iterate(memoryview(data)[offset:], position):
                if head is not None and segment.HEADER_BYTES + start == head.offset:
                    met = position == head.position
                position = Position(found.sequence, found.chain)
                offset = segment.HEADER_BYTES + start + length
        except (record.CorruptRecord, record.IncompleteRecord):
            pass  # the tail; or damage, if the head lies behind it: the caller decides
        if head is not None and offset == head.offset:
            met = position == head.position
        if not met:
            raise Damaged(
                f"segment {part.number} does not lead to the published head (good up to byte {offset})"
            )
        total = header.bytes_before + offset - segment.HEADER_BYTES
        return Head(part.number, offset, position.sequence, position.chain, total)

    def _adopt(self, path: str, head: Head, tier: Tier) -> tuple[Segment, Head] | None:
        """The segment after the head's, if its first record was written before the process ended."""
        try:
            header = _read_header(self._disk, path)
        except JournalError:
            return None
        if header.previous != head.position or header.bytes_before != head.bytes:
            return None
        part = Segment(header.number, tier, path, header.first_sequence, header.bytes_before, 0)
        end = self._scan(part, header, None)
        return (part, end) if end.sequence > head.sequence else None

    def _keep(self, path: str, offset: int) -> int:
        """Keep what is about to be cut, for whoever wants to know what happened. Returns its bytes."""
        data = read_whole(self._disk, path)[offset:]
        if data:
            directory = path.rpartition("/")[0]
            for name in self._disk.listdir(directory):
                if name.endswith(segment.DAMAGED_SUFFIX):  # one is enough: they must not pile up
                    self._disk.unlink(f"{directory}/{name}")
            handle = self._disk.open_append(f"{path}{segment.DAMAGED_SUFFIX}")
            try:
                self._disk.append(handle, [data], 0)
            finally:
                self._disk.close(handle)
        return len(data)


def discard(world: World, settings: JournalSettings) -> tuple[int, int]:
    """Remove all segments of both tiers; return the highest number and row seen (0 and -1: none).

    What is left after a loss of the memory tier lies behind a gap: every reader has to compare the whole set
    anyway.
    """
    highest, row = 0, -1
    for tier in Tier:
        directory = directory_of(settings, tier)
        for number in segment.numbers_in(world.disk, directory):
            path = segment.path_of(directory, number)
            with contextlib.suppress(JournalError):
                row = max(row, row_of(_read_header(world.disk, path).first_sequence))
            world.disk.unlink(path)
            highest = max(highest, number)
    return highest, row


def set_aside(world: World, settings: JournalSettings) -> int:
    """Rename all segments of both tiers for a later look, in place of those set aside before.

    Returns the highest number. Raises OSError.
    """
    highest = 0
    for tier in Tier:
        directory = directory_of(settings, tier)
        numbers = segment.numbers_in(world.disk, directory)
        if numbers:
            for name in world.disk.listdir(directory):
                if name.startswith(segment.DAMAGED_PREFIX):
                    world.disk.unlink(f"{directory}/{name}")
        for number in numbers:
            path = segment.path_of(directory, number)
            name = path.rpartition("/")[2]
            world.disk.replace(path, f"{directory}/{segment.DAMAGED_PREFIX}{name}")
            highest = max(highest, number)
    return highest


def remove_temporaries(world: World, directory: str) -> None:
    """Remove what an interrupted clean stop left half-copied."""
    for name in world.disk.listdir(directory):
        if name.endswith(segment.TEMPORARY_SUFFIX):
            world.disk.unlink(f"{directory}/{name}")


def _read_header(disk: Disk, path: str) -> SegmentHeader:
    handle = disk.open_read(path)
    try:
        return segment.read_header(disk, handle)
    finally:
        disk.close(handle)
