"""The activity log: what the source and its copies may have differently after a loss of power.

Durable before a change can reach a copy: readers do not get records beyond `Header.uncovered`. And before an
application hears that something is durable: whoever answers an fsync syncs the log first. So nobody waits for
it who did not ask for a sync; an operation on what is hot already costs one look.

It is a row of files `activity-…` in the disk tier. Each begins with a HOLE: the sequence after which all is
covered, and a dirty map of what was known when the file was begun. Notes follow, see `hot`. A file that is
not written any more is *closed*; it is removed when all readers have what it tells of durably, and the
source's own storage was synced after that: then it is cold. FORMAT.md has the rest.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record
from replicator.queue import record as records
from replicator.queue.dirty import DirtyMap
from replicator.queue.durable_file import read_whole
from replicator.queue.header import Header
from replicator.queue.hot import HotSet
from replicator.queue.segment import TEMPORARY_SUFFIX
from replicator.world import Disk, World

logger = logging.getLogger(__name__)

PREFIX = "activity-"


class Activity(NamedTuple):
    """What a log tells: what operations after `since` may have made different, for either side."""

    since: int
    dirty: DirtyMap

    @classmethod
    def nothing(cls, since: int) -> "Activity":
        return cls(since, DirtyMap(either=True))


class Prepared(NamedTuple):
    """A file that is ready to be written, and durable."""

    number: int
    handle: int
    end: int
    chain: int
    is_empty: bool  # nothing is known by it


# --- files ---


def _path_of(directory: str, number: int) -> str:
    return f"{directory}/{PREFIX}{number:08d}"


def numbers_in(disk: Disk, directory: str) -> list[int]:
    names = [name.removeprefix(PREFIX) for name in disk.listdir(directory) if name.startswith(PREFIX)]
    return sorted(int(name) for name in names if name.isdigit())


def read(world: World, directory: str, numbers: list[int], limit_bytes: int) -> Activity | None:
    """What these files tell together. None: there are none, or one is damaged. Raises OSError."""
    dirty = DirtyMap(limit_bytes, either=True)
    since: int | None = None
    for number in numbers:
        path = _path_of(directory, number)
        data = read_whole(world.disk, path)
        end = 0
        try:
            for offset, length, note in records.iterate(data, Position(0, number)):
                if end:
                    dirty.fold(note)
                elif note.kind != Kind.HOLE or not note.payload:
                    return None
                else:
                    since = note.arg1 if since is None else since
                    dirty.merge(DirtyMap.decode(note.payload, limit_bytes))
                end = offset + length
        except (records.CorruptRecord, records.IncompleteRecord):
            # What was never written is zero. Only the last file may end with what a loss of power has torn.
            if not end or (number != numbers[-1] and any(data[end:])):
                return None
    return None if since is None else Activity(since, dirty)


def _create(world: World, directory: str, number: int, known: Activity) -> Prepared:
    """A new file, durable with its name. Raises OSError."""
    disk, path = world.disk, _path_of(directory, number)
    start = Record(Kind.HOLE, 0, 1, 0, 0, 0, 0, 0, 0, 0, known.since, b"", b"", known.dirty.encode())
    buffers, length, chain = _encode(start, number)
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path + TEMPORARY_SUFFIX)
    handle = disk.open_append(path + TEMPORARY_SUFFIX)
    try:
        disk.append(handle, [*buffers, bytes(limits.ACTIVITY_CHUNK_BYTES)], 0)
        disk.fsync(handle)
        disk.replace(path + TEMPORARY_SUFFIX, path)
        disk.fsync_directory(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.close(handle)
        raise
    return Prepared(number, handle, length, chain, known.dirty.is_empty)


def _encode(note: Record, previous_chain: int) -> tuple[list[bytes | memoryview], int, int]:
    return records.encode(
        note.kind,
        note.sequence,
        previous_chain,
        0,
        0,
        0,
        note.path,
        note.path2,
        note.payload,
        note.flags,
        note.inode,
        note.generation,
        note.arg0,
        note.arg1,
    )


class ActivityLog:
    """Of one writer. Only `prepare` and `merge` wait long for a disk; they may run in another thread than the
    rest, one at a time.

    Errors of the disk cost the log, not the journal: then it is taken away, and begun anew later.
    """

    def __init__(
        self,
        world: World,
        directory: str,
        header: Header,
        limit_bytes: int,
        *,
        save_header: Callable[[], None],
        wake_readers: Callable[[], None],
    ) -> None:
        """`limit_bytes`: of a map. `wake_readers`: there is more to read for them."""
        self._world = world
        self._disk = world.disk
        self._directory = directory
        self._header = header
        self._limit_bytes = limit_bytes
        self._save_header = save_header
        self._wake_readers = wake_readers
        self._hot = HotSet()
        self._current: Prepared | None = None  # None: nothing is covered
        self._next: Prepared | None = None  # to go on in as soon as all in the current one is being synced
        self._number = 0  # the highest ever used
        self._end = self._room = 0  # of the current file: of its notes, and of what was written ahead
        self._chain = self._notes = 0
        self._closed: list[int] = []
        self._closed_at = 0  # the journal's head when the last of them was closed
        self._syncing: Prepared | None = None
        self._after: tuple[int, int] | None = None  # what was noted first since a sync began; its stamp
        self.is_dirty = False
        """Something is noted that no sync has been begun for."""
        self.on_dirty: Callable[[], None] = _tell_nobody
        """Told when that becomes so, by whoever noted it."""

    # --- opening ---

    def begin(self, found: Activity | None) -> None:
        """For a new row of the journal. `found`: what readers are told. None: they compare everything."""
        try:
            former = numbers_in(self._disk, self._directory)
            self._number = max(former, default=0)
            prepared = self.prepare(found)
        except OSError as error:
            self._fail(error)
            return
        self._use(prepared)
        self._remove(former)
        self._header.uncovered = 0

    def take_up(self) -> None:
        """For a journal that goes on: what is there stays until it is cold."""
        header = self._header
        try:
            former = numbers_in(self._disk, self._directory)
            self._number = max(former, default=0)
            if former and header.uncovered:  # a killed predecessor has noted it, and not synced
                _sync(self._disk, _path_of(self._directory, former[-1]))
            prepared = self.prepare(Activity.nothing(header.head().sequence) if former else None)
        except OSError as error:
            self._fail(error)
            return
        self._closed, self._closed_at = former, header.head().sequence
        self._use(prepared)
        header.uncovered = 0

    # --- noting ---

    def covers(self, kind: int, path: bytes, flags: int, offset: int, length: int) -> bool:
        return self._hot.covers(kind, path, flags, offset, length)

    def touch(self, operation: Record) -> None:
        """This operation is about to be journaled. Its sequence and stamp may be lower than they will be."""
        if self._current is None:
            return
        notes = self._hot.notes(operation)
        if not notes:
            return
        try:
            for note in notes:
                self._write(self._current.handle, note)
        except OSError as error:
            self._fail(error)
            return
        if self._syncing is not None and self._after is None:
            self._after = operation.sequence, operation.monotonic_ns
        header = self._header
        if not header.uncovered:
            header.uncovered_stamp = operation.monotonic_ns
            header.uncovered = operation.sequence  # only now: who sees this sees the stamp
        if not self.is_dirty:
            self.is_dirty = True
            self.on_dirty()

    def _write(self, handle: int, note: Record) -> None:
        buffers, length, chain = _encode(note._replace(sequence=self._notes + 2), self._chain)
        if self._end + length > self._room:
            self._room = self._end + length + limits.ACTIVITY_CHUNK_BYTES
            buffers.append(bytes(limits.ACTIVITY_CHUNK_BYTES))
        self._disk.append(handle, buffers, self._end)
        self._end += length
        self._chain = chain
        self._notes += 1

    # --- syncing ---

    @property
    def is_covering(self) -> bool:
        """Whether all that was journaled is noted durably, or nothing can be."""
        return not self._header.uncovered

    def begin_sync(self) -> int | None:
        """A descriptor to sync, for `end_sync`. None: there is nothing to sync, or a sync is under way."""
        if self._syncing is not None or not self.is_dirty or self._current is None:
            return None
        self._syncing = self._current
        self._after = None
        self.is_dirty = False
        if self._next is not None:
            prepared, self._next = self._next, None
            self._rotate(prepared)
        return self._syncing.handle

    def end_sync(self, error: OSError | None = None) -> None:
        """The sync begun last has ended."""
        synced, self._syncing = self._syncing, None
        after, self._after = self._after, None
        if synced is not None and synced is not self._current:
            self._close(synced)
        if error is not None:
            self._fail(error)
        elif after is None:
            self._header.uncovered = 0
        else:
            self._header.uncovered = after[0]
            self._header.uncovered_stamp = after[
                1
            ]  # only now: meanwhile too low a stamp is seen, which is safe
        self._wake_readers()

    def sync(self) -> None:
        """All that is noted, at once; nothing if another sync is under way. Blocks."""
        handle = self.begin_sync()
        if handle is None:
            return
        problem = None
        try:
            self._disk.fsync(handle)
        except OSError as error:
            problem = error
        self.end_sync(problem)

    # --- becoming cold ---

    @property
    def is_broken(self) -> bool:
        """Whether a file is needed to begin anew."""
        return self._current is None

    @property
    def is_full(self) -> bool:
        return self._end > limits.ACTIVITY_FILE_BYTES and self._next is None

    @property
    def is_hot(self) -> bool:
        """Whether the current file tells of something."""
        return self._current is not None and not (self._notes == 0 and self._current.is_empty)

    @property
    def closed(self) -> list[int]:
        return list(self._closed)

    @property
    def closed_are_durable(self) -> bool:
        """Whether every reader has all that the closed files tell of."""
        header = self._header
        return all(header.durable_sequence(index) >= self._closed_at for index in header.readers())

    def prepare(self, found: Activity | None) -> Prepared:
        """A file to go on with. None: what was before is not covered. Raises OSError."""
        if found is None:
            self._header.forget_coverage()
            self._save_header()
            found = Activity.nothing(self._header.head().sequence)
        self._number += 1
        return _create(self._world, self._directory, self._number, found)

    def prepare_next(self) -> Prepared:
        """The same for `rotate`."""
        return self.prepare(None if self.is_broken else Activity.nothing(self._header.head().sequence))

    def rotate(self, prepared: Prepared) -> None:
        """Go on in this file."""
        if self._current is None:
            self._use(prepared)
        elif self.is_dirty:
            self._next = prepared
        else:
            self._rotate(prepared)

    def _rotate(self, prepared: Prepared) -> None:
        assert self._current is not None
        if self._current is not self._syncing:
            self._close(self._current)
        self._closed.append(self._current.number)
        self._closed_at = self._header.head().sequence
        self._use(prepared)

    def _use(self, prepared: Prepared) -> None:
        self._current = prepared
        self._end = prepared.end
        self._room = prepared.end + limits.ACTIVITY_CHUNK_BYTES
        self._chain = prepared.chain
        self._notes = 0
        self._hot.clear()

    def merge(self, closed: list[int]) -> bool:
        """Make one file of these: a map of all they tell. Blocks. False: they stay."""
        try:
            found = read(self._world, self._directory, closed, self._limit_bytes)
            if found is None:
                return False
            # In place of the last one: at every moment all is told at least once.
            self._close(_create(self._world, self._directory, closed[-1], found))
        except (OSError, JournalError):
            return False
        return True

    def forget(self, closed: list[int]) -> None:
        """These are cold, or others tell the same."""
        self._closed = [number for number in self._closed if number not in closed]
        self._remove(closed)

    # --- ending ---

    def close(self, *, cold: bool) -> None:
        """`cold`: the source's storage is synced, and the journal saved: the next one begins with nothing."""
        for file in {self._current, self._next, self._syncing}:
            if file is not None:
                self._close(file)
        self._current = self._next = self._syncing = None
        if cold:
            with contextlib.suppress(OSError):
                self._remove(numbers_in(self._disk, self._directory))

    def _fail(self, error: OSError) -> None:
        """What is noted cannot be relied upon: from now on nothing is covered."""
        logger.warning("after a loss of power everything would be compared: activity log: %s", error)
        self.close(cold=True)
        with contextlib.suppress(OSError):
            self._disk.fsync_directory(self._directory)
        self._closed = []
        self._hot.clear()
        self.is_dirty = False
        self._after = None
        self._header.uncovered = 0

    def _close(self, file: Prepared) -> None:
        with contextlib.suppress(OSError):
            self._disk.close(file.handle)

    def _remove(self, numbers: list[int]) -> None:
        """The oldest first: what is left after a loss of power tells of all that follows it."""
        for number in numbers:
            with contextlib.suppress(OSError):
                self._disk.unlink(_path_of(self._directory, number))


def _tell_nobody() -> None:
    """For a log that somebody looks at anyway."""


def _sync(disk: Disk, path: str) -> None:
    handle = disk.open_append(path)
    try:
        disk.fsync(handle)
    finally:
        disk.close(handle)
