"""Calls of the disk that fail: `append` never raises, what is lost is counted, and a HOLE says so."""

import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.disk import Fault, MemoryDisk
from kit.journals import Host, append, contents, read_all, small, write

from replicator.errors import JournalError
from replicator.ops import Kind, Record

ERRORS = [errno.EIO, errno.ENOSPC]


def check_account(records: list[Record], taken: dict[int, tuple[int, bytes, bytes]], lost: int) -> None:
    """What was taken is there, in order; HOLEs tell of every loss."""
    operations = [record for record in records if record.kind != Kind.HOLE]
    assert [(record.kind, record.path, record.payload) for record in operations] == list(taken.values())
    assert [record.sequence for record in operations] == list(taken)
    assert [record.sequence for record in records] == list(
        range(records[0].sequence, records[0].sequence + len(records))
    )
    assert sum(record.arg0 for record in records if record.kind == Kind.HOLE) == lost


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_failures_at_every_call_of_appending(error: int, count: int) -> None:
    def live(call: int | None) -> int:
        host = Host(disk=MemoryDisk(), settings=small(memory_bytes=1024))
        writer = host.writer()
        cursor = host.cursor(create=True)
        first = host.disk.calls
        if call is not None:
            host.disk.random.seed(call)
            host.disk.fail_at(first + call, error, count)
        taken = {}
        lost = 0
        expect_hole = False
        for number in range(24):
            operation = write(b"f%d" % number, 40 * (number % 4), number)
            before = writer.position.sequence
            sequence = append(writer, operation)
            if sequence:
                assert sequence == before + (2 if expect_hole else 1)
                taken[sequence] = operation
                expect_hole = False
            else:
                lost += 1
                # The HOLE may have fitted when the record after it did not.
                expect_hole = True
            assert writer.statistics().lost_ops == lost
        calls = host.disk.calls - first
        host.disk.heal()
        operation = write(b"last", 8)
        taken[append(writer, operation)] = operation
        check_account(read_all(cursor), taken, lost)
        # The next process finds the same.
        writer.close(persist=False)
        writer = host.writer()
        assert not writer.recovery.damaged
        check_account(read_all(host.cursor()), taken, lost)
        if call is None:
            assert lost == 0
        return calls

    for call in range(1, live(None) + 1):
        live(call)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("acknowledged", [0, 9, 20])
@pytest.mark.parametrize("memory_bytes", [2048, 1 << 20])
def test_failures_at_every_call_of_a_clean_stop(
    error: int, count: int, acknowledged: int, memory_bytes: int
) -> None:
    """A stop that fails says so; the journal is still there, for this boot."""
    operations = [write(b"f%d" % number, 100, number) for number in range(21)]  # the last segment has room

    def stop(call: int | None) -> int:
        host = Host(small(memory_bytes=memory_bytes))
        writer = host.writer()
        host.cursor(create=True).close()
        for operation in operations:
            assert append(writer, operation)
        first = host.disk.calls
        if call is not None:
            host.disk.fail_at(first + call, error, count)
        try:
            writer.close(persist=True)
            stopped = True
        except JournalError:
            stopped = False
        calls = host.disk.calls - first
        host.disk.heal()
        expected = list(operations)
        if not stopped:
            # Still open, for its writer and its readers.
            assert append(writer, operations[0])
            expected.append(operations[0])
            cursor = host.cursor()
            assert contents(read_all(cursor)) == expected
            cursor.acknowledge(acknowledged)
            writer.collect()
            del expected[:acknowledged]
        host.kill()
        if stopped:
            host.reboot()
        writer = host.writer()
        assert not writer.recovery.damaged
        assert not writer.recovery.new_boot
        assert contents(read_all(host.cursor())) == expected
        if call is None:
            assert stopped
        return calls

    for call in range(1, stop(None) + 1):
        stop(call)


def test_loss_of_power_after_a_clean_stop_that_failed() -> None:
    """The journal goes on in memory after the stop; what that has left on disk must not pass for it."""
    failed = 0
    for number in itertools.count():
        call, seed = divmod(number, 8)
        host = Host(disk=MemoryDisk())
        host.disk.random.seed(seed)
        writer = host.writer()
        host.cursor(create=True).close()
        for n in range(20):
            assert append(writer, write(b"f%d" % n, 100, n))
        first = host.disk.calls
        host.disk.fail_at(first + call + 1, errno.EIO)
        try:
            writer.close(persist=True)
        except JournalError:
            failed += 1
        else:
            if host.disk.calls <= first + call:
                break
            continue
        host.disk.heal()
        assert append(writer, write(b"later", 10))
        host.lose_power()
        assert host.writer().recovery.new_boot
        assert [record.kind for record in read_all(host.cursor())] == [Kind.HOLE]
    assert failed > 100


@pytest.mark.parametrize("error", ERRORS)
def test_failures_at_every_call_of_opening(error: int) -> None:
    """Opening fails with one line for a person, or works; tried again it works, and nothing is lost."""
    operations = [write(b"f%d" % number, 100, number) for number in range(20)]

    def reopen(call: int | None, reboot: bool) -> int:
        host = Host(disk=MemoryDisk())
        writer = host.writer()
        host.cursor(create=True).close()
        for operation in operations:
            assert append(writer, operation)
        if reboot:
            writer.close(persist=True)
            host.reboot()
        else:
            host.kill()
        first = host.disk.calls
        if call is not None:
            host.disk.fail_at(first + call, error)
        try:
            writer = host.writer()
        except JournalError:
            host.disk.heal()
            writer = host.writer()
        calls = host.disk.calls - first
        host.disk.heal()
        assert not writer.recovery.damaged
        assert not writer.recovery.new_boot
        assert contents(read_all(host.cursor())) == operations
        return calls

    for reboot in (False, True):
        for call in range(1, reopen(None, reboot) + 1):
            reopen(call, reboot)


@pytest.mark.parametrize("error", ERRORS)
def test_a_cursor_turns_errors_of_the_disk_into_journal_errors(error: int) -> None:
    host = Host(disk=MemoryDisk())
    writer = host.writer()
    cursor = host.cursor(create=True)
    operations = [write(b"f%d" % number, 100, number) for number in range(20)]
    for operation in operations:
        append(writer, operation)
    done: list[Record] = []
    call = 0
    while len(done) < len(operations):
        call += 1
        assert call < 500
        host.disk.fail_at(host.disk.calls + 1 + call % 9, error)
        try:
            run = cursor.read(200)
        except JournalError:
            continue
        assert run is not None
        done += [record._replace(payload=bytes(record.payload)) for _, _, record in run.records]
    assert contents(done) == operations


@settings(max_examples=60, deadline=None)
@given(
    faults=st.sets(st.integers(1, 200)),
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    disk_bytes=st.sampled_from([None, 0, 1024, 4096]),
)
def test_any_failures(faults: set[int], sizes: list[int], seed: int, disk_bytes: int | None) -> None:
    disk = MemoryDisk()
    disk.random.seed(seed)
    host = Host(disk=disk, settings=small(memory_bytes=1024, disk_bytes=disk_bytes))
    writer = host.writer()
    cursor = host.cursor(create=True)
    first = disk.calls
    disk.fault = lambda call, name, path: Fault(error=ERRORS[call % 2]) if call - first in faults else None
    taken = {}
    lost = 0
    for number, size in enumerate(sizes):
        operation = write(b"f%d" % number, size, number)
        sequence = append(writer, operation)
        if sequence:
            taken[sequence] = operation
        else:
            lost += 1
    disk.heal()
    records = read_all(cursor)
    if records:
        told = sum(record.arg0 for record in records if record.kind == Kind.HOLE)
        check_account(records, taken, told)
        assert told <= lost == writer.statistics().lost_ops
        # What no HOLE tells of yet is told before the next record.
        cursor.acknowledge(cursor.position.sequence)
        sequence = append(writer, write(b"next", 0))
        if sequence:
            rest = read_all(cursor)
            assert [record.kind for record in rest] == [Kind.HOLE] * (told < lost) + [Kind.WRITE]
            assert told + sum(record.arg0 for record in rest if record.kind == Kind.HOLE) == lost
    else:
        assert not taken


def test_a_full_disk_below_the_limit() -> None:
    """The disk is full although nobody set a limit: the same as reaching one, and it heals."""
    host = Host(disk=MemoryDisk(capacity=60_000), settings=small(memory_bytes=1024))
    writer = host.writer()
    cursor = host.cursor(create=True)
    results = [append(writer, write(b"f", 400)) for _ in range(200)]
    assert results[0]
    assert not results[-1]
    lost = results.count(0)
    records = read_all(cursor)
    cursor.acknowledge(cursor.position.sequence)
    writer.collect()
    assert append(writer, write(b"again", 400))
    again = read_all(cursor)
    assert [record.kind for record in again] == [Kind.HOLE, Kind.WRITE]
    assert again[0].arg0 + sum(r.arg0 for r in records if r.kind == Kind.HOLE) == lost


def test_no_memory_left_on_tmpfs() -> None:
    """/dev/shm is smaller than the configured memory tier: the disk takes over, nothing is lost."""
    host = Host(disk=MemoryDisk(volatile_capacity=700), settings=small(memory_bytes=1 << 20))
    writer = host.writer()
    cursor = host.cursor(create=True)
    operations = [write(b"f%d" % number, 100, number) for number in range(30)]
    assert all(append(writer, operation) for operation in operations)
    assert contents(read_all(cursor)) == operations
    assert writer.statistics().disk_bytes > 0
    assert writer.statistics().lost_ops == 0
