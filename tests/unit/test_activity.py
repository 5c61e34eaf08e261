"""The activity log of a journal: what it covers, when; what is left of it after a loss of power."""

import errno

import pytest
from kit.disk import Fault, MemoryDisk
from kit.journals import JOURNAL, READER, Host, read_all, small

from replicator import limits
from replicator.ops import Flag, Kind, Record
from replicator.queue.activity import ActivityLog
from replicator.queue.cursor import Cursor
from replicator.queue.dirty import DirtyMap, Scope
from replicator.queue.journal import JournalWriter


class Sources(Host):
    """A host whose journal keeps activity."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__(small(64 * 1024, 1 << 20), disk)

    def writer(self) -> JournalWriter:
        return JournalWriter.open(self.world, self.settings, JOURNAL, keeps_activity=True)

    def files(self) -> list[str]:
        return self.disk.paths("/disk/j/activity-")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACTIVITY_CHUNK_BYTES", 512)


def log_of(writer: JournalWriter) -> ActivityLog:
    assert writer.activity is not None
    return writer.activity


def write(writer: JournalWriter, path: bytes, offset: int = 0, inode: int = 5) -> int:
    return writer.append(Kind.WRITE, path, payload=b"x" * 10, arg0=offset, inode=inode)


def told(cursor: Cursor) -> tuple[int, DirtyMap | None]:
    """What the HOLE at the start of the row says: since when, and the map; None: everything."""
    start = cursor.row_start()
    assert start is not None
    hole = start[1]
    assert hole.kind == Kind.HOLE
    return hole.arg1, DirtyMap.decode(hole.payload) if len(hole.payload) else None


def paths(found: DirtyMap | None) -> set[bytes]:
    assert found is not None
    return {entry.path for entry in found}


def become_cold(writer: JournalWriter) -> None:
    """As the keeper does, once all readers have acknowledged everything."""
    log = log_of(writer)
    log.sync()
    log.rotate(log.prepare_next())
    assert log.closed_are_durable
    log.forget(log.closed)


# --- readers ---


def test_readers_get_nothing_that_is_not_noted_durably() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    write(writer, b"f")
    assert not log_of(writer).is_covering
    assert cursor.read() is None
    assert not cursor.readable
    assert host.cursor(None).head() == writer.position  # who only looks sees all
    log_of(writer).sync()
    assert cursor.readable
    assert [record.path for record in read_all(cursor)] == [b"f"]


def test_what_is_hot_is_read_at_once_up_to_the_next_that_is_not() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    write(writer, b"f")
    log_of(writer).sync()
    write(writer, b"f", 4096)
    write(writer, b"f", 8192)
    write(writer, b"g")
    write(writer, b"f", 100)
    run = cursor.read()
    assert run is not None
    assert [record.path for _, _, record in run.records] == [b"f"] * 3
    assert cursor.read() is None
    log_of(writer).sync()
    assert [record.path for record in read_all(cursor)] == [b"g", b"f"]


def test_a_sync_covers_what_was_noted_before_it_began() -> None:
    host = Sources()
    writer = host.writer()
    log = log_of(writer)
    cursor = host.cursor(create=True)
    write(writer, b"f")
    handle = log.begin_sync()
    assert handle is not None
    write(writer, b"g")
    assert log.begin_sync() is None  # one at a time
    log.end_sync()
    assert [record.path for record in read_all_that_may(cursor)] == [b"f"]
    log.sync()
    assert [record.path for record in read_all_that_may(cursor)] == [b"g"]


def read_all_that_may(cursor: Cursor) -> list[Record]:
    found: list[Record] = []
    while (run := cursor.read()) is not None:
        found += [record for _, _, record in run.records]
    return found


def test_merging_readers_do_not_pass_what_is_held_back() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    before = host.clock.monotonic_ns()
    write(writer, b"f")
    host.clock.now_ns += 10**9
    assert cursor.low_mark() <= before + 10_000
    log_of(writer).sync()
    assert cursor.low_mark() > before + 10**8


def test_a_sleeping_reader_is_woken_when_more_is_covered() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    header = cursor._header
    write(writer, b"f")
    header.set_sleeping(0, True)
    log_of(writer).sync()
    assert not header.sleeping(0)


# --- a loss of power ---


def test_a_loss_of_power_leaves_what_was_noted() -> None:
    host = Sources()
    writer = host.writer()
    host.cursor(create=True)
    write(writer, b"d/f", 5 * limits.ACTIVITY_REGION_BYTES)
    writer.append(Kind.RENAME, b"d/a", path2=b"e/b", inode=9)
    writer.append(Kind.SETATTR, b"d", flags=Flag.DIRECTORY, inode=2)
    log_of(writer).sync()
    host.lose_power()
    host.writer()
    since, found = told(host.cursor())
    assert since == 1
    assert found is not None
    entries = {entry.path: entry for entry in found}
    region = limits.ACTIVITY_REGION_BYTES
    assert entries[b"d/f"].regions == ((5 * region, 6 * region),)
    assert entries[b"d/a"].scope & Scope.WHOLE
    assert entries[b"e/b"].scope & Scope.WHOLE
    assert entries[b"d"].scope & Scope.NAMES
    assert entries[b"e"].scope & Scope.NAMES


def test_where_nothing_was_hot_nothing_differs() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    write(writer, b"f")
    log_of(writer).sync()
    read_all(cursor)
    cursor.acknowledge(writer.position.sequence)
    become_cold(writer)
    host.disk.sync()
    host.lose_power()
    host.writer()
    since, found = told(host.cursor())
    assert since == 2
    assert found is not None
    assert found.is_empty


def test_what_one_reader_lacks_stays_hot() -> None:
    host = Sources()
    writer = host.writer()
    log = log_of(writer)
    cursor = host.cursor(create=True)
    write(writer, b"f")
    log.sync()
    log.rotate(log.prepare_next())
    assert not log.closed_are_durable
    write(writer, b"g")
    log.sync()
    host.lose_power()
    host.writer()
    _, found = told(host.cursor())
    assert paths(found) == {b"f", b"g"}
    del cursor


def test_a_second_loss_of_power_forgets_nothing() -> None:
    host = Sources()
    writer = host.writer()
    host.cursor(create=True)
    write(writer, b"f")
    log_of(writer).sync()
    host.lose_power()
    writer = host.writer()
    write(writer, b"g")
    log_of(writer).sync()
    host.lose_power()
    host.writer()
    since, found = told(host.cursor())
    assert since == 1
    assert paths(found) == {b"f", b"g"}


def test_without_a_log_everything_differs() -> None:
    host = Sources()
    writer = JournalWriter.open(host.world, host.settings, JOURNAL)  # as versions before did
    host.cursor(create=True)
    write(writer, b"f")
    host.lose_power()
    host.writer()
    assert told(host.cursor()) == (0, None)


def test_damage_of_the_log_is_everything() -> None:
    host = Sources()
    writer = host.writer()
    host.cursor(create=True)
    log_of(writer).sync()
    host.disk.sync()
    (path,) = host.files()
    data = bytearray(host.disk.contents(path))
    data[90] ^= 1
    host.disk.damage(path, bytes(data))
    host.lose_power()
    host.writer()
    assert told(host.cursor()) == (0, None)


def test_damage_of_the_journal_is_what_is_hot() -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    for number in range(3):
        write(writer, b"f%d" % number)
    log_of(writer).sync()
    cursor.close()
    host.kill()
    (segment,) = host.disk.paths("/memory/j/0")
    host.disk.damage(segment, b"nothing")
    assert host.writer().recovery.damaged
    since, found = told(host.cursor())
    assert since == 1
    assert paths(found) == {b"f0", b"f1", b"f2"}


@pytest.mark.parametrize("seed", range(20))
def test_any_loss_of_power_leaves_all_that_readers_got(seed: int) -> None:
    host = Sources()
    host.disk.random.seed(seed)
    chance = host.disk.random
    writer = host.writer()
    cursor = host.cursor(create=True)
    got: set[bytes] = set()
    for number in range(chance.randrange(60)):
        write(writer, b"f%d" % chance.randrange(30 + number))
        if chance.random() < 0.3:
            log_of(writer).sync()
        if chance.random() < 0.1:
            log_of(writer).rotate(log_of(writer).prepare_next())
        if chance.random() < 0.1 and len(log_of(writer).closed) > 1:
            closed = log_of(writer).closed
            assert log_of(writer).merge(closed)
            log_of(writer).forget(closed[:-1])
        got |= {record.path for record in read_all_that_may(cursor)}
    host.lose_power()
    host.writer()
    _, found = told(host.cursor())
    assert got <= paths(found)


# --- a writer that is killed ---


def test_a_successor_covers_what_was_noted_and_not_synced() -> None:
    host = Sources()
    writer = host.writer()
    host.cursor(create=True)
    write(writer, b"f")
    host.kill()
    writer = host.writer()
    assert log_of(writer).is_covering
    assert log_of(writer).closed
    host.lose_power()
    host.writer()
    assert paths(told(host.cursor())[1]) == {b"f"}


def test_a_clean_stop_leaves_nothing_hot() -> None:
    host = Sources()
    writer = host.writer()
    host.cursor(create=True)
    write(writer, b"f")
    log_of(writer).sync()
    writer.close(persist=True)
    assert host.files() == []
    host.reboot()
    writer = host.writer()
    assert [record.path for record in read_all_that_may(host.cursor())] == [b"f"]
    assert not log_of(writer).is_hot


# --- a disk that fails ---


@pytest.mark.parametrize("what", ["append", "fsync"])
def test_a_failing_disk_costs_the_log_and_not_the_journal(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Sources()
    writer = host.writer()
    cursor = host.cursor(create=True)
    writer.readers_are_covered(writer.uncovered_readers())

    def fail(number: int, name: str, path: str) -> Fault | None:
        return Fault(error=errno.EIO) if name == what and "activity" in path else None

    host.disk.fault = fail
    assert write(writer, b"f")
    log_of(writer).sync()
    assert "everything would be compared" in caplog.text
    caplog.clear()
    assert [record.path for record in read_all(cursor)] == [b"f"]
    assert log_of(writer).is_broken
    assert host.files() == []
    host.disk.heal()
    log_of(writer).rotate(log_of(writer).prepare_next())
    assert not cursor.covered  # until the storage is synced once more
    write(writer, b"g")
    assert not log_of(writer).is_covering
    log_of(writer).sync()
    host.lose_power()
    host.writer()
    assert paths(told(host.cursor())[1]) == {b"g"}
    assert host.cursor(READER).covered == 0


def test_many_notes_become_one_map() -> None:
    host = Sources()
    writer = host.writer()
    log = log_of(writer)
    host.cursor(create=True)
    for generation in range(3):
        for number in range(20):
            write(writer, b"%d/%d" % (generation, number))
        log.sync()
        log.rotate(log.prepare_next())
    closed = log.closed
    assert len(closed) == 3
    assert log.merge(closed)
    log.forget(closed[:-1])
    assert len(host.files()) == 2
    host.lose_power()
    host.writer()
    assert len(paths(told(host.cursor())[1])) == 60
