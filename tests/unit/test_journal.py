import errno
from pathlib import Path

import pytest
from kit.disk import Fault, MemoryDisk, memory_world
from kit.journals import JOURNAL, READER, READERS, Host, append, contents, read_all, small, write

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import START, Kind, Position
from replicator.queue.cursor import Cursor
from replicator.queue.header import Flight
from replicator.queue.journal import JournalSettings, JournalWriter, Recovery
from replicator.world import World

NOTHING = Recovery(records=0, bytes=0, torn_bytes=0, new_boot=False, flight=None, damaged=False)


def tiers(host: Host) -> str:
    """Tier of each segment, oldest first: m or d."""
    segments = [path for path in host.disk.paths() if path.endswith(".segment")]
    return "".join(path[1] for path in sorted(segments, key=lambda path: path.rpartition("/")[2]))


def fill(host: Host, writer: JournalWriter, segments: int) -> None:
    """Append until that many segments have been begun."""
    start = writer.statistics().segments
    while writer.statistics().segments < start + segments:
        assert append(writer, write(b"f", 110))


def test_a_fresh_journal() -> None:
    host = Host()
    writer = host.writer()
    assert writer.recovery == NOTHING
    assert writer.position == START
    assert not writer.has_readers
    assert writer.statistics().segments == 0
    assert writer.append(Kind.MKDIR, b"d") == 1
    assert writer.append(Kind.RENAME, b"d", path2=b"e", arg0=1, inode=7, generation=8, flags=2, arg1=9) == 2


def test_everything_of_a_record_arrives() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    before = host.clock.now_ns
    writer.append(Kind.RENAME, b"d", path2=b"e", payload=b"x", arg0=1, inode=7, generation=8, flags=2, arg1=9)
    (record,) = read_all(cursor)
    assert record[:3] == (Kind.RENAME, 2, 1)
    assert record[7:] == (7, 8, 1, 9, b"d", b"e", b"x")
    assert record.boot == cursor.boot
    assert before < record.monotonic_ns <= host.clock.now_ns
    assert Position(record.sequence, record.chain) == writer.position


def test_sizes_of_the_limits_are_taken() -> None:
    host = Host(JournalSettings("/memory/j", "/disk/j", disk_free_min_bytes=0))
    writer = host.writer()
    cursor = host.cursor(create=True)
    longest = b"n" * limits.PATH_BYTES
    payload = bytes(limits.RECORD_PAYLOAD_BYTES)
    assert writer.append(Kind.WRITE, longest, path2=longest, payload=payload)
    (record,) = read_all(cursor)
    assert (record.path, record.path2, record.payload) == (longest, longest, payload)
    with pytest.raises(ValueError, match="too long"):
        writer.append(Kind.WRITE, longest + b"n")
    assert writer.append(Kind.UNLINK, b"after") == 2


def test_segments_spill_to_disk_while_memory_is_full_and_return() -> None:
    host = Host()  # memory for 4 segments
    writer = host.writer()
    cursor = host.cursor(create=True)
    fill(host, writer, 7)
    assert tiers(host) == "mmmmddd"
    statistics = writer.statistics()
    assert statistics.memory_bytes <= 2048
    assert statistics.disk_bytes > 0
    # The reader has the first three durable: memory again.
    position = None
    while (run := cursor.read(1)) is not None:
        position = run.last.sequence
        if run.last.sequence == 7:
            break
    assert position is not None
    cursor.acknowledge(position)
    writer.collect()
    kept = tiers(host)
    assert kept == "mddd"
    fill(host, writer, 4)
    assert tiers(host) == "mdddmmmd"


def test_without_readers_nothing_is_kept() -> None:
    host = Host()
    writer = host.writer()
    for number in range(50):
        assert append(writer, write(b"f", 110, number))
    assert writer.statistics().segments <= 2
    writer.collect()
    assert tiers(host) == "m"


def test_the_slowest_reader_decides() -> None:
    host = Host()
    writer = host.writer()
    cursors = [host.cursor(READERS[n], create=True) for n in range(3)]
    fill(host, writer, 4)
    for cursor in cursors:
        read_all(cursor)
    for number, cursor in enumerate(cursors):
        writer.collect()
        assert writer.statistics().segments == 4
        if number < 2:
            cursor.acknowledge(writer.position.sequence)
    cursors[2].remove()
    writer.collect()
    assert writer.statistics().segments == 1
    assert sorted(writer.readers()) == sorted(READERS[:2])


@pytest.mark.parametrize("disk_bytes", [0, 512, 1024])
def test_the_disk_limit(disk_bytes: int) -> None:
    host = Host(small(disk_bytes=disk_bytes))
    writer = host.writer()
    cursor = host.cursor(create=True)
    while append(writer, write(b"f", 110)):
        pass
    taken = writer.position.sequence
    for _ in range(4):
        assert append(writer, write(b"f", 110)) == 0
    assert tiers(host) == "mmmm" + "d" * (disk_bytes // 512)
    statistics = writer.statistics()
    assert statistics.lost_ops == 5
    assert statistics.disk_bytes <= disk_bytes
    assert statistics.percent is not None
    assert 75 < statistics.percent <= 100
    assert len(read_all(cursor)) == taken
    cursor.acknowledge(taken)
    assert append(writer, write(b"g", 110)) == taken + 2
    hole, record = read_all(cursor)
    assert (hole.kind, hole.arg0, record.path) == (Kind.HOLE, 5, b"g")
    assert writer.statistics().lost_ops == 5


def test_free_space_is_left_for_others() -> None:
    host = Host(
        small(memory_bytes=0, disk_free_min_bytes=100_000),
        MemoryDisk(capacity=124_000),  # of which 20 KB are the saved header
    )
    writer = host.writer()
    host.cursor(create=True)
    while append(writer, write(b"f", 110)):
        pass
    assert host.disk.free_bytes("/disk") >= 100_000
    assert writer.statistics().segments > 1


def test_a_hole_that_is_pending_survives_the_process() -> None:
    host = Host(small(disk_bytes=0))
    writer = host.writer()
    cursor = host.cursor(create=True)
    while append(writer, write(b"f", 110)):
        pass
    assert not append(writer, write(b"f", 110))
    read_all(cursor)
    cursor.acknowledge(writer.position.sequence)
    host.kill()
    writer = host.writer()
    (hole,) = read_all(host.cursor())
    assert (hole.kind, hole.arg0) == (Kind.HOLE, 2)
    assert writer.statistics().lost_ops == 2


def test_a_hole_is_recorded_without_another_operation() -> None:
    host = Host(small(disk_bytes=0))
    writer = host.writer()
    cursor = host.cursor(create=True)
    assert writer.record_losses()  # nothing to tell
    while append(writer, write(b"f", 110)):
        pass
    assert not writer.record_losses()  # no room for it yet
    read_all(cursor)
    cursor.acknowledge(writer.position.sequence)
    assert writer.record_losses()
    (hole,) = read_all(cursor)
    assert (hole.kind, hole.arg0) == (Kind.HOLE, 1)
    assert writer.record_losses()
    assert read_all(cursor) == []


def test_flight_of_a_killed_process_is_found() -> None:
    host = Host()
    writer = host.writer()
    writer.flight(Kind.RENAME, b"a", b"b")
    host.kill()
    writer = host.writer()
    assert writer.recovery.flight == Flight(Kind.RENAME, b"a", b"b")
    host.kill()
    writer = host.writer()
    assert writer.recovery.flight == Flight(Kind.RENAME, b"a", b"b")  # nobody has dealt with it yet
    writer.clear_flight()
    host.kill()
    assert host.writer().recovery.flight is None


def test_only_one_process_writes() -> None:
    host = Host()
    writer = host.writer()
    with pytest.raises(JournalError, match="another process"):
        host.writer()
    assert append(writer, write(b"f", 1)) == 1
    writer.close(persist=False)
    assert host.writer().position.sequence == 1


def test_a_directory_of_another_journal_is_refused() -> None:
    host = Host()
    host.writer().close(persist=False)
    with pytest.raises(JournalError, match="holds the journal"):
        JournalWriter.open(host.world, host.settings, READER)
    host.writer().close(persist=True)
    with pytest.raises(JournalError, match="holds the journal"):
        JournalWriter.open(host.world, host.settings, READER)


def test_a_clean_stop_survives_the_reboot() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    operations = [write(b"f%d" % n, 110, n) for n in range(20)]
    for operation in operations:
        append(writer, operation)
    read_all(cursor)
    cursor.acknowledge(4)
    writer.close(persist=True)
    assert host.disk.paths("/memory") == []
    assert host.disk.pages == {}
    host.lose_power()
    writer = host.writer()
    assert not writer.recovery.new_boot
    assert writer.recovery.torn_bytes == 0
    assert contents(read_all(host.cursor())) == operations[4:]
    assert append(writer, write(b"on", 1)) == 21


def test_a_reboot_without_a_clean_stop_is_a_hole_for_old_readers() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    fill(host, writer, 7)
    read_all(cursor)
    old = cursor.position
    host.lose_power()
    writer = host.writer()
    assert writer.recovery.new_boot
    cursor = host.cursor()
    for position in (old, START):
        with pytest.raises(JournalError):
            cursor.seek(position)
    (hole,) = read_all(cursor)
    assert hole.kind == Kind.HOLE
    assert hole.sequence > old.sequence
    # And again: numbers are never handed out twice.
    append(writer, write(b"f", 1))
    host.lose_power()
    host.writer()
    (again,) = read_all(host.cursor())
    assert again.sequence > hole.sequence + 1


def test_a_reboot_without_readers_needs_no_hole() -> None:
    host = Host()
    writer = host.writer()
    append(writer, write(b"f", 1))
    host.lose_power()
    writer = host.writer()
    cursor = host.cursor(create=True)
    assert append(writer, write(b"f", 1))
    assert len(read_all(cursor)) == 1


def test_damage_sets_the_journal_aside() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    fill(host, writer, 2)
    read_all(cursor)
    old = cursor.position
    host.kill()
    path = host.disk.paths("/memory")[-1]
    data = bytearray(host.disk.contents(path))
    data[100] ^= 1
    host.disk.damage(path, bytes(data))
    writer = host.writer()
    assert writer.recovery.damaged
    assert not writer.recovery.new_boot
    assert host.disk.contents(path.replace("/0", "/damaged-0")) == data
    cursor = host.cursor()
    with pytest.raises(JournalError):
        cursor.seek(old)
    assert [record.kind for record in read_all(cursor)] == [Kind.HOLE]
    # What was set aside does not pile up, and does not count.
    assert writer.statistics().segments == 1
    host.kill()
    assert not host.writer().recovery.damaged


def test_a_clean_stop_that_cannot_be_saved_keeps_the_journal_open() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    append(writer, write(b"f", 1))
    host.disk.fault = lambda call, name, path: (
        Fault(error=errno.EIO) if name == "fsync" and "header" in path else None
    )
    with pytest.raises(JournalError, match="cannot save"):
        writer.close(persist=True)
    host.disk.heal()
    assert not any(path.endswith(".segment") for path in host.disk.paths("/disk"))
    append(writer, write(b"g", 1))
    assert len(read_all(cursor)) == 2
    writer.close(persist=True)
    host.reboot()
    host.writer()
    assert len(read_all(host.cursor())) == 2


def test_handles_are_closed() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    fill(host, writer, 9)
    read_all(cursor)
    cursor.seek(Position(*writer.position))
    for position in (3, 5):
        with pytest.raises(JournalError):
            cursor.seek(Position(position, 1))
    cursor.close()
    writer.close(persist=True)
    assert host.disk.open_handles == []


def test_on_a_real_disk(tmp_path: Path) -> None:
    world = World()
    settings = JournalSettings(
        str(tmp_path / "memory/j"), str(tmp_path / "disk/j"), 4096, 16384, None, disk_free_min_bytes=0
    )
    writer = JournalWriter.open(world, settings, JOURNAL)
    cursor = Cursor.open(world, settings, JOURNAL, READER, create=True)
    operations = [write(b"f%d" % n, n * 13 % 3000, n) for n in range(100)]
    for operation in operations:
        assert append(writer, operation)
    assert writer.statistics().disk_bytes > 0
    assert contents(read_all(cursor)) == operations
    cursor.close()
    writer.close(persist=True)
    assert list((tmp_path / "memory/j").iterdir()) == []
    world = World()
    writer = JournalWriter.open(world, settings, JOURNAL)
    cursor = Cursor.open(world, settings, JOURNAL, READER)
    assert contents(read_all(cursor)) == operations
    cursor.acknowledge(cursor.position.sequence)
    writer.collect()
    assert writer.statistics().segments == 1
    cursor.close()
    writer.close(persist=False)


def test_worlds_of_one_host_share_a_journal() -> None:
    """A reader in another process: nothing is shared but the disk and the page."""
    host = Host()
    writer = host.writer()
    other = memory_world(host.disk, host.clock)
    cursor = Cursor.open(other, host.settings, JOURNAL, READER, create=True)
    assert writer.has_readers
    append(writer, write(b"f", 1))
    assert len(read_all(cursor)) == 1


def test_what_cannot_be_written_is_told_until_it_can() -> None:
    host = Host(settings=small(memory_bytes=1024))
    writer = host.writer()
    host.cursor(create=True).close()
    host.disk.fault = lambda number, name, path: (
        Fault(error=errno.EIO) if name == "append" and path.startswith("/disk") else None
    )
    while writer.statistics().lost_ops == 0:
        append(writer, write(b"f", 100))
    assert writer.statistics().problem == "/disk/j: Input/output error"
    assert writer.losing
    host.disk.heal()
    assert append(writer, write(b"f", 100))
    assert (writer.statistics().problem, writer.losing) == ("", False)
