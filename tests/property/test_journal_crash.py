"""The process ends, or the host loses power, at every disk call of a journal's life: nothing is lost unsaid.

The scripted life appends, rolls, spills, reads, acknowledges, collects, stops cleanly and opens again.
"""

from typing import Literal

import pytest
from kit.disk import MemoryDisk, ProcessDied
from kit.journals import Host, append, contents, read_all, write

from replicator.errors import JournalError
from replicator.ops import Kind, Position
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter

Operation = tuple[int, bytes, bytes]


class Life:
    """One scripted life, and what its caller may rely on at every moment."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.taken: dict[int, Operation] = {}  # sequence -> what append has returned it for
        self.attempt: Operation | None = None
        self.registered = False
        self.registering = False
        self.positions: list[Position] = []  # that the reader has seen
        self.acknowledged = 0
        self.persisted = False  # a clean stop has returned, and nothing was opened since

    def run(self) -> None:
        writer = self.open()
        self.registering = True
        cursor = self.host.cursor(create=True)
        self.registered = True
        self.append(writer, 9, 40)  # two segments in memory
        self.read(cursor, 5)
        self.append(writer, 12, 120)  # to disk
        self.acknowledge(cursor, 4)
        writer.collect()
        self.append(writer, 1, 900)  # larger than a segment
        self.append(writer, 3, 0)
        cursor.close()
        self.stop(writer)

        writer = self.open()
        cursor = self.host.cursor()
        self.append(writer, 6, 100)
        self.read(cursor, 15)
        self.acknowledge(cursor, 15)
        writer.collect()
        writer.close(persist=False)

        writer = self.open()
        self.append(writer, 5, 64)
        self.read(cursor, 100)
        self.acknowledge(cursor, 20)
        self.append(writer, 2, 300)
        self.stop(writer)

    def open(self) -> JournalWriter:
        self.persisted = False
        return self.host.writer()

    def stop(self, writer: JournalWriter) -> None:
        writer.close(persist=True)
        self.persisted = True

    def append(self, writer: JournalWriter, count: int, size: int) -> None:
        for _ in range(count):
            self.attempt = write(b"dir/file%d" % len(self.taken), size, len(self.taken))
            sequence = append(writer, self.attempt)
            assert sequence
            self.taken[sequence] = self.attempt
            self.attempt = None

    def read(self, cursor: Cursor, count: int) -> None:
        while count > 0 and (run := cursor.read(256)) is not None:
            self.positions.append(run.last)
            count -= len(run.records)

    def acknowledge(self, cursor: Cursor, sequence: int) -> None:
        self.acknowledged = sequence
        cursor.acknowledge(sequence)


def calls_of_a_life() -> int:
    life = Life(Host())
    life.run()
    return life.host.disk.calls


CALLS = calls_of_a_life()


def live_until(call: int, when: Literal["before", "after", "torn"], seed: int = 0) -> Life:
    disk = MemoryDisk()
    disk.random.seed(call * 7 + seed)
    life = Life(Host(disk=disk))
    disk.die_at(call, when)
    with pytest.raises(ProcessDied):
        life.run()
    return life


def check_complete(life: Life, writer: JournalWriter) -> None:
    """Everything taken is there, once, in order; at most the attempt comes on top."""
    assert not writer.recovery.damaged
    assert not writer.recovery.new_boot
    try:
        cursor = life.host.cursor()
    except JournalError:
        assert not life.registered
        return
    records = read_all(cursor)
    assert [record.sequence for record in records] == list(
        range(cursor.acknowledged + 1, cursor.acknowledged + 1 + len(records))
    )
    assert cursor.acknowledged <= life.acknowledged
    expected = [life.taken[sequence] for sequence in sorted(life.taken) if sequence > cursor.acknowledged]
    found = contents(records)
    assert found[: len(expected)] == expected
    assert found[len(expected) :] in ([], [life.attempt])
    for position in life.positions:
        if position.sequence >= cursor.acknowledged:
            cursor.seek(position)
            assert cursor.position == position
    cursor.close()


def check_goes_on(life: Life, writer: JournalWriter) -> None:
    """The journal is as good as new."""
    cursor = life.host.cursor(create=True)
    cursor.seek_head()
    operations = [write(b"later%d" % n, 100, n) for n in range(12)]
    for operation in operations:
        assert append(writer, operation)
    assert contents(read_all(cursor)) == operations
    writer.close(persist=True)
    life.host.reboot()
    writer = life.host.writer()
    assert not writer.recovery.new_boot
    cursor = life.host.cursor()
    assert contents(read_all(cursor))[-12:] == operations


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_death_at_every_call(when: Literal["before", "after", "torn"]) -> None:
    for call in range(1, CALLS + 1):
        life = live_until(call, when)
        life.host.kill()
        writer = life.host.writer()
        check_complete(life, writer)
        if call % 5 == 0:
            check_goes_on(life, writer)


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_death_during_recovery(when: Literal["before", "after", "torn"]) -> None:
    """A second death, at every call of the recovery from the first."""
    for call in range(3, CALLS + 1, 29):
        recovery_call = 0
        while True:
            recovery_call += 1
            life = live_until(call, when)
            life.host.kill()
            life.host.disk.die_at(life.host.disk.calls + recovery_call, when)
            try:
                life.host.writer()
                ended = True
            except ProcessDied:
                ended = False
            life.host.kill()
            check_complete(life, life.host.writer())
            if ended:
                break


@pytest.mark.parametrize("when", ["before", "after", "torn"])
@pytest.mark.parametrize("seed", range(2))
def test_power_loss_at_every_call(when: Literal["before", "after", "torn"], seed: int) -> None:
    for call in range(1, CALLS + 1):
        life = live_until(call, when, seed)
        life.host.lose_power()
        check_after_power_loss(life)


def test_power_loss_after_a_clean_stop_loses_nothing() -> None:
    for seed in range(10):
        life = Life(Host(disk=MemoryDisk()))
        life.host.disk.random.seed(seed)
        life.run()
        assert life.persisted
        life.host.lose_power()
        check_complete(life, life.host.writer())


def check_after_power_loss(life: Life) -> None:
    writer = life.host.writer()
    assert not writer.recovery.damaged
    if not writer.recovery.new_boot:
        # Nothing was there yet, or the clean stop had come far enough.
        check_complete(life, writer)
        check_goes_on(life, writer)
        return
    assert not life.persisted
    try:
        cursor = life.host.cursor()
    except JournalError:
        assert not life.registered
        return
    records = read_all(cursor)
    assert [record.kind for record in records] == [Kind.HOLE]
    assert records[0].arg0 >= 1
    assert all(records[0].sequence > sequence for sequence in life.taken)
    for position in life.positions:
        with pytest.raises(JournalError):
            cursor.seek(position)
    check_goes_on(life, writer)


def test_power_loss_again_during_recovery() -> None:
    for call in range(5, CALLS + 1, 37):
        recovery_call = 0
        ended = False
        while not ended:
            recovery_call += 1
            life = live_until(call, "after")
            life.host.lose_power()
            life.host.disk.die_at(life.host.disk.calls + recovery_call, "after")
            try:
                life.host.writer()
                ended = True
            except ProcessDied:
                life.persisted = False
            life.host.disk.heal()
            life.host.lose_power()
            check_after_power_loss(life)


def test_the_script_reaches_everything() -> None:
    """The life above is only worth its name if it rolls, spills, collects and stops."""
    life = Life(Host())
    life.run()
    log = life.host.disk.log
    for needed in (
        "append /disk/j/0",
        "append /memory/j/0",
        "unlink /memory/j/0",
        "unlink /disk/j/0",
        "replace",
    ):
        assert any(line.startswith(needed) for line in log), needed
