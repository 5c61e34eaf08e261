"""What a sender remembers of what its target may lack: what is folded, saved, and found again."""

import errno
from dataclasses import dataclass, field

import pytest
from kit.disk import MemoryDisk, memory_world

from replicator.mirror.order import Order
from replicator.ops import START, Kind, Position, Record
from replicator.repset import Filter, ReplicationSet, Rule, compile_filter
from replicator.sender.dirt import Dirt
from replicator.world import World

PATH = "/home/source/connection.dirt"


@dataclass
class FakeFlow:
    """As much of a flow as the dirt looks at."""

    filter: Filter
    index: int = 0
    journal_id: str = "journal"
    position: Position = START
    passed_wall_ns: int = 0
    order: Order = field(default_factory=Order)

    def stand_at(self, sequence: int, chain: int, passed_wall_ns: int) -> None:
        self.position, self.passed_wall_ns = Position(sequence, chain), passed_wall_ns


def flow(*rules: str) -> FakeFlow:
    repset = ReplicationSet("set", 1, tuple(Rule(path) for path in rules or ("/root",)))
    return FakeFlow(compile_filter(repset, b"/root"))


def record(kind: Kind, path: bytes, sequence: int, **fields: object) -> Record:
    empty = Record(kind, 0, sequence, 0, 0, 0, 1000 + sequence, 7, 0, 0, 0, path, b"", b"")
    return empty._replace(**fields)


def dirt_of(world: World, *flows: FakeFlow) -> Dirt:
    return Dirt(world, PATH, list(flows))  # type: ignore[arg-type]


def fold(dirt: Dirt, one: FakeFlow, *records: Record) -> None:
    for each in records:
        dirt.fold(one, each)  # type: ignore[arg-type]
        one.position = Position(each.sequence, each.sequence * 11)
        one.passed_wall_ns = each.wall_ns


def test_a_successor_finds_what_was_saved_and_stands_where_that_ends() -> None:
    disk = MemoryDisk()
    world = memory_world(disk)
    one = flow()
    dirt = dirt_of(world, one)
    dirt.begin(told="run")
    fold(dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"), record(Kind.UNLINK, b"gone", 2))
    assert dirt.changed and dirt.saved(one) == 0  # type: ignore[arg-type]
    assert dirt.save()
    assert not dirt.changed and dirt.saved(one) == 2  # type: ignore[arg-type]
    fold(dirt, one, record(Kind.CREATE, b"later", 3))
    disk.lose_power()
    other = flow()
    again = dirt_of(world, other)
    assert again.active and again.outstanding and again.told == "run" and again.sufficient
    assert other.position == Position(2, 22) and other.passed_wall_ns == 1002
    estimate = again.estimate()
    assert (estimate.files, estimate.directories) == (1, 1)
    again.require(other)  # type: ignore[arg-type]
    assert not other.order.everything_read()
    again.clear()
    assert not dirt_of(world, flow()).active


@pytest.mark.parametrize("call", range(1, 8))
def test_a_disk_that_refuses_leaves_the_former_file(call: int) -> None:
    disk = MemoryDisk()
    world = memory_world(disk)
    one = flow()
    dirt = dirt_of(world, one)
    dirt.begin()
    fold(dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"))
    disk.fail_at(call, errno.EIO, 1)
    saved = dirt.save()
    disk.heal()
    if not saved:
        assert dirt.saved(one) == 0 and dirt.changed  # type: ignore[arg-type]
    again = dirt_of(world, flow())
    assert again.active
    assert dirt.save() and dirt.saved(one) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [0, 7, 20, -1])
def test_a_damaged_file_is_none(cut: int) -> None:
    disk = MemoryDisk()
    world = memory_world(disk)
    one = flow()
    dirt = dirt_of(world, one)
    dirt.begin()
    fold(dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"))
    dirt.save()
    disk.damage(PATH, disk.contents(PATH)[:cut])
    assert not dirt_of(world, flow()).active


def test_what_does_not_belong_to_the_set_is_not_remembered() -> None:
    one = flow("/root/in")
    dirt = dirt_of(memory_world(MemoryDisk()), one)
    dirt.begin()
    fold(
        dirt,
        one,
        record(Kind.WRITE, b"out", 1, payload=b"x"),
        record(Kind.WRITE, b"in/file", 2, payload=b"x"),
    )
    assert dirt.estimate().files == 1
    fold(dirt, one, record(Kind.RENAME, b"in", 3, path2=b"elsewhere"))
    assert "root" in dirt.root_changed


def test_an_unknown_beginning_or_a_gap_needs_a_comparison() -> None:
    disk = MemoryDisk()
    world = memory_world(disk)
    one = flow()
    dirt = dirt_of(world, one)
    dirt.begin(known=False)
    fold(dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"))
    assert not dirt.sufficient and dirt.tells
    assert dirt.saved(one) == 1  # type: ignore[arg-type]  # nothing is kept for what a comparison finds
    assert not dirt_of(world, flow()).active
    dirt.begin()
    assert dirt.sufficient
    dirt.everything()
    assert not dirt.tells and not dirt_of(world, flow()).active


def test_the_time_of_the_first_operation_is_known() -> None:
    one = flow()
    dirt = dirt_of(memory_world(MemoryDisk()), one)
    one.passed_wall_ns = 500
    dirt.begin()
    assert dirt.distrust_wall_ns == 500
    one.passed_wall_ns = 0
    dirt.begin()
    fold(
        dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"), record(Kind.WRITE, b"file", 2, payload=b"x")
    )
    assert dirt.distrust_wall_ns == 1001


def test_what_is_skipped_while_a_mirror_runs_is_still_to_be_brought() -> None:
    one = flow()
    dirt = dirt_of(memory_world(MemoryDisk()), one)
    dirt.begin(known=False, told="run")
    dirt.skip()
    fold(dirt, one, record(Kind.WRITE, b"file", 1, payload=b"x"))
    dirt.brought()
    assert dirt.outstanding and dirt.sufficient
    dirt.bring()
    dirt.brought()
    assert not dirt.outstanding


def test_why() -> None:
    one = flow()
    dirt = dirt_of(memory_world(MemoryDisk()), one)
    assert dirt.why(one, b"file") == ""  # type: ignore[arg-type]
    dirt.begin()
    fold(
        dirt,
        one,
        record(Kind.WRITE, b"d/file", 1, payload=b"x"),
        record(Kind.MKDIR, b"tree", 2),
        record(Kind.UNLINK, b"e/gone", 3),
    )
    said = {path: dirt.why(one, path) for path in (b"d/file", b"d/other", b"tree/below", b"e/any")}  # type: ignore[arg-type]
    assert said[b"d/file"] == "1 regions of it are brought"
    assert said[b"d/other"] == ""
    assert said[b"tree/below"] == "all of tree is brought"
    assert said[b"e/any"] == "the names of its directory are brought"
