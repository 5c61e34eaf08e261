"""What others change in a copy: as the kernel's events, as dirty maps of the source's paths, as reports."""

import struct
from pathlib import Path

import pytest
from kit.disk import MemoryDisk
from kit.recording import make_record

from replicator.agent.watch import Copy, copy_changes
from replicator.events import FOREIGN_CHANGES_HERE, NOT_WATCHED
from replicator.fs.foreign import (
    ATTRIBUTES,
    CREATE,
    DELETE,
    MODIFY,
    ON_DIRECTORY,
    OVERFLOW,
    Event,
    ForeignChange,
    Seen,
    events,
)
from replicator.mirror.order import Order
from replicator.mirror.requirements import require_foreign
from replicator.net.frames import Connect, JournalInfo, PathMap
from replicator.ops import RENAME_EXCHANGE, Flag, Kind
from replicator.queue.dirty import DirtyMap, Scope
from replicator.receiver.drift import Drift, moves
from replicator.receiver.drift_watch import dirty_map
from replicator.repset import ReplicationSet, Rule, compile_filter
from replicator.world import World

JOURNAL = "journal"
OWN, OTHER = 100, 200


# --- events of the kernel ---


def event(mask: int, name: bytes, process: int, handle: bytes = b"handle12") -> bytes:
    """As fanotify(7) describes them."""
    name = name + bytes(8 - len(name) % 8)
    info = struct.pack("=BBHQIi", 2, 0, 20 + len(handle) + len(name), 7, len(handle), 1) + handle + name
    return struct.pack("=IBBHQii", 24 + len(info), 3, 0, 24, mask, -1, process) + info


def test_events_of_this_process_are_passed_over() -> None:
    data = event(MODIFY, b"a", OWN) + event(CREATE, b"b", OTHER) + event(MODIFY, b"c", OWN)
    handle = struct.pack("=Ii", 8, 1) + b"handle12"
    assert list(events(data, {OWN})) == [Event(CREATE, 7, handle, b"b")]


def test_an_overflow_is_told_whoever_caused_it() -> None:
    overflow = struct.pack("=IBBHQii", 24, 3, 0, 24, OVERFLOW, -1, 0)
    (first, second) = events(overflow + event(DELETE, b"b", OTHER), {OWN})
    assert first.mask & OVERFLOW
    assert second.name == b"b"


def test_anything_may_have_changed_after_an_overflow_or_under_another_name() -> None:
    plain = ForeignChange(0, b"a", MODIFY)
    assert not Seen([plain], overflow=False).anything
    assert Seen([plain], overflow=True).anything
    assert Seen([plain, plain._replace(linked=True)], overflow=False).anything


# --- in terms of the source ---


def connect(*maps: tuple[int, bytes, bytes]) -> Connect:
    journals = tuple(JournalInfo(f"journal {i}", b"/source") for i in range(2))
    return Connect("c", "set", 1, "{}", journals, tuple(PathMap(*each) for each in maps))


def said(dirty: DirtyMap) -> dict[bytes, Scope]:
    return {entry.path: entry.scope for entry in dirty}


def test_each_kind_of_change_says_no_more_than_it_must() -> None:
    changes = [
        ForeignChange(0, b"dir/written", MODIFY),
        ForeignChange(0, b"dir/made", CREATE | MODIFY),
        ForeignChange(0, b"gone", DELETE | ON_DIRECTORY),
        ForeignChange(0, b"mode", ATTRIBUTES),
        ForeignChange(0, b"directory", ATTRIBUTES | ON_DIRECTORY),
    ]
    assert said(dirty_map(changes, connect((0, b"", b"/copy")), 0)) == {
        b"": Scope.NAMES,
        b"dir": Scope.NAMES,
        b"dir/written": Scope.WHOLE,
        b"dir/made": Scope.TREE,
        b"gone": Scope.TREE,
        b"mode": Scope.ATTRIBUTES,
        b"directory": Scope.ATTRIBUTES | Scope.DIRECTORY,
    }


def test_paths_are_mapped_back_by_the_longest_target_of_the_journal() -> None:
    maps = connect((0, b"www", b"/copies/www"), (0, b"www/logs", b"/copies/www/logs"), (1, b"", b"/db"))
    changes = [
        ForeignChange(0, b"index", MODIFY),
        ForeignChange(1, b"today", MODIFY),
        ForeignChange(0, b"logs/yesterday", MODIFY),
        ForeignChange(2, b"table", MODIFY),
    ]
    assert set(said(dirty_map(changes, maps, 0))) == {b"www/index", b"www/logs/today", b"www/logs/yesterday"}
    assert set(said(dirty_map(changes, maps, 1))) == {b"table"}


RULES = compile_filter(ReplicationSet("set", 1, (Rule("/source", True, True),)), b"/source")


def required(order: Order) -> tuple[list[bytes], list[bytes]]:
    """Paths, and directories whose names are, to be brought."""
    paths, names = [], []
    while (path := order.next_work()) is not None:
        paths.append(path)
    while (directory := order.next_names()) is not None:
        names.append(directory)
    return sorted(paths), sorted(names)


def test_names_of_others_go_only_if_they_are_to() -> None:
    changes = [ForeignChange(0, b"d/made", CREATE), ForeignChange(0, b"e", ATTRIBUTES | ON_DIRECTORY)]
    dirty = dirty_map(changes, connect((0, b"", b"/copy")), 0)
    keep, remove = Order(), Order()
    require_foreign(dirty, RULES, keep, remove=False)
    assert required(keep) == ([b"d/made", b"e"], [])
    require_foreign(dirty, RULES, remove, remove=True)
    assert required(remove) == ([b"d/made"], [b"d", b"e"])


# --- reports ---


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5_000_000_000
        self.boot = "one"

    def wall_ns(self) -> int:
        return self.now_ns

    def boot_id(self) -> str:
        return self.boot


@pytest.fixture
def world() -> World:
    disk = MemoryDisk()
    disk.makedirs("/target")
    return World(disk=disk, clock=Clock())  # type: ignore[arg-type]


def changed(*paths: bytes, scope: Scope = Scope.WHOLE) -> DirtyMap:
    dirty = DirtyMap()
    for path in paths:
        dirty.include(path, scope, 0)
    return dirty


def all_said(drift: Drift) -> set[bytes]:
    return {entry.path for report in drift.reports for entry in report.dirty or ()}


def test_reports_outlive_the_process_until_they_are_repaired(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"a"))
    drift.tell()
    drift.add(JOURNAL, changed(b"b"))
    first, second = (report.number for report in drift.reports)
    assert first < second
    successor = Drift(world, "/target")
    assert [r.number for r in successor.reports] == [first, second]
    assert successor.told == second  # whatever was gathered
    successor.repaired(first)
    assert all_said(successor) == all_said(Drift(world, "/target")) == {b"b"}
    successor.repaired(second)
    assert not successor.pending and not Drift(world, "/target").pending


def test_what_is_repaired_comes_again_if_power_is_lost_before_it_is_durable(world: World) -> None:
    drift = Drift(world, "/target")
    for path in (b"a", b"b", b"c"):
        drift.add(JOURNAL, changed(path))
        drift.tell()
    numbers = [report.number for report in drift.reports]
    drift.repaired(numbers[0])
    mark = drift.mark()
    drift.repaired(numbers[1])
    drift.settle(mark)  # a sync that began before the second was repaired
    world.clock.boot = "two"  # type: ignore[attr-defined]
    after = Drift(world, "/target")
    assert all_said(after) == {b"b", b"c"}
    assert min(report.number for report in after.reports) > numbers[2]  # its source has done with these


def test_what_is_not_told_yet_is_one_report(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"a"))
    drift.add(JOURNAL, changed(b"b"))
    assert len(drift.reports) == 1
    drift.tell()
    for number in range(50):
        drift.add(JOURNAL, changed(b"%d" % number))
        drift.tell()
    assert len(drift.reports) <= 9
    assert all_said(drift) == {b"a", b"b", *(b"%d" % number for number in range(50))}


def test_anything_takes_the_place_of_all_else(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"a"))
    drift.tell()
    assert drift.add(JOURNAL, None)
    drift.add(JOURNAL, changed(b"b"))
    assert [report.encoded for report in Drift(world, "/target").reports] == [b""]


def test_a_damaged_file_is_said(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"a"))
    world.disk.truncate("/target/drift", 10)
    damaged = Drift(world, "/target")
    assert damaged.damaged and not damaged.pending


@pytest.mark.parametrize("before", [True, False], ids=["applied before it is seen", "applied after it"])
@pytest.mark.parametrize(
    ("kind", "path", "path2", "arg0", "there"),
    [
        (Kind.RENAME, b"d/a", b"x", 0, {b"d/a", b"x"}),
        (Kind.RENAME, b"d", b"e", 0, {b"d/a", b"e/a"}),
        (Kind.RENAME, b"x", b"d", RENAME_EXCHANGE, {b"d/a", b"x/a"}),
        (Kind.RENAME, b"other", b"x", 0, {b"d/a"}),
        (Kind.LINK, b"d/a", b"x", 0, {b"d/a", b"x"}),
        (Kind.UNLINK, b"d/a", b"", 0, {b"d/a"}),
    ],
)
def test_names_are_followed(
    world: World, before: bool, kind: Kind, path: bytes, path2: bytes, arg0: int, there: set[bytes]
) -> None:
    drift = Drift(world, "/target")
    drift.watched = True
    record = make_record(kind, path, path2=path2, arg0=arg0)
    if not before:
        drift.add(JOURNAL, changed(b"d/a"))
        drift.looked()
    told = drift.told
    if moves(record):
        drift.follow(JOURNAL, record)
    if before:
        drift.add(JOURNAL, changed(b"d/a"))
    assert all_said(drift) == there
    if not before and len(there) > 1:
        assert drift.told > told  # at once: the source is about to repair the old name


def test_what_a_tree_covers_is_followed_out_of_it(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"d", scope=Scope.TREE))
    drift.follow(JOURNAL, make_record(Kind.RENAME, b"d/deep/file", path2=b"out"))
    assert all_said(drift) == {b"d", b"out"}


def test_an_operation_on_a_file_with_other_names_may_have_missed_them(world: World) -> None:
    drift = Drift(world, "/target")
    drift.add(JOURNAL, changed(b"a"))
    linked = make_record(Kind.WRITE, b"a", payload=b"x", flags=int(Flag.MULTILINK))
    assert not drift.follow(JOURNAL, linked._replace(path=b"b"))
    assert drift.follow(JOURNAL, linked)
    assert [report.dirty for report in drift.reports] == [None]


def test_too_many_operations_since_the_last_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.DRIFT_RECENT", 3)
    drift = Drift(world, "/target")
    drift.watched = True
    for number in range(4):
        drift.follow(JOURNAL, make_record(Kind.RENAME, b"x%d" % number, path2=b"y"))
    assert drift.add(JOURNAL, changed(b"a"))
    assert [report.dirty for report in drift.reports] == [None]


# --- events of the agent ---


def test_an_administrator_hears_of_it() -> None:
    before = Copy("uuid", "off", 2, "")
    assert list(copy_changes(before, Copy("uuid", "on", 2, ""), must_watch=True)) == []
    ((type_, fields),) = copy_changes(before, Copy("uuid", "on", 5, "a"), must_watch=False)
    assert (type_, fields["count"], fields["path"]) == (FOREIGN_CHANGES_HERE, 3, "a")
    ((_, fields),) = copy_changes(before, Copy("uuid", "on", 1, "b"), must_watch=False)
    assert fields["count"] == 1  # of a new process
    cannot = before._replace(watch="the file system of /copy does not tell of changes")
    assert list(copy_changes(before, cannot, must_watch=False)) == []
    ((type_, _),) = copy_changes(before, cannot, must_watch=True)
    assert type_ is NOT_WATCHED


def test_the_sample_configuration_knows_it(tmp_path: Path) -> None:
    from replicator.config import ConfigError, parse

    assert parse(b'[target]\nwatch = "off"\n', "x").target.watch == "off"
    with pytest.raises(ConfigError, match="auto"):
        parse(b'[target]\nwatch = "yes"\n', "x")
