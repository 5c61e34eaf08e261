"""The disk tier of a journal moves: nothing is lost, whatever interrupts it."""

import errno
import itertools
from pathlib import Path
from typing import Literal

import pytest
from kit.disk import ProcessDied
from kit.journals import JOURNAL, READER, Host, append, contents, read_all, small, write

from replicator.agent.queue_places import Place, QueuePlaces
from replicator.queue import moving, segment
from replicator.queue.cursor import Cursor
from replicator.queue.journal import JournalWriter
from replicator.queue.settings import JournalSettings

Operation = tuple[int, bytes, bytes]
FORMER, NEW = "/disk/j", "/other/j"
SETTINGS = small(memory_bytes=1100)
MEMORY = SETTINGS.memory_directory
MOVED = JournalSettings(MEMORY, NEW, SETTINGS.segment_bytes, SETTINGS.memory_bytes, disk_free_min_bytes=0)


def filled(count: int = 22) -> tuple[Host, JournalWriter, list[Operation]]:
    """A journal with segments in both tiers, and somebody who reads it."""
    host = Host(settings=SETTINGS)
    writer = host.writer()
    host.cursor(create=True).close()
    operations = [write(b"path/%d" % number, 40, number) for number in range(count)]
    for operation in operations:
        assert append(writer, operation)
    assert len(segments_in(host, FORMER)) > 3
    return host, writer, operations


def segments_in(host: Host, directory: str) -> list[str]:
    return [path for path in host.disk.paths(directory) if path.endswith(segment.SUFFIX)]


def check_moved(host: Host, operations: list[Operation]) -> None:
    writer = JournalWriter.open(host.world, MOVED, JOURNAL)
    assert not writer.recovery.damaged and not writer.recovery.new_boot
    cursor = Cursor.open(host.world, MOVED, JOURNAL, READER)
    assert contents(read_all(cursor)) == operations
    assert append(writer, write(b"on", 10))
    cursor.close()


@pytest.mark.parametrize("persist", [True, False], ids=["stopped", "killed"])
def test_a_journal_goes_on_elsewhere(persist: bool) -> None:
    host, writer, operations = filled()
    if persist:
        writer.close(persist=True)
        host.reboot()
    else:
        host.kill()
    moving.copy(host.disk, FORMER, NEW)
    assert host.disk.paths(FORMER), "until the new place counts, the former one does"
    assert moving.finish(host.disk, NEW) == FORMER
    assert host.disk.paths(FORMER) == []
    assert moving.finish(host.disk, NEW) == ""
    check_moved(host, operations)


def test_what_is_copied_ahead_is_not_copied_again() -> None:
    host, writer, operations = filled()
    moving.copy(host.disk, FORMER, NEW, in_use=True)
    closed = segments_in(host, NEW)
    assert len(closed) == len(segments_in(host, FORMER)) - 1
    operations += [write(b"later/%d" % number, 40) for number in range(12)]
    for operation in operations[-12:]:
        assert append(writer, operation)
    host.kill()
    host.disk.log.clear()
    moving.copy(host.disk, FORMER, NEW)
    assert not any(path in entry for path in closed for entry in host.disk.log if entry.startswith("replace"))
    moving.finish(host.disk, NEW)
    check_moved(host, operations)


def test_what_was_removed_meanwhile_does_not_come_back() -> None:
    host, writer, operations = filled()
    moving.copy(host.disk, FORMER, NEW, in_use=True)
    cursor = host.cursor()
    read_all(cursor)
    cursor.acknowledge(18)
    cursor.close()
    writer.collect()
    begin = int(writer._segments[0].first_sequence)
    host.kill()
    moving.copy(host.disk, FORMER, NEW)
    names = {path.rpartition("/")[2] for path in host.disk.paths(FORMER)}
    assert {path.rpartition("/")[2] for path in host.disk.paths(NEW)} == names | {moving.MARKER}
    moving.finish(host.disk, NEW)
    assert begin > 5
    check_moved(host, operations[18:])


class Owner:
    """Moves as an agent does; each call is one by another agent, after the one before has ended."""

    def __init__(self, host: Host, path: Path) -> None:
        self.host, self.path = host, str(path)
        self.places.settle("j", Place(MEMORY, FORMER))

    @property
    def places(self) -> QueuePlaces:
        return QueuePlaces(self.path, self.host.disk)

    def settle(self) -> None:
        self.places.settle("j", Place(MEMORY, NEW))

    @property
    def directory(self) -> str:
        return self.places.of("j", Place(MEMORY, "")).disk


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_death_at_every_call(when: Literal["before", "after", "torn"], tmp_path: Path) -> None:
    for call in itertools.count(1):
        host, _, operations = filled()
        host.kill()
        owner = Owner(host, tmp_path / str(call))
        host.disk.die_at(host.disk.calls + call, when)
        try:
            owner.settle()
        except ProcessDied:
            host.disk.die()
            owner.settle()
            assert owner.directory == NEW
            assert host.disk.paths(FORMER) == []
            check_moved(host, operations)
        else:
            assert call > 30
            break


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_failures_at_every_call(error: int, tmp_path: Path) -> None:
    """It stays where it was, complete, or it is in its new place."""
    stayed = 0
    for call in itertools.count(1):
        host, _, operations = filled()
        host.kill()
        owner = Owner(host, tmp_path / str(call))
        first = host.disk.calls
        host.disk.fail_at(first + call, error)
        try:
            owner.settle()
        except OSError:
            stayed += 1
            host.disk.heal()
            assert owner.directory == FORMER
            assert segments_in(host, NEW) == []
            writer = host.writer()
            assert contents(read_all(host.cursor())) == operations
            writer.close(persist=False)
        ended = host.disk.calls < first + call
        host.disk.heal()
        owner.settle()  # tried again, or tidied up
        assert owner.directory == NEW and host.disk.paths(FORMER) == []
        check_moved(host, operations)
        if ended:
            break
    assert stayed > 10


def test_memory_that_is_in_use_stays(tmp_path: Path) -> None:
    host, _, _ = filled()
    host.kill()
    owner = Owner(host, tmp_path / "places.json")
    elsewhere = Place("/memory/elsewhere", FORMER)
    header = f"{MEMORY}/header"  # shared pages are no files of the simulated disk
    host.disk.close(host.disk.open_append(header))
    assert not owner.places.settle("j", elsewhere)
    assert owner.places.of("j", elsewhere) == Place(MEMORY, FORMER)
    host.disk.unlink(header)
    owner.places.settle("j", elsewhere)
    assert owner.places.of("j", Place("a", "b")) == elsewhere
    owner.places.keep_only(set())
    assert owner.places.of("j", Place("a", "b")) == Place("a", "b")
