import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from kit.disk import MemoryDoorbells
from kit.journals import JOURNAL, READER, READERS, Host, append, contents, read_all, small, write

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import START, Kind, Position
from replicator.queue.cursor import Cursor
from replicator.queue.doorbell import bell_path, ring_sleepers
from replicator.queue.header import identify
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.queue.record import CorruptRecord
from replicator.world import FifoDoorbells, World


def filled(count: int = 20) -> tuple[Host, JournalWriter, Cursor, list[Position]]:
    """A journal of some segments, a cursor at its beginning, and all positions."""
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    positions = [START]
    for number in range(count):
        append(writer, write(b"f%d" % number, 100, number))
        positions.append(writer.position)
    return host, writer, cursor, positions


def test_a_new_cursor_starts_at_the_head() -> None:
    host, writer, _, positions = filled(3)
    cursor = host.cursor(READERS[1], create=True)
    assert cursor.position == positions[-1] == cursor.head()
    assert cursor.read() is None
    append(writer, write(b"new", 1))
    assert [record.path for record in read_all(cursor)] == [b"new"]


def test_create_finds_an_existing_cursor() -> None:
    host, _, cursor, _ = filled(3)
    read_all(cursor)
    cursor.acknowledge(2)
    cursor.close()
    cursor = host.cursor(create=True)
    assert cursor.position.sequence == cursor.acknowledged == 2


def test_unknown_cursors_and_journals() -> None:
    host, writer, _, _ = filled(1)
    with pytest.raises(JournalError, match="knows no cursor"):
        host.cursor(READERS[7])
    with pytest.raises(JournalError, match="not open"):
        Cursor.open(host.world, host.settings, READERS[3], READER)
    with pytest.raises(JournalError, match="not open"):
        Cursor.open(host.world, small(name="nowhere"), JOURNAL, READER)
    writer.close(persist=True)
    with pytest.raises(JournalError, match="not open"):
        host.cursor()


def test_more_readers_than_slots() -> None:
    host = Host()
    host.writer()
    cursors = [host.cursor(READERS[n], create=True) for n in range(limits.CURSOR_SLOTS)]
    with pytest.raises(JournalError, match="64 readers"):
        host.cursor(READERS[limits.CURSOR_SLOTS], create=True)
    cursors[5].remove()
    host.cursor(READERS[limits.CURSOR_SLOTS], create=True)


@pytest.mark.parametrize("max_bytes", [1, 200, 500, 10_000])
def test_runs_hold_whole_records(max_bytes: int) -> None:
    _, _, cursor, positions = filled()
    assert [Position(r.sequence, r.chain) for r in read_all(cursor, max_bytes)] == positions[1:]


def test_a_record_larger_than_a_run() -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    operations = [write(b"a", 10), write(b"b", 5000), write(b"c", 10)]
    for operation in operations:
        append(writer, operation)
    assert contents(read_all(cursor, 100)) == operations


def test_seek_to_every_position_and_to_wrong_ones() -> None:
    host, _, cursor, positions = filled()
    for position in [*positions, *reversed(positions)]:
        cursor.seek(position)
        assert cursor.position == position
        run = cursor.read()
        if run is None:
            assert position == positions[-1]
        else:
            assert run.previous == position
    cursor.seek(positions[7])
    for sequence, chain in [(7, 1), (20, 1), (21, positions[20].chain), (0, 1), (2**63, 0)]:
        with pytest.raises(JournalError):
            cursor.seek(Position(sequence, chain))
        assert cursor.position == positions[7]
    lookahead = host.cursor(None)
    assert lookahead.position == positions[-1]
    lookahead.seek(positions[3])
    assert lookahead.read() is not None


def test_a_collected_position_is_gone() -> None:
    _, writer, cursor, positions = filled()
    read_all(cursor)
    cursor.acknowledge(15)
    writer.collect()
    for position in positions[:10]:
        with pytest.raises(JournalError, match=r"no longer|not in"):
            cursor.seek(position)
    cursor.seek(positions[15])


def test_a_cursor_without_slot_may_lose_its_place() -> None:
    host, writer, cursor, positions = filled()
    lookahead = host.cursor(None)
    lookahead.seek(positions[1])
    lookahead.acknowledge(1)
    assert lookahead.held() == (0, 0)
    read_all(cursor)
    cursor.acknowledge(20)
    writer.collect()
    with pytest.raises(JournalError, match="no longer"):
        for _ in range(20):
            lookahead.read(1)
    assert lookahead.seek_head() == positions[-1]
    assert lookahead.read() is None


async def test_a_cursor_without_slot_cannot_wait() -> None:
    host, _, _, _ = filled(1)
    with pytest.raises(ValueError, match="slot"):
        await host.cursor(None).wait()


def test_peek_does_not_move() -> None:
    _, _, cursor, positions = filled(8)
    for position in positions[:-1]:
        record = cursor.peek()
        assert record is not None
        assert record.sequence == position.sequence + 1
        assert cursor.position == position
        run = cursor.read(1)
        assert run is not None
        assert run.last.sequence == record.sequence
    assert cursor.peek() is None


def test_backlog_and_held() -> None:
    _, _, cursor, positions = filled(10)
    operations, size = cursor.backlog()
    assert operations == 10
    assert size > 1000
    run = cursor.read(500)
    assert run is not None
    assert cursor.backlog() == (10 - len(run.records), size - len(run.data))
    assert cursor.held() == (10, size)
    cursor.acknowledge(run.last.sequence)
    assert cursor.held() == cursor.backlog()
    cursor.seek(positions[-1])
    assert cursor.backlog() == (0, 0)
    assert cursor.held()[0] == 10 - len(run.records)


def test_acknowledge_more_than_was_read() -> None:
    _, _, cursor, _ = filled(4)
    cursor.read(1)
    with pytest.raises(JournalError, match="before it was sent"):
        cursor.acknowledge(2)
    cursor.acknowledge(1)
    cursor.acknowledge(0)
    assert cursor.acknowledged == 1


def test_acknowledged_marks_survive_both_sides() -> None:
    host, _, cursor, positions = filled()
    read_all(cursor)
    cursor.acknowledge(11)
    host.kill()
    host.writer()
    cursor = host.cursor()
    assert cursor.position == positions[11]
    assert [record.sequence for record in read_all(cursor)] == list(range(12, 21))


def test_damage_behind_the_acknowledged_mark_is_told_when_reading() -> None:
    host, writer, cursor, positions = filled()
    read_all(cursor)
    cursor.acknowledge(1)
    cursor.close()
    path = host.disk.paths("/memory")[0]
    data = bytearray(host.disk.contents(path))
    data[70] ^= 1
    host.disk.damage(path, bytes(data))
    cursor = host.cursor()
    with pytest.raises(JournalError):
        cursor.read()
    with pytest.raises(JournalError):
        cursor.peek()
    assert cursor.readable
    cursor.seek(positions[-1])
    append(writer, write(b"on", 1))
    assert len(read_all(cursor)) == 1
    cursor.acknowledge(21)
    writer.collect()
    assert writer.statistics().segments == 1


def test_damage_in_front_is_a_corrupt_record_and_the_position_stays() -> None:
    host, _, cursor, positions = filled()
    path = host.disk.paths("/memory")[1]
    data = bytearray(host.disk.contents(path))
    data[-20] ^= 1
    host.disk.damage(path, bytes(data))
    sequences = []
    with pytest.raises(CorruptRecord, match="segment 2"):
        while (run := cursor.read(10_000)) is not None:
            sequences += [record.sequence for _, _, record in run.records]
    assert cursor.position == positions[len(sequences)]
    with pytest.raises(CorruptRecord):
        cursor.read()


# --- waiting ---


async def test_wait_returns_at_once_when_there_is_something(autojump_clock: trio.testing.MockClock) -> None:
    _, _, cursor, _ = filled(1)
    await cursor.wait()
    read_all(cursor)


async def test_a_sleeping_reader_is_rung_once(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    bells = host.world.doorbells
    assert isinstance(bells, MemoryDoorbells)
    append(writer, write(b"awake", 1))
    assert bells.rings == 0
    read_all(cursor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait)
        await trio.testing.wait_all_tasks_blocked()
        append(writer, write(b"a", 1))
        append(writer, write(b"b", 1))
        assert bells.rings == 1
    assert trio.current_time() == 0
    assert len(read_all(cursor)) == 2


async def test_a_hole_rings_although_its_record_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    host = Host(small(memory_bytes=512, disk_bytes=0))
    writer = host.writer()
    cursor = host.cursor(create=True)
    assert append(writer, write(b"fits", 100))
    assert not append(writer, write(b"does not", 1000))
    read_all(cursor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not append(writer, write(b"neither", 1000))
    assert trio.current_time() == 0
    assert [record.kind for record in read_all(cursor)] == [Kind.HOLE]


async def test_cancelled_waiting_is_waiting_no_more(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    with trio.move_on_after(5):
        await cursor.wait()
    append(writer, write(b"a", 1))
    assert isinstance(host.world.doorbells, MemoryDoorbells)
    assert host.world.doorbells.rings == 0
    await cursor.wait()


async def test_a_lost_ring_delays_only(autojump_clock: trio.testing.MockClock) -> None:
    """The writer died between its flag and its bell, and has no successor yet."""
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(host.world.doorbells, MemoryDoorbells)
        host.world.doorbells.ring = lambda path: False  # type: ignore[method-assign]
        append(writer, write(b"a", 1))
    assert trio.current_time() == limits.WAKE_CHECK_S


async def test_a_successor_rings(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait)
        await trio.testing.wait_all_tasks_blocked()
        writer._header.set_sleeping(0, False)  # as a writer does right before it dies
        append(writer, write(b"a", 1))
        writer.close(persist=False)
        host.writer()
    assert trio.current_time() == 0


async def test_a_stopped_journal_wakes_with_an_error(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)

    async def wait() -> None:
        with pytest.raises(JournalError, match="stopped"):
            await cursor.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        writer.close(persist=True)
    assert trio.current_time() == 0
    with pytest.raises(JournalError, match="stopped"):
        cursor.remove()


async def test_what_a_stopped_journal_has_is_still_read(autojump_clock: trio.testing.MockClock) -> None:
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    operations = [write(b"f%d" % n, 100, n) for n in range(12)]
    for operation in operations:
        append(writer, operation)
    assert cursor.read(300) is not None
    writer.close(persist=True)
    cursor.seek_head()
    cursor.seek(START)
    await cursor.wait()
    assert contents(read_all(cursor)) == operations
    with pytest.raises(JournalError, match="stopped"):
        await cursor.wait()


@pytest.mark.parametrize("moment", ["before the flag", "after the flag", "before the bell"])
async def test_no_wake_up_is_lost_between_looking_and_sleeping(
    moment: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer appends at each step of a reader's falling asleep."""
    host = Host()
    writer = host.writer()
    cursor = host.cursor(create=True)
    header = cursor._header
    steps = {"before the flag": "set_sleeping", "after the flag": "fence"}
    if moment in steps:
        step = getattr(header, steps[moment])

        def interfere(*arguments: object) -> None:
            monkeypatch.undo()
            append(writer, write(b"a", 1))
            step(*arguments)

        monkeypatch.setattr(header, steps[moment], interfere)
    else:
        wait = trio.Event.wait

        async def late(event: trio.Event) -> None:
            monkeypatch.undo()
            append(writer, write(b"a", 1))
            await wait(event)

        monkeypatch.setattr(trio.Event, "wait", late)
    await cursor.wait()
    assert trio.current_time() == 0
    assert len(read_all(cursor)) == 1


# --- real doorbells, real processes ---


async def test_fifo_doorbells(tmp_path: Path) -> None:
    bells = FifoDoorbells()
    path = str(tmp_path / "a.bell")
    assert not bells.ring(path)
    bell = bells.listen(path)
    for _ in range(3):
        assert bells.ring(path)
    with trio.fail_after(5):
        await bell.wait()
    with trio.move_on_after(0.02) as scope:
        await bell.wait()
    assert scope.cancelled_caught
    for _ in range(70_000):  # more than a pipe holds: never blocks
        assert bells.ring(path)
    with trio.fail_after(5):
        await bell.wait()
    bell.close()
    assert not bells.ring(path)
    assert not bells.ring(path)
    bell = bells.listen(path)
    assert bells.ring(path)
    with trio.fail_after(5):
        await bell.wait()
    bell.close()
    bells.remove(path)
    bells.remove(path)
    assert not bells.ring(path)
    assert not (tmp_path / "a.bell").exists()


WRITER = """
import sys, time
from replicator.ops import Kind
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.world import World
settings = JournalSettings(sys.argv[1], sys.argv[2], 4096, 1 << 20)
writer = JournalWriter.open(World(), settings, sys.argv[3])
for line in sys.stdin:
    for number in range(int(line)):
        writer.append(Kind.WRITE, b"f", payload=b"x" * 50, arg0=number)
        if number % 7 == 0:
            time.sleep(0.0002)
"""


async def test_a_reader_of_another_process_misses_nothing(tmp_path: Path) -> None:
    """A reader that sleeps whenever it can, against a writer in its own process: no wait lasts a second."""
    settings = JournalSettings(str(tmp_path / "memory"), str(tmp_path / "disk"), 4096, 1 << 20)
    world = World()
    JournalWriter.open(world, settings, JOURNAL).close(persist=False)
    cursor = Cursor.open(world, settings, JOURNAL, READER, create=True)
    arguments = [sys.executable, "-c", WRITER, settings.memory_directory, settings.disk_directory, JOURNAL]
    count = 3000
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - writes to it only
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % count)
        process.stdin.close()
        seen = waits = 0
        longest_s = 0.0
        with trio.fail_after(60):
            while seen < count:
                begun = trio.current_time()
                await cursor.wait()
                waits += 1
                if seen:  # the first one waits for the start of an interpreter
                    longest_s = max(longest_s, trio.current_time() - begun)
                while (run := cursor.read()) is not None:
                    assert [record.arg0 for _, _, record in run.records] == list(
                        range(seen, seen + len(run.records))
                    )
                    seen += len(run.records)
                cursor.acknowledge(cursor.position.sequence)
    assert process.returncode == 0
    assert waits > 10
    assert longest_s < limits.WAKE_CHECK_S
    cursor.close()


def test_ringing_asks_only_for_sleepers() -> None:
    host = Host()
    writer = host.writer()
    cursors = [host.cursor(READERS[n], create=True) for n in range(12)]
    bells = host.world.doorbells
    assert isinstance(bells, MemoryDoorbells)
    rung: list[str] = []

    def ring(path: str) -> bool:
        rung.append(path)
        return True

    bells.ring = ring  # type: ignore[method-assign]
    for number in (2, 11):
        cursors[number]._header.set_sleeping(number, True)
    append(writer, write(b"a", 1))
    assert rung == [bell_path("/memory/j", identify(READERS[number])) for number in (2, 11)]
    ring_sleepers(host.world, "/memory/j", writer._header)
    assert len(rung) == 2
