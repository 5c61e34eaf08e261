import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.disk import MemoryDisk, SteppingClock, memory_world
from kit.journals import READER, READERS, append, small, write

from replicator import limits
from replicator.errors import JournalError
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalSettings, JournalWriter
from replicator.queue.merge import Merge
from replicator.queue.record import iterate
from replicator.world import World


class Mounts:
    """Some journals of one host, each with a writer, read as one."""

    def __init__(self, count: int) -> None:
        self.disk = MemoryDisk()
        self.clock = SteppingClock()
        self.world: World = memory_world(self.disk, self.clock)
        self.settings: list[JournalSettings] = [small(name=f"mount{n}") for n in range(count)]
        self.count = 0
        self.appended: list[tuple[int, bytes]] = []
        self.writers = self.open_writers()
        self.merge = Merge(self.open_cursors(create=True))

    def open_writers(self) -> list[JournalWriter]:
        return [
            JournalWriter.open(self.world, settings, READERS[n]) for n, settings in enumerate(self.settings)
        ]

    def open_cursors(self, create: bool = False) -> list[Cursor]:
        return [
            Cursor.open(self.world, settings, READERS[n], READER, create)
            for n, settings in enumerate(self.settings)
        ]

    def append(self, mount: int, size: int = 20) -> None:
        self.count += 1
        path = b"%d" % self.count
        assert append(self.writers[mount], write(path, size))
        self.appended.append((mount, path))

    def read(self, max_bytes: int = 1000) -> list[tuple[int, bytes]]:
        """What the merge gives out now, having checked that each run continues its journal's last."""
        found = []
        while (item := self.merge.read(max_bytes)) is not None:
            index, run = item
            again = [(o, n, r.sequence) for o, n, r in iterate(run.data, run.previous)]
            assert again == [(o, n, r.sequence) for o, n, r in run.records]
            assert run.last.sequence == run.records[-1][2].sequence
            found += [(index, record.path) for _, _, record in run.records]
        return found

    def pass_margin(self) -> None:
        self.clock.now_ns += 2 * limits.STAMP_MARGIN_NS


def test_one_journal_passes_through() -> None:
    mounts = Mounts(1)
    for _ in range(10):
        mounts.append(0)
    assert mounts.read() == mounts.appended  # no margin to wait for


def test_two_journals_by_stamp() -> None:
    mounts = Mounts(2)
    for mount in (0, 0, 1, 0, 1, 1, 1, 0):
        mounts.append(mount)
    early = mounts.read()
    assert early == mounts.appended[: len(early)]
    mounts.pass_margin()
    assert early + mounts.read() == mounts.appended


def test_nothing_is_given_out_that_an_older_record_may_still_precede() -> None:
    mounts = Mounts(2)
    mounts.append(0)
    assert mounts.read() == []  # mount 1 is idle, but not for long enough to be sure
    mounts.writers[1]._header.busy_stamp = 5
    mounts.pass_margin()
    assert mounts.read() == []  # an append is under way there: it may have taken its stamp before
    mounts.writers[1]._header.busy_stamp = 0
    assert mounts.read() == mounts.appended


def test_low_mark_never_goes_back() -> None:
    mounts = Mounts(1)
    (cursor,) = mounts.merge._cursors
    mounts.pass_margin()
    first = cursor.low_mark()
    mounts.writers[0]._header.busy_stamp = 1
    assert cursor.low_mark() == first
    mounts.writers[0]._header.busy_stamp = 0
    mounts.append(0)
    assert cursor.low_mark() >= first


def test_low_mark_holds_in_the_middle_of_an_append(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held up for long right before, and right after, it takes its stamp."""
    mounts = Mounts(1)
    (cursor,) = mounts.merge._cursors
    look = mounts.clock.monotonic_ns
    marks = []

    def slow() -> int:
        monkeypatch.undo()
        mounts.pass_margin()
        marks.append(cursor.low_mark())
        stamp = look()
        mounts.pass_margin()
        marks.append(cursor.low_mark())
        return stamp

    mounts.append(0)
    monkeypatch.setattr(mounts.clock, "monotonic_ns", slow)
    mounts.append(0)
    run = cursor.read()
    assert run is not None
    assert len(marks) == 2
    assert max(marks) <= run.records[1][2].monotonic_ns
    mounts.pass_margin()
    assert cursor.low_mark() > run.records[1][2].monotonic_ns


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.integers(0, 2), st.sampled_from(["read", "pass", "reboot"])), min_size=1, max_size=60
    ),
    max_bytes=st.sampled_from([1, 300, 5000]),
)
def test_any_interleaving_comes_out_in_order(steps: list[int | str], max_bytes: int) -> None:
    mounts = Mounts(3)
    found: list[tuple[int, bytes]] = []
    for step in steps:
        if step == "read":
            found += mounts.read(max_bytes)
        elif step == "pass":
            mounts.pass_margin()
        elif step == "reboot":
            for writer in mounts.writers:
                writer.close(persist=True)
            # Monotonic time begins anew, wall time does not.
            mounts.disk.sync()
            mounts.disk.lose_power()
            mounts.clock.wall_offset_ns += mounts.clock.now_ns
            mounts.clock.now_ns = 1000
            mounts.clock.reboot()
            mounts.writers = mounts.open_writers()
            found = []
            mounts.merge = Merge(mounts.open_cursors())
        else:
            assert isinstance(step, int)
            mounts.append(step)
        assert found == mounts.appended[: len(found)]
    mounts.pass_margin()
    found += mounts.read(max_bytes)
    assert found == mounts.appended


async def test_waiting_for_any_journal(autojump_clock: trio.testing.MockClock) -> None:
    mounts = Mounts(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mounts.merge.wait)
        await trio.testing.wait_all_tasks_blocked()
        mounts.append(2)
    assert trio.current_time() == 0
    # Held back by the idle ones: a pause, not a busy loop.
    assert mounts.read() == []
    await mounts.merge.wait()
    assert 0 < trio.current_time() <= limits.MERGE_PAUSE_FIRST_S
    mounts.pass_margin()
    assert mounts.read() == mounts.appended


async def test_pauses_grow_and_shrink(autojump_clock: trio.testing.MockClock) -> None:
    mounts = Mounts(2)
    mounts.writers[1]._header.busy_stamp = 1
    mounts.append(0)
    for _ in range(10):
        assert mounts.read() == []
        await mounts.merge.wait()
    before = trio.current_time()
    await mounts.merge.wait()
    assert trio.current_time() - before == pytest.approx(limits.MERGE_PAUSE_MAX_S)
    mounts.writers[1]._header.busy_stamp = 0
    mounts.pass_margin()
    assert mounts.read() == mounts.appended
    mounts.append(0)
    assert mounts.read() == []
    before = trio.current_time()
    await mounts.merge.wait()
    assert trio.current_time() - before == pytest.approx(limits.MERGE_PAUSE_FIRST_S)


async def test_a_stopped_journal_ends_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    mounts = Mounts(2)
    mounts.writers[1].close(persist=True)
    with pytest.raises(JournalError, match="stopped"):
        await mounts.merge.wait()


async def test_one_journal_waits_for_itself(autojump_clock: trio.testing.MockClock) -> None:
    mounts = Mounts(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mounts.merge.wait)
        await trio.testing.wait_all_tasks_blocked()
        mounts.append(0)
    assert mounts.read() == mounts.appended
