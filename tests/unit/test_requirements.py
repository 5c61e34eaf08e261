"""What a dirty map has an order ask for, within the rules of a set."""

from collections.abc import Iterable

import pytest
from kit.dirty_model import record

from replicator.mirror.order import Order
from replicator.mirror.patches import TO_END
from replicator.mirror.requirements import concerns, require_dirty
from replicator.ops import Flag, Identity, Kind, Record
from replicator.queue.dirty import DirtyMap
from replicator.repset import Filter, ReplicationSet, Rule, compile_filter

MOUNT = b"/srv/data"
WRITE = record(Kind.WRITE, b"d/f", payload=b"x", inode=7)
CUT = record(Kind.TRUNCATE, b"d/f", arg0=5000, inode=7)
NEW = record(Kind.CREATE, b"d/e/new", inode=8)
LINKED = record(Kind.WRITE, b"d/l", payload=b"x", inode=9, flags=Flag.MULTILINK)
LINK = record(Kind.LINK, b"d/f", path2=b"d/e/l", inode=7, flags=Flag.MULTILINK)
MODE = record(Kind.SETATTR, b"d/m", inode=10)
DIRECTORY_MODE = record(Kind.SETATTR, b"d", inode=11, flags=Flag.DIRECTORY)


class Asked(Order):
    """An order that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[tuple[object, ...]] = set()

    def require(self, path: bytes, *, touched: Identity | None = None) -> None:
        self.asked.add(("path", path))

    def require_replaced(self, path: bytes) -> None:
        self.asked.add(("replaced", path))

    def require_names(self, directory: bytes) -> None:
        self.asked.add(("names", directory))

    def require_files(self, directory: bytes) -> None:
        self.asked.add(("files", directory))

    def require_unnamed(self, identity: Identity) -> None:
        self.asked.add(("unnamed", identity.inode))

    def require_regions(
        self,
        path: bytes,
        identity: Identity,
        regions: Iterable[tuple[int, int]] = (),
        *,
        multilink: bool = True,
    ) -> None:
        self.asked.add(("regions", path, identity.inode, tuple(regions), multilink))


def whole() -> Filter:
    return rules(Rule("/srv/data", True, True))


def rules(*given: Rule) -> Filter:
    return compile_filter(ReplicationSet(name="set", generation=1, rules=given), MOUNT)


def asked(rules: Filter, *lost: Record, in_place: bool = True) -> set[tuple[object, ...]]:
    dirty = DirtyMap()
    for one in lost:
        dirty.fold(one)
    order = Asked()
    require_dirty(dirty, rules, order, in_place=in_place)
    return order.asked


REGIONS = ("regions", b"d/f", 7, ((0, 4096),), False)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ([WRITE], {REGIONS}),
        ([CUT], {("regions", b"d/f", 7, ((4096, TO_END),), False)}),
        ([MODE], {("regions", b"d/m", 10, (), False)}),
        ([DIRECTORY_MODE], {("names", b"d")}),
        ([NEW], {("names", b"d/e"), ("replaced", b"d/e/new")}),
        ([record(Kind.RMDIR, b"d/e/g")], {("names", b"d/e")}),
        ([record(Kind.DOUBT, b"d/x")], {("replaced", b"d/x")}),
        ([LINKED], {("regions", b"d/l", 9, ((0, 4096),), True)}),
        ([LINK], {("names", b"d/e"), ("replaced", b"d/e/l"), ("regions", b"d/f", 7, (), False)}),
        ([record(Kind.HOLE, b"")], {("replaced", b"")}),
    ],
)
def test_the_whole_mount(lost: list[Record], expected: set[tuple[object, ...]]) -> None:
    assert asked(whole(), *lost) == expected


def test_all_files_of_a_directory() -> None:
    dirty = DirtyMap()
    dirty.add(b"d", 2)
    order = Asked()
    require_dirty(dirty, whole(), order)
    assert order.asked == {("files", b"d")}


def test_only_what_belongs_to_the_set() -> None:
    some = rules(Rule("/srv/data/d", True, True), Rule("/srv/data/d/e", False, True))
    assert asked(some, WRITE, NEW) == {REGIONS}
    assert asked(some, record(Kind.WRITE, b"x", payload=b"x", inode=7)) == set()
    assert asked(some, record(Kind.HOLE, b"")) == {("replaced", b"d")}
    assert asked(some, record(Kind.UNLINK, b"x")) == set()  # a name beside the root
    outside = LINKED._replace(path=b"x")
    assert asked(some, outside) == {("unnamed", 9)}
    assert asked(some, LINK._replace(path=b"x", path2=b"y")) == set()


def test_what_concerns_the_set() -> None:
    some = rules(Rule("/srv/data/d", True, True))
    dirty = DirtyMap()
    dirty.fold(WRITE._replace(path=b"x"))
    assert not concerns(dirty, some)
    dirty.fold(WRITE)
    assert concerns(dirty, some)


def test_a_copy_that_may_differ_elsewhere_gets_whole_files() -> None:
    assert asked(whole(), WRITE, MODE, in_place=False) == {("replaced", b"d/f"), ("path", b"d/m")}
    assert asked(whole(), LINKED, in_place=False) == {("unnamed", 9)}
