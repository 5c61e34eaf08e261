import struct
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from kit.disk import MemoryDisk, memory_world

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind
from replicator.queue import header as headers
from replicator.queue.header import Flight, Head, Header, State
from replicator.world import MappedFile, World

JOURNAL = uuid4()


def fresh(world: World | None = None, directory: str = "/memory") -> Header:
    header = Header(world or memory_world(MemoryDisk()), directory, create=True)
    assert not header.valid
    header.prepare(JOURNAL, "boot-1", 0, Head(0, 0, 0, 0, 0), b"", 0)
    header.make_valid()
    return header


def test_a_missing_header_is_not_created_by_a_reader() -> None:
    with pytest.raises(FileNotFoundError):
        Header(memory_world(MemoryDisk()), "/memory")


def test_what_is_written_is_read_through_another_mapping(tmp_path: Path) -> None:
    header = fresh(World(), str(tmp_path))
    other = Header(World(), str(tmp_path))
    assert other.valid
    assert (other.journal, other.boot_id, other.row, other.state) == (JOURNAL, "boot-1", 0, State.OPEN)
    header.publish(Head(3, 4096, 17, 2**64 - 1, 123_456))
    assert other.head() == Head(3, 4096, 17, 2**64 - 1, 123_456)
    header.lost_ops = 5
    header.busy_stamp = 77
    assert (other.lost_ops, other.busy_stamp) == (5, 77)
    other.close()
    header.close()


def test_a_file_of_another_size_is_no_header(tmp_path: Path) -> None:
    (tmp_path / headers.FILE_NAME).write_bytes(b"short")
    with pytest.raises(ValueError):
        Header(World(), str(tmp_path))
    fresh(World(), str(tmp_path)).close()


def test_a_header_has_one_claimant(tmp_path: Path) -> None:
    first = fresh(World(), str(tmp_path))
    assert first.claim()
    assert first.claim()
    second = Header(World(), str(tmp_path))
    assert not second.claim()
    with second.lock():
        pass  # the lock of the slots is another one
    first.close()
    assert second.claim()
    second.close()


def test_a_writer_killed_while_publishing_leaves_the_old_head() -> None:
    header = fresh()
    header.publish(Head(1, 100, 1, 11, 36))
    header.publish(Head(1, 200, 2, 22, 136))
    old = header.head()
    memory = header._memory.buffer
    # The store into the other copy, which comes before the version, has begun and not ended.
    version = struct.unpack_from("<Q", memory, 120)[0]
    struct.pack_into("<Q", memory, 128 if (version + 1) % 2 == 0 else 192, 0xDEAD)
    assert header.head() == old
    header.publish(Head(1, 300, 3, 33, 236))
    assert header.head() == Head(1, 300, 3, 33, 236)


def test_a_head_is_never_seen_half_changed(tmp_path: Path) -> None:
    """One process publishes heads whose members agree, as fast as it can; this one looks."""
    header = fresh(World(), str(tmp_path))
    header.publish(Head(1, 1, 1, 1, 1))
    program = (
        "import itertools, sys\n"
        "from replicator.queue.header import Head, Header\n"
        "from replicator.world import World\n"
        "header = Header(World(), sys.argv[1])\n"
        "print(flush=True)\n"
        "for n in itertools.count(1): header.publish_head(n, n, n, n, n)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = last = 0
        try:
            while seen < 5000:
                head = header.head()
                assert len(set(head)) == 1
                assert head.sequence >= last
                seen += head.sequence != last
                last = head.sequence
        finally:
            process.kill()
    header.close()


def test_flight() -> None:
    header = fresh()
    assert header.flight is None
    header.set_flight(Kind.RENAME, b"a/b", b"c")
    assert header.flight == Flight(Kind.RENAME, b"a/b", b"c")
    header.set_flight(Kind.UNLINK, b"d", b"")
    assert header.flight == Flight(Kind.UNLINK, b"d", b"")
    header.clear_flight()
    assert header.flight is None
    longest = b"\xff" * limits.PATH_BYTES
    header.set_flight(Kind.LINK, longest, longest)
    assert header.flight == Flight(Kind.LINK, longest, longest)


def test_a_cleared_flight_stays_cleared_while_the_next_is_written() -> None:
    header = fresh()
    header.set_flight(Kind.UNLINK, b"first", b"")
    header._words[headers._FLIGHT // 8] = 0  # as set_flight begins
    header._bytes[headers._FLIGHT_PATHS : headers._FLIGHT_PATHS + 3] = b"sec"
    assert header.flight is None


def test_slots_are_taken_found_and_given_back() -> None:
    header = fresh()
    assert not header.has_readers
    uuids = [uuid4() for _ in range(limits.CURSOR_SLOTS)]
    slots = [header.take_slot(uuid, n, n * 10) for n, uuid in enumerate(uuids)]
    assert slots == list(range(limits.CURSOR_SLOTS))
    with pytest.raises(JournalError, match="64 readers"):
        header.take_slot(uuid4(), 0, 0)
    for number, uuid in enumerate(uuids):
        assert header.find_slot(uuid) == number
        assert header.durable_sequence(number) == number == header.read_sequence(number)
        assert header.durable_bytes(number) == number * 10
    for number in range(limits.CURSOR_SLOTS - 1):
        header.give_slot(number)
        assert header.find_slot(uuids[number]) is None
        assert header.has_readers
    assert list(header.readers()) == [limits.CURSOR_SLOTS - 1]
    header.set_sleeping(limits.CURSOR_SLOTS - 1, True)
    assert header.has_sleepers
    header.give_slot(limits.CURSOR_SLOTS - 1)
    assert not header.has_readers
    assert not header.has_sleepers


def test_a_saved_header_comes_back() -> None:
    disk = MemoryDisk()
    world = memory_world(disk)
    disk.makedirs("/disk")
    assert headers.load(world, "/disk") is None
    header = fresh(world)
    cursor = UUID(int=5)
    header.take_slot(cursor, 3, 300)
    header.set_sleeping(0, True)
    header.publish(Head(2, 500, 9, 99, 900))
    header.lost_ops = 4
    headers.save(world, "/disk", header.image(State.CLOSED))
    assert header.state == State.OPEN
    saved = headers.load(world, "/disk")
    assert saved is not None
    assert (saved.journal, saved.row, saved.state) == (JOURNAL, 0, State.CLOSED)
    assert saved.head == Head(2, 500, 9, 99, 900)

    other = Header(world, "/elsewhere", create=True)
    other.restore(saved.data, "boot-2")
    assert not other.valid
    other.make_valid()
    assert other.head() == header.head()
    assert other.find_slot(cursor) == 0
    assert other.durable_sequence(0) == 3
    assert not other.has_sleepers
    assert (other.lost_ops, other.boot_id, other.state) == (4, "boot-2", State.CLOSED)
    other.publish(Head(2, 600, 10, 100, 1000))
    assert other.head().sequence == 10


def test_a_new_row_keeps_its_readers() -> None:
    header = fresh()
    cursor = UUID(int=6)
    header.take_slot(UUID(int=5), 3, 300)
    header.take_slot(cursor, 4, 300)
    header.give_slot(0)
    start = Head(7, 0, 1 << 40, 5, 0)
    header.prepare(JOURNAL, "boot-2", 1, start, headers.slots_of(header.image(State.OPEN)), 8)
    header.make_valid()
    assert list(header.readers()) == [1]
    assert header.find_slot(cursor) == 1
    assert header.durable_sequence(1) == header.read_sequence(1) == 1 << 40
    assert header.durable_bytes(1) == 0
    assert header.lost_ops == 8
    assert header.head() == start


def test_names_become_uuids() -> None:
    assert headers.identify(str(JOURNAL)) == JOURNAL
    assert headers.identify("mount 1") == headers.identify("mount 1") != headers.identify("mount 2")
    assert headers.short_boot_id("a") != headers.short_boot_id("b")


def test_mapped_file_is_shared_and_removable(tmp_path: Path) -> None:
    path = str(tmp_path / "page")
    first = MappedFile(path, 4096, True)
    second = MappedFile(path, 4096, False)
    first.buffer[7] = 9
    assert second.buffer[7] == 9
    first.remove()
    first.remove()
    with pytest.raises(FileNotFoundError):
        MappedFile(path, 4096, False)
    second.buffer[7] = 8
    assert first.buffer[7] == 8
    first.close()
    second.close()
