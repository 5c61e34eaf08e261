"""What a dirty map makes a mirror bring, within the rules of a set."""

import pytest
from kit.dirty_model import record

from replicator.mirror.requirements import Requirement, requirements
from replicator.ops import Flag, Identity, Kind, Record
from replicator.queue.dirty import DirtyMap
from replicator.repset import Filter, ReplicationSet, Rule, compile_filter

MOUNT = b"/srv/data"
WRITE = record(Kind.WRITE, b"d/f", payload=b"x", inode=7)
NEW = record(Kind.CREATE, b"d/e/new", inode=8)
LINKED = record(Kind.WRITE, b"d/l", payload=b"x", inode=9, flags=Flag.MULTILINK)
MODE = record(Kind.SETATTR, b"d/m", inode=10)


def whole() -> Filter:
    return rules(Rule("/srv/data", True, True))


def rules(*given: Rule) -> Filter:
    return compile_filter(ReplicationSet(name="set", generation=1, rules=given), MOUNT)


def needed(rules: Filter, *lost: Record) -> set[Requirement]:
    dirty = DirtyMap()
    for one in lost:
        dirty.fold(one)
    return set(requirements(dirty, rules))


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ([WRITE], {Requirement(b"d/f", Identity(7, 0))}),
        ([MODE], {Requirement(b"d/m")}),
        ([NEW], {Requirement(b"d/e"), Requirement(b"d/e/new", Identity(8, 0))}),
        ([record(Kind.RMDIR, b"d/e/g")], {Requirement(b"d/e")}),
        ([record(Kind.DOUBT, b"d/x")], {Requirement(b"d/x")}),
        ([LINKED], {Requirement(b""), Requirement(b"d/l", Identity(9, 0))}),
        ([record(Kind.HOLE, b"")], {Requirement(b"")}),
    ],
)
def test_the_whole_mount(lost: list[Record], expected: set[Requirement]) -> None:
    assert needed(whole(), *lost) == expected


def test_only_what_belongs_to_the_set() -> None:
    some = rules(Rule("/srv/data/d", True, True), Rule("/srv/data/d/e", False, True))
    assert needed(some, WRITE, NEW) == {Requirement(b"d/f", Identity(7, 0))}
    assert needed(some, record(Kind.WRITE, b"x", payload=b"x", inode=7)) == set()
    assert needed(some, record(Kind.HOLE, b"")) == {Requirement(b"d")}
    assert needed(some, record(Kind.UNLINK, b"x")) == {Requirement(b"d")}  # names beside the root
    assert needed(some, LINKED) == {Requirement(b"d"), Requirement(b"d/l", Identity(9, 0))}


def test_nothing_below_a_required_directory_but_what_was_touched() -> None:
    lost = [record(Kind.UNLINK, b"d/x"), MODE, WRITE]
    assert needed(whole(), *lost) == {Requirement(b"d"), Requirement(b"d/f", Identity(7, 0))}
