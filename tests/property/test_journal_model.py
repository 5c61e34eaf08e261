"""A journal against a model: every reader reads back what was appended, in order, each record once."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from kit.journals import READERS, Host, append, contents, small, write

from replicator.errors import JournalError
from replicator.ops import Kind, Position, Record
from replicator.queue.cursor import Cursor
from replicator.queue.dirty import DirtyMap
from replicator.queue.dirty_entry import CHILDREN_BYTES, NODE_BYTES, REGIONS_BYTES
from replicator.queue.segment import decode_header


class Reader:
    """What the model knows of one cursor."""

    def __init__(self, cursor: Cursor, sequence: int) -> None:
        self.cursor: Cursor | None = cursor
        self.read = sequence
        self.acknowledged = sequence


class JournalMachine(RuleBasedStateMachine):
    readers = Bundle("readers")

    @initialize(
        segment_bytes=st.sampled_from([300, 512, 2000, 8000]),
        memory_segments=st.integers(1, 4),
        disk_segments=st.sampled_from([None, None, 0, 1, 5]),
    )
    def begin(self, segment_bytes: int, memory_segments: int, disk_segments: int | None) -> None:
        disk_bytes = None if disk_segments is None else disk_segments * segment_bytes
        self.host = Host(small(segment_bytes, memory_segments * segment_bytes, disk_bytes))
        self.writer = self.host.writer()
        self.model: dict[int, tuple[int, bytes, bytes]] = {}
        self.positions: dict[int, Position] = {0: Position(0, 0)}
        self.names = list(READERS)
        self.known: dict[str, Reader] = {}
        self.lost = 0  # not told by a HOLE yet
        self.lost_paths: set[bytes] = set()
        self.nobody_missed_one = False  # a loss while nobody read: nobody can say what it was
        self.holes: dict[int, set[bytes] | None] = {}  # None: everything may be dirty
        self.lost_ever = 0
        self.count = 0

    @rule(sizes=st.lists(st.sampled_from([0, 1, 7, 60, 61, 150, 400, 2500]), min_size=1, max_size=8))
    def append(self, sizes: list[int]) -> None:
        for size in sizes:
            self.count += 1
            operation = write(b"p%d" % self.count, size, self.count)
            last = self.writer.position.sequence
            sequence = append(self.writer, operation)
            if self.lost and (sequence > last + 1 or self.writer.position.sequence == last + 1):
                self.told(last + 1)
                last += 1
            if sequence:
                assert sequence == last + 1
                self.model[sequence] = operation
            else:
                self.lost += 1
                self.lost_ever += 1
                self.lost_paths.add(operation[1])
                self.nobody_missed_one |= not self.known
            assert self.writer.position.sequence == max(self.model, default=0)
            self.positions[self.writer.position.sequence] = self.writer.position

    def told(self, sequence: int) -> None:
        self.model[sequence] = (Kind.HOLE, b"", self.lost.to_bytes(8, "little"))
        # What a map costs in memory is less than half of a segment: so much for each file, and the root.
        room = self.host.settings.segment_bytes // 2 - NODE_BYTES - CHILDREN_BYTES
        fits = len(self.lost_paths) * (NODE_BYTES + REGIONS_BYTES + 50) <= room
        self.holes[sequence] = self.lost_paths if fits and not self.nobody_missed_one else None
        self.lost = 0
        self.lost_paths = set()
        self.nobody_missed_one = False

    def check_hole(self, record: Record) -> None:
        """It names just what was lost, or at least all of that."""
        assert self.model[record.sequence] == (Kind.HOLE, b"", record.arg0.to_bytes(8, "little"))
        expected = self.holes[record.sequence]
        if expected is not None:
            dirty = DirtyMap.decode(record.payload)
            assert {entry.path for entry in dirty} == expected
        elif len(record.payload):
            assert not DirtyMap.decode(record.payload).is_empty

    @rule(target=readers)
    def register(self) -> object:
        if not self.names:
            return multiple()
        name = self.names.pop(0)
        cursor = self.host.cursor(name, create=True)
        assert cursor.position == self.writer.position
        self.known[name] = Reader(cursor, cursor.position.sequence)
        return name

    def cursor_of(self, name: str) -> Cursor | None:
        reader = self.known.get(name)
        if reader is None:
            return None
        if reader.cursor is None:
            reader.cursor = self.host.cursor(name)
            assert reader.cursor.acknowledged == reader.acknowledged
            reader.read = reader.acknowledged
            assert reader.cursor.position.sequence == reader.read
        return reader.cursor

    @rule(name=readers, max_bytes=st.sampled_from([1, 100, 1000, 100_000]))
    def read(self, name: str, max_bytes: int) -> None:
        cursor = self.cursor_of(name)
        if cursor is None:
            return
        reader = self.known[name]
        peeked = cursor.peek()
        run = cursor.read(max_bytes)
        if run is None:
            assert peeked is None
            assert reader.read == max(self.model, default=0)
            assert cursor.backlog() == (0, 0)
            return
        assert peeked is not None
        assert peeked[:12] == run.records[0][2][:12]
        assert run.previous.sequence == reader.read
        for _, _, record in run.records:
            reader.read += 1
            self.check(record, reader.read)
        assert run.last == cursor.position
        assert run.last.sequence == reader.read
        assert cursor.backlog()[0] == max(self.model) - reader.read

    def check(self, record: Record, sequence: int) -> None:
        assert record.sequence == sequence
        if record.kind == Kind.HOLE:
            self.check_hole(record)
        else:
            assert contents([record]) == [self.model[sequence]]

    @rule(name=readers, part=st.floats(0, 1))
    def acknowledge(self, name: str, part: float) -> None:
        cursor = self.cursor_of(name)
        if cursor is None:
            return
        reader = self.known[name]
        sequence = reader.acknowledged + int(part * (reader.read - reader.acknowledged))
        cursor.acknowledge(sequence)
        reader.acknowledged = max(reader.acknowledged, sequence)
        assert cursor.acknowledged == reader.acknowledged
        assert cursor.held()[0] == max(self.model, default=0) - reader.acknowledged

    @rule(name=readers, data=st.data())
    def seek(self, name: str, data: st.DataObject) -> None:
        cursor = self.cursor_of(name)
        if cursor is None:
            return
        reader = self.known[name]
        choices = [n for n in self.positions if n >= reader.acknowledged]
        position = self.positions[data.draw(st.sampled_from(choices))]
        cursor.seek(position)
        reader.read = position.sequence
        assert cursor.position == position

    @rule(name=readers, sequence=st.integers(0, 400), chain=st.integers(1, 9))
    def seek_wrong(self, name: str, sequence: int, chain: int) -> None:
        cursor = self.cursor_of(name)
        if cursor is None:
            return
        before = cursor.position
        try:
            cursor.seek(Position(sequence, chain))
        except JournalError:
            assert cursor.position == before
        else:
            raise AssertionError("a position that never was")

    @rule(name=readers)
    def remove(self, name: str) -> None:
        cursor = self.cursor_of(name)
        if cursor is not None:
            cursor.remove()
            del self.known[name]

    @rule()
    def collect(self) -> None:
        self.writer.collect()
        needed = min(
            (reader.acknowledged for reader in self.known.values()), default=max(self.model, default=0)
        )
        kept = self.writer.statistics().segments
        # Of the segments kept, only the first may begin at or before what is needed.
        firsts = [first for first in self.first_sequences() if first - 1 <= needed]
        assert len(firsts) <= 1
        assert kept == len(self.first_sequences())

    def first_sequences(self) -> list[int]:
        return sorted(
            decode_header(self.host.disk.contents(path)).first_sequence
            for path in self.host.disk.paths()
            if path.endswith(".segment")
        )

    @rule()
    def close_and_open(self) -> None:
        self.writer.close(persist=False)
        self.reopen()

    @rule()
    def stop_and_open(self) -> None:
        self.drop_cursors()
        self.writer.close(persist=True)
        assert not self.host.disk.paths("/memory")
        self.host.reboot()
        self.reopen()

    @rule()
    def kill_and_open(self) -> None:
        for reader in self.known.values():
            reader.cursor = None
        self.host.kill()
        self.reopen()

    def drop_cursors(self) -> None:
        for reader in self.known.values():
            if reader.cursor is not None:
                reader.cursor.close()
                reader.cursor = None

    def reopen(self) -> None:
        last = max(self.model, default=0)
        self.writer = self.host.writer()
        recovery = self.writer.recovery
        assert not recovery.damaged
        assert not recovery.new_boot
        assert recovery.torn_bytes == 0
        if self.lost and self.writer.position.sequence > last:
            self.told(last + 1)
            self.positions[last + 1] = self.writer.position
        assert self.writer.position == self.positions[max(self.model, default=0)]
        assert sorted(self.writer.readers()) == sorted(self.known)

    @precondition(lambda self: hasattr(self, "writer"))
    @invariant()
    def limits_hold(self) -> None:
        statistics = self.writer.statistics()
        assert statistics.lost_ops == self.lost_ever
        settings = self.host.settings
        if statistics.segments:
            stored = {"memory": 0, "disk": 0}
            for path in self.host.disk.paths():
                if path.endswith(".segment"):
                    stored[path.split("/")[1]] += len(self.host.disk.contents(path))
            assert statistics.memory_bytes <= settings.memory_bytes
            assert statistics.memory_bytes == stored["memory"]
            assert statistics.disk_bytes == stored["disk"]
        assert self.writer.has_readers == bool(self.known)

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        for name in list(self.known):
            while self.known[name].read < max(self.model, default=0):
                self.read(name, 1000)


JournalMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestJournal = JournalMachine.TestCase
