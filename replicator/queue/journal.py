"""The writing side of a journal: append, spill, collect, open, stop.

One process and one thread write a journal. `append` is called between an operation and its reply, so it is
short: one write into tmpfs, a few stores into the shared header, and a bell only for readers that sleep.
"""

import contextlib
from collections import deque

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record
from replicator.queue import activity as activities
from replicator.queue import header as headers
from replicator.queue import recovery as recoveries
from replicator.queue import segment as segments
from replicator.queue.activity import Activity, ActivityLog
from replicator.queue.answers import Answers
from replicator.queue.doorbell import answers_path, bell_path, ring_all, ring_sleepers, urgent_path
from replicator.queue.header import Flight, Header, State, short_boot_id
from replicator.queue.losses import Losses
from replicator.queue.record import HEADER_BYTES, encode
from replicator.queue.recovery import Recovery, Row, Segment, Tier, directory_of
from replicator.queue.segment import SegmentHeader
from replicator.queue.settings import JournalSettings
from replicator.queue.statistics import JournalStatistics
from replicator.world import World

__all__ = ["Flight", "JournalSettings", "JournalStatistics", "JournalWriter", "Recovery"]


class JournalWriter:
    """The only writer of one journal. Open it with `JournalWriter.open`."""

    def __init__(
        self,
        world: World,
        settings: JournalSettings,
        header: Header,
        row: Row,
        recovery: Recovery,
        keeps_activity: bool,
    ) -> None:
        self._world = world
        self._disk = world.disk
        self._clock = world.clock
        self._settings = settings
        self._segment_bytes = settings.segment_bytes
        self._header = header
        self._journal = header.journal
        self._boot = short_boot_id(world.clock.boot_id())
        self._segments = deque(row.segments)
        self._number = row.head.segment
        self._offset = row.head.offset
        self._sequence = row.head.sequence
        self._chain = row.head.chain
        self._total = row.head.bytes
        self._stamp = 1  # a lower bound of the next record's
        self._problems: dict[Tier, str] = {}
        self._leftover: str | None = None  # a segment file whose creation failed half-way
        self._handle = -1
        self._copies: dict[int, str] = {}  # segments that a failed clean stop has left on disk, too
        if row.segments:
            self._handle = self._disk.open_append(row.segments[-1].path)
        header.publish(row.head)
        self._pending_ops = header.pending_ops
        self._losses = Losses(world, settings, header.row)
        self._losses.restore(header.lost_ops, header.pending_ops)
        self.recovery = recovery
        self._covered_since = 0  # told by the next HOLE: the first sequence whose loss it tells of
        self.activity = self._open_activity() if keeps_activity else None
        if self._pending_ops:
            header.busy_stamp = self._stamp
            self._append_hole()  # if it does not fit, the next append tries again
        header.busy_stamp = 0
        self._tell_room()
        ring_all(world, settings.memory_directory, header)

    # --- opening ---

    @classmethod
    def open(
        cls, world: World, settings: JournalSettings, journal_id: str, *, keeps_activity: bool = False
    ) -> "JournalWriter":
        """Open the journal, whatever its last writer left; create it if there is none.

        `keeps_activity`: it is of a source, whose storage may lose what readers have (`activity.py`). Raises
        JournalError: another process writes it, it is another journal, or its files cannot be read.
        """
        try:
            header, row, recovery = recoveries.recover(world, settings, journal_id)
            try:
                return cls(world, settings, header, row, recovery, keeps_activity)
            except BaseException:
                header.close()
                raise
        except OSError as error:
            where = f"{settings.memory_directory} and {settings.disk_directory}"
            raise JournalError(f"cannot open the journal in {where}: {error}") from error

    def _open_activity(self) -> ActivityLog:
        settings, header = self._settings, self._header
        limit_bytes = min(limits.LOSSES_BYTES, settings.segment_bytes // 2)  # as of losses
        log = ActivityLog(
            self._world,
            settings.disk_directory,
            header,
            limit_bytes,
            save_header=self.save_header,
            wake_readers=self._wake_readers,
        )
        if not self.recovery.new_boot and not self.recovery.damaged:
            log.take_up()
            return log
        found = self._find_activity(limit_bytes)
        if found is not None and self._pending_ops:
            self._losses.adopt(found.dirty)
            self._covered_since = found.since + 1
        log.begin(found)
        return log

    def _find_activity(self, limit_bytes: int) -> Activity | None:
        directory = self._settings.disk_directory
        try:
            numbers = activities.numbers_in(self._disk, directory)
            return activities.read(self._world, directory, numbers, limit_bytes)
        except (OSError, JournalError):
            return None

    def save_header(self) -> None:
        """Make the slots of the readers durable. Blocks. Raises OSError."""
        with self._header.lock():
            headers.save(self._world, self._settings.disk_directory, self._header.image(State.OPEN))

    def _wake_readers(self) -> None:
        self._header.fence()
        if self._header.has_sleepers:
            ring_sleepers(self._world, self._settings.memory_directory, self._header)

    @property
    def wanted_sequence(self) -> int:
        """What a target must have to have all that was done: also what a HOLE still to come will tell of."""
        return self._sequence + bool(self._pending_ops)

    def answers(self) -> Answers:
        """How far the readers' targets are."""
        return Answers(self._world, self._settings.memory_directory, self._header)

    # --- appending ---

    def append(
        self,
        kind: int,
        path: bytes,
        *,
        path2: bytes = b"",
        payload: bytes | memoryview = b"",
        flags: int = 0,
        inode: int = 0,
        generation: int = 0,
        arg0: int = 0,
        arg1: int = 0,
    ) -> int:
        """Append one record, stamped now; return its sequence, or 0 if the journal could not take it.

        A loss is counted and remembered, and the next record that fits is preceded by a HOLE that says what
        was lost. Never raises OSError; ValueError if a path or the payload is longer than any operation can
        have.
        """
        header = self._header
        # Readers that merge journals may conclude nothing from the time until this is cleared (see
        # Cursor.low_mark).
        header.busy_stamp = self._stamp
        try:
            activity = self.activity
            if activity is not None and not activity.covers(kind, path, flags, arg0, len(payload)):
                activity.touch(
                    Record(
                        kind,
                        flags,
                        self._sequence + 1,
                        0,
                        0,
                        self._stamp,
                        0,
                        inode,
                        generation,
                        arg0,
                        arg1,
                        path,
                        path2,
                        payload,
                    )
                )
            if self._pending_ops and not (self._losses.may_be_told and self._append_hole()):
                self._lose(kind, flags, inode, generation, arg0, arg1, path, path2, payload)
                return 0
            self._stamp = monotonic_ns = self._clock.monotonic_ns()
            sequence = self._sequence + 1
            buffers, length, chain = encode(
                kind,
                sequence,
                self._chain,
                self._boot,
                monotonic_ns,
                self._clock.wall_ns(),
                path,
                path2,
                payload,
                flags,
                inode,
                generation,
                arg0,
                arg1,
            )
            if not self._write(buffers, length, sequence, chain):
                self._lose(kind, flags, inode, generation, arg0, arg1, path, path2, payload)
                sequence = 0  # a HOLE may have fitted nevertheless: readers are rung all the same
        finally:
            header.busy_stamp = 0
        header.fence()
        if header.has_sleepers:
            ring_sleepers(self._world, self._settings.memory_directory, header)
        return sequence

    def record_losses(self) -> bool:
        """Journal the HOLE of losses that still wait for room. Returns whether none waits any more.

        For quiet times: without another operation nobody would hear of what was lost last.
        """
        if not self._pending_ops:
            return True
        self._header.busy_stamp = self._stamp
        try:
            recorded = self._append_hole()
        finally:
            self._header.busy_stamp = 0
        if recorded:
            self._header.fence()
            if self._header.has_sleepers:
                ring_sleepers(self._world, self._settings.memory_directory, self._header)
        return recorded

    def _append_hole(self) -> bool:
        if not self._has_place(HEADER_BYTES):
            return False  # before the losses are encoded
        self._stamp = monotonic_ns = self._clock.monotonic_ns()
        sequence = self._sequence + 1
        buffers, length, chain = encode(
            Kind.HOLE,
            sequence,
            self._chain,
            self._boot,
            monotonic_ns,
            self._clock.wall_ns(),
            b"",
            payload=self._losses.payload(),
            arg0=self._pending_ops,
            arg1=self._covered_since,
        )
        if not self._write(buffers, length, sequence, chain):
            return False
        self._pending_ops = self._covered_since = 0
        self._header.pending_ops = 0
        self._losses.clear()
        return True

    def _lose(
        self,
        kind: int,
        flags: int,
        inode: int,
        generation: int,
        arg0: int,
        arg1: int,
        path: bytes,
        path2: bytes,
        payload: bytes | memoryview,
    ) -> None:
        """Remember what was lost and count it, in this order: a successor believes the count."""
        header = self._header
        number = header.lost_ops + 1
        if header.has_readers:
            self._losses.add(
                Record(kind, flags, number, 0, 0, 0, 0, inode, generation, arg0, arg1, path, path2, payload)
            )
        else:
            self._losses.forget()  # nobody misses it; who comes now and hears of it knows nothing anyway
        self._pending_ops += 1
        header.pending_ops = self._pending_ops
        header.lost_ops = number

    def _write(self, buffers: list[bytes | memoryview], length: int, sequence: int, chain: int) -> bool:
        """Write a record behind the last one and publish it.

        False: there is no room, or no disk that takes it.
        """
        offset = self._offset
        if self._handle >= 0 and offset + length <= self._segment_bytes:
            try:
                self._disk.append(self._handle, buffers, offset)
            except OSError as error:
                # What reached the file lies behind the head and means nothing; try a new segment.
                self._failed(self._segments[-1].tier, error)
            else:
                self._offset = offset = offset + length
                self._sequence = sequence
                self._chain = chain
                self._total += length
                self._header.publish_head(self._number, offset, sequence, chain, self._total)
                return True
        return self._create_segment(buffers, length, sequence, chain)

    def _create_segment(
        self, buffers: list[bytes | memoryview], length: int, sequence: int, chain: int
    ) -> bool:
        """Begin a new segment with this record, in memory if there is room, else on disk."""
        if self._segments:
            self._segments[-1].size = self._offset
        self.collect()
        number = self._number + 1
        head = SegmentHeader(number, self._boot, self._journal, sequence, self._chain, self._total).encode()
        size = segments.HEADER_BYTES + length
        for tier in Tier:
            path = segments.path_of(directory_of(self._settings, tier), number)
            if not self._has_room(tier, max(size, self._segment_bytes)) or not self._remove_leftover(path):
                continue
            handle = None
            try:
                handle = self._disk.open_append(path)
                self._leftover = path
                self._disk.append(handle, [head, *buffers], 0)
            except OSError as error:
                self._failed(tier, error)
                if handle is not None:
                    self._close(handle)
                self._remove_leftover("")
                continue
            self._leftover = None
            self._problems.pop(tier, None)
            if self._handle >= 0:
                self._close(self._handle)
            self._handle = handle
            self._segments.append(Segment(number, tier, path, sequence, self._total, size))
            self._number = number
            self._offset = size
            self._sequence = sequence
            self._chain = chain
            self._total += length
            self._header.publish_head(number, size, sequence, chain, self._total)
            self._tell_room()
            return True
        return False

    def _failed(self, tier: Tier, error: OSError) -> None:
        self._problems[tier] = f"{directory_of(self._settings, tier)}: {error.strerror or error}"

    def _tell_room(self) -> None:
        """Readers that hold this journal back can see when it will be full, and give way before."""
        room = 0
        if self._segments:
            self._segments[-1].size = self._offset
            room = max(self._segment_bytes - self._offset, 0)
        for tier in Tier:
            free = self._free(tier)
            if self._segments and self._segments[-1].tier is tier:
                free -= self._segment_bytes - self._offset
            room += max(free, 0) // self._segment_bytes * (self._segment_bytes - segments.HEADER_BYTES)
        self._header.full_at_bytes = self._total + room

    def _free(self, tier: Tier) -> int:
        """Bytes that segments of this tier may still take."""
        used, limit = self._used(tier), self._settings.disk_bytes
        if tier is Tier.MEMORY:
            return self._settings.memory_bytes - used
        if limit == 0:
            return 0
        try:
            free = self._disk.free_bytes(self._settings.disk_directory) - self._settings.disk_free_min_bytes
        except OSError:
            return 0
        return free if limit is None else min(free, limit - used)

    def _has_place(self, length: int) -> bool:
        """Whether a record of this length could be written now, as far as the limits go."""
        if self._handle >= 0 and self._offset + length <= self._segment_bytes:
            return True
        if self._segments:
            self._segments[-1].size = self._offset
        self.collect()
        size = max(segments.HEADER_BYTES + length, self._segment_bytes)
        return any(self._has_room(tier, size) for tier in Tier)

    def _remove_leftover(self, keep: str) -> bool:
        """Remove what a failed creation left, unless it is overwritten now: no number may be there twice."""
        if self._leftover is None or self._leftover == keep:
            return True
        if not self._unlink(self._leftover):
            return False
        self._leftover = None
        return True

    def _close(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # nothing depends on it: durability is fsync's business
            self._disk.close(handle)

    def _has_room(self, tier: Tier, needed: int) -> bool:
        used = self._used(tier) + needed
        if tier is Tier.MEMORY:
            return used <= self._settings.memory_bytes
        limit = self._settings.disk_bytes
        if limit is not None and used > limit:
            return False
        try:
            free = self._disk.free_bytes(self._settings.disk_directory)
        except OSError:
            return False
        return free - needed >= self._settings.disk_free_min_bytes

    def _used(self, tier: Tier) -> int:
        return sum(part.size for part in self._segments if part.tier is tier)

    # --- what is known ---

    @property
    def has_readers(self) -> bool:
        """Whether anything need be journaled. Cheap.

        Ask after the operation, not before: a reader that registers in between sees its effect in the tree.
        """
        return self._header.has_readers

    @property
    def losing(self) -> bool:
        """Whether it can take nothing at the moment: what was lost is not even recorded yet."""
        return self._pending_ops > 0

    @property
    def position(self) -> Position:
        """Position of the last record."""
        return Position(self._sequence, self._chain)

    def readers(self) -> list[str]:
        """Ids of the cursors registered here."""
        return [str(self._header.slot_uuid(index)) for index in self._header.readers()]

    def statistics(self) -> JournalStatistics:
        if self._segments:
            self._segments[-1].size = self._offset
        memory = self._used(Tier.MEMORY)
        disk = self._used(Tier.DISK)
        limit = self._settings.disk_bytes
        return JournalStatistics(
            memory_bytes=memory,
            disk_bytes=disk,
            head_sequence=self._sequence,
            lost_ops=self._header.lost_ops,
            segments=len(self._segments),
            percent=None
            if limit is None
            else 100.0 * (memory + disk) / max(1, limit + self._settings.memory_bytes),
            settings=self._settings,
            problem="; ".join(self._problems.values()),
        )

    # --- activity ---

    def uncovered_readers(self) -> list[int]:
        """Slots of readers that may have content which the source's storage has not, and no log tells of."""
        header = self._header
        return [index for index in header.readers() if not header.covered_sequence(index)]

    def readers_are_covered(self, slots: list[int]) -> None:
        """The source's storage was synced after these were `uncovered_readers`. Then `save_header`."""
        for index in slots:
            self._header.set_covered(index, max(self._sequence, 1))

    def forget_coverage(self) -> None:
        """What was not journaled before belongs to a set now. Then `save_header`."""
        self._header.forget_coverage()

    # --- flight slot ---

    def flight(self, kind: int, path: bytes, path2: bytes = b"") -> None:
        """Name the operation about to be performed.

        If this process ends before `clear_flight`, its successor finds it in `recovery.flight`.
        """
        self._header.set_flight(kind, path, path2)

    def clear_flight(self) -> None:
        self._header.clear_flight()

    # --- collecting ---

    def collect(self) -> None:
        """Remove segments that nobody needs: every cursor has acknowledged all of their records.

        Never raises OSError.
        """
        if len(self._segments) < 2:
            return
        header = self._header
        header.fence()  # a cursor that registers now starts at a head that this look already knows
        needed_after = min(
            (header.durable_sequence(index) for index in header.readers()), default=self._sequence
        )
        before = len(self._segments)
        while len(self._segments) > 1 and self._segments[1].first_sequence - 1 <= needed_after:
            oldest = self._segments[0]
            # The copy first: alone, it would look like a part of the row after the next start.
            if not (self._remove_copy(oldest.number) and self._unlink(oldest.path)):
                break  # tried again with the next segment
            self._segments.popleft()
        if len(self._segments) != before:
            self._tell_room()

    def _remove_copy(self, number: int) -> bool:
        path = self._copies.get(number)
        if path is not None:
            if not self._unlink(path):
                return False
            del self._copies[number]
        return True

    def _unlink(self, path: str) -> bool:
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    # --- stopping ---

    def close(self, persist: bool) -> None:
        """Stop writing. `persist` False: the journal stays as it is, for the next process of this boot.

        `persist` True (a clean stop): everything moves to the disk tier and is durable there; readers that
        wait get a JournalError. If it keeps activity, the source's storage is synced before. Raises
        JournalError if that fails: nothing is lost then, the journal is still open, and what is in memory is
        lost with the next boot.
        """
        if persist:
            try:
                self._persist()
            except (OSError, JournalError) as error:
                self._undo_persist()
                where = self._settings.disk_directory
                raise JournalError(f"cannot save the journal to {where}: {error}") from error
        if self._handle >= 0:
            self._close(self._handle)
            self._handle = -1
        self._losses.close()
        if self.activity is not None:
            self.activity.close(cold=persist)
        self._header.close()

    def _persist(self) -> None:
        self.collect()
        disk, header, settings = self._disk, self._header, self._settings
        if self._segments:
            self._segments[-1].size = self._offset
        in_memory = [part for part in self._segments if part.tier is Tier.MEMORY]
        for part in self._segments:
            if part.tier is Tier.MEMORY:
                self._copy_to_disk(part)
            else:
                handle = disk.open_append(part.path)
                try:
                    disk.fsync(handle)
                finally:
                    disk.close(handle)
        self._losses.save(header.lost_ops, self._pending_ops)
        disk.fsync_directory(settings.disk_directory)
        with header.lock():
            headers.save(self._world, settings.disk_directory, header.image(State.CLOSED))
            header.state = State.CLOSED
        # From here on the disk tier is the journal; what follows only tidies up, and opening does it again.
        ring_all(self._world, settings.memory_directory, header)
        with contextlib.suppress(OSError):
            for index in header.readers():
                reader = header.slot_uuid(index)
                self._world.doorbells.remove(bell_path(settings.memory_directory, reader))
                self._world.doorbells.remove(urgent_path(settings.memory_directory, reader))
            self._world.doorbells.remove(answers_path(settings.memory_directory))
            for part in in_memory:
                disk.unlink(part.path)
            self._losses.remove()
            header.remove()

    def _undo_persist(self) -> None:
        """The journal goes on in memory: what is on disk must not be taken for it after a loss of power."""
        for number in list(self._copies):
            self._remove_copy(number)
        with contextlib.suppress(OSError), self._header.lock():
            headers.save(self._world, self._settings.disk_directory, self._header.image(State.OPEN))

    def _copy_to_disk(self, part: Segment) -> None:
        disk = self._disk
        path = segments.path_of(self._settings.disk_directory, part.number)
        temporary = path + segments.TEMPORARY_SUFFIX
        source = disk.open_read(part.path)
        try:
            target = disk.open_append(temporary)
            try:
                offset = 0
                while offset < part.size:
                    data = disk.read(source, min(recoveries.COPY_BYTES, part.size - offset), offset)
                    if not data:
                        raise JournalError(f"segment {part.number} is shorter than it was")
                    disk.append(target, [data], offset)
                    offset += len(data)
                disk.fsync(target)
            finally:
                disk.close(target)
        finally:
            disk.close(source)
        self._copies[part.number] = path
        disk.replace(temporary, path)
