"""The dirty map, entry by entry. `tests/property/test_dirty_map.py` has the model."""

import random
import tracemalloc
from array import array

import pytest
from kit.dirty_model import record

from replicator import limits
from replicator.ops import NO_IDENTITY, RENAME_EXCHANGE, Flag, Identity, Kind, Record
from replicator.queue import dirty_codec, regions
from replicator.queue.dirty import CorruptDirtyMap, Dirty, DirtyMap, Scope

NAMES, FILES, TREE, WHOLE = Scope.NAMES, Scope.FILES, Scope.TREE, Scope.WHOLE
ATTRIBUTES, DIRECTORY, LINKED = Scope.ATTRIBUTES, Scope.DIRECTORY, Scope.LINKED
KIB, MIB = 1024, 1024 * 1024


def folded(*records: Record, limit: int = limits.DIRTY_MAP_BYTES) -> DirtyMap:
    found = DirtyMap(limit)
    for one in records:
        found.fold(one)
    return found


def write(path: bytes, offset: int, length: int, inode: int = 5, flags: int = 0) -> Record:
    return record(Kind.WRITE, path, payload=bytes(length), arg0=offset, inode=inode, flags=flags)


def shown(found: DirtyMap) -> list[tuple[bytes, Scope]]:
    return [(entry.path, entry.scope) for entry in found]


def test_a_new_map_is_empty() -> None:
    found = DirtyMap()
    assert found.is_empty
    assert list(found) == []
    assert list(DirtyMap.decode(found.encode())) == []


def test_writes_become_regions() -> None:
    found = folded(write(b"d/f", 100, 10), write(b"d/f", 4090, 10), write(b"d/f", 40960, 1))
    assert list(found) == [Dirty(b"d/f", Scope(0), Identity(5, 0), ((0, 8192), (40960, 45056)))]
    assert not found.is_empty


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (record(Kind.TRUNCATE, b"f", arg0=5000), (4096, regions.END)),
        (record(Kind.FALLOCATE, b"f", arg0=5000, arg1=1, payload=b"\0\0\0\0"), (4096, 8192)),
        (record(Kind.FALLOCATE, b"f", arg0=5000, arg1=1, payload=b"\3\0\0\0"), (4096, 8192)),
        (record(Kind.FALLOCATE, b"f", arg0=5000, arg1=1, payload=b"\x08\0\0\0"), (4096, regions.END)),
        (record(Kind.FALLOCATE, b"f", arg0=5000, arg1=1, payload=b""), (4096, regions.END)),
        (write(b"f", (1 << 64) - 1, 5), (regions.END - 4096, regions.END)),
    ],
)
def test_where_other_operations_reach(operation: Record, expected: tuple[int, int]) -> None:
    assert [entry.regions for entry in folded(operation)] == [(expected,)]


@pytest.mark.parametrize("kind", [Kind.SETATTR, Kind.SETXATTR, Kind.REMOVEXATTR])
def test_attributes(kind: Kind) -> None:
    found = folded(record(kind, b"d", flags=Flag.DIRECTORY), record(kind, b"d/f", inode=7))
    assert list(found) == [
        Dirty(b"d", ATTRIBUTES | DIRECTORY, NO_IDENTITY),
        Dirty(b"d/f", ATTRIBUTES, Identity(7, 0)),
    ]


def test_new_objects() -> None:
    found = folded(
        record(Kind.CREATE, b"a/f", inode=3),
        record(Kind.MKDIR, b"a/d", inode=4, flags=Flag.DIRECTORY),
        write(b"a/f", 0, 10),
        write(b"a/d/x", 0, 10),
        record(Kind.LINK, b"z/old", path2=b"b/new", inode=9),
    )
    assert shown(found) == [
        (b"a", NAMES),
        (b"a/d", TREE),
        (b"a/f", WHOLE),
        (b"b", NAMES),
        (b"b/new", WHOLE),
        (b"z/old", LINKED),
    ]
    found.fold(record(Kind.LINK, b"a/f", path2=b"b/newer", inode=8))
    assert shown(found)[-2:] == [(b"b/newer", WHOLE), (b"z/old", LINKED)]


def test_what_is_removed_has_no_entry() -> None:
    found = folded(write(b"a/f", 0, 1), record(Kind.UNLINK, b"a/f"), write(b"b/c/f", 0, 1))
    assert shown(found) == [(b"a", NAMES), (b"b/c/f", Scope(0))]
    found.fold(record(Kind.REMOVE_TREE, b"b/c"))
    found.fold(record(Kind.RMDIR, b"a", flags=Flag.DIRECTORY))
    assert shown(found) == [(b"", NAMES), (b"b", NAMES)]


def test_a_rename_moves_all_below() -> None:
    found = folded(write(b"a/d/f", 0, 1), write(b"b/e", 0, 1))
    found.fold(record(Kind.RENAME, b"a/d", path2=b"b/e", flags=Flag.DIRECTORY, inode=4))
    assert shown(found) == [(b"a", NAMES), (b"b", NAMES), (b"b/e", TREE)]
    found.fold(record(Kind.RENAME, b"b/e/g", path2=b"h", inode=8))
    assert shown(found) == [(b"", NAMES), (b"a", NAMES), (b"b", NAMES), (b"b/e", TREE), (b"h", WHOLE)]


def test_an_exchange_concerns_both() -> None:
    found = folded(record(Kind.RENAME, b"a", path2=b"b", arg0=RENAME_EXCHANGE))
    assert shown(found) == [(b"", NAMES), (b"a", TREE), (b"b", TREE)]


def test_what_a_tree_covers_changes_nothing() -> None:
    found = folded(record(Kind.DOUBT, b"d"), write(b"d/f", 0, 1), record(Kind.MKDIR, b"d/e/g"))
    assert list(found) == [Dirty(b"d", TREE, NO_IDENTITY)]
    found.fold(record(Kind.DOUBT, b"d/x"))
    found.fold(record(Kind.RMDIR, b"d", flags=Flag.DIRECTORY))
    found.fold(record(Kind.MKDIR, b"d"))
    found.fold(write(b"d/f", 0, 1))
    assert shown(found) == [(b"", NAMES), (b"d", TREE)]
    found.fold(record(Kind.RMDIR, b"d", flags=Flag.DIRECTORY))
    found.fold(record(Kind.CREATE, b"d"))
    found.fold(write(b"d", 0, 1))
    assert shown(found) == [(b"", NAMES), (b"d", WHOLE)]


def test_doubt_of_two_paths() -> None:
    assert shown(folded(record(Kind.DOUBT, b"d", path2=b"e"))) == [(b"d", TREE), (b"e", TREE)]


@pytest.mark.parametrize("kind", [Kind.HOLE, Kind.FRAME, 39])
def test_what_is_not_known_is_everything(kind: Kind) -> None:
    found = folded(write(b"f", 0, 1, flags=Flag.MULTILINK), record(kind, b""), write(b"g", 0, 1))
    assert found.is_everything
    assert list(found) == [Dirty(b"", TREE, NO_IDENTITY)]


def test_a_hole_that_says_what_was_lost() -> None:
    inner = folded(write(b"d/f", 0, 1))
    found = folded(write(b"d/f", 8192, 1), record(Kind.HOLE, b"", payload=inner.encode()))
    assert [entry.regions for entry in found] == [((0, 4096), (8192, 12288))]
    found.fold(record(Kind.HOLE, b"", payload=inner.encode()[:-1]))
    assert found.is_everything


def test_a_file_with_several_names_is_kept_by_identity() -> None:
    flags = Flag.MULTILINK
    found = folded(write(b"d/f", 0, 1, 7, flags), write(b"e/g", 8192, 1, 7, flags))
    found.fold(record(Kind.UNLINK, b"e/g", inode=7, flags=flags))
    linked = Dirty(b"e/g", LINKED, Identity(7, 0), ((0, 4096), (8192, 12288)))
    assert list(found) == [Dirty(b"e", NAMES, NO_IDENTITY), linked]
    found.fold(record(Kind.DOUBT, b"d"))  # its other name may be elsewhere
    assert linked in list(found)
    found.fold(record(Kind.UNLINK, b"d/f", inode=7))  # the last one
    assert shown(found) == [(b"d", TREE), (b"e", NAMES)]


def test_a_new_file_with_the_same_inode_is_another() -> None:
    found = folded(write(b"f", 0, 1, 7, Flag.MULTILINK), record(Kind.CREATE, b"d/new", inode=7))
    assert shown(found) == [(b"d", NAMES), (b"d/new", WHOLE)]


def folded_for_either(*records: Record) -> DirtyMap:
    found = DirtyMap(either=True)
    for one in records:
        found.fold(one)
    return found


def test_old_names_stay_where_either_side_may_be_ahead() -> None:
    found = folded_for_either(
        write(b"a/f", 0, 1),
        record(Kind.UNLINK, b"a/f"),
        record(Kind.RENAME, b"b/old", path2=b"b/new"),
        record(Kind.RENAME, b"c", path2=b"d", flags=Flag.DIRECTORY),
        record(Kind.RMDIR, b"e", flags=Flag.DIRECTORY),
    )
    assert shown(found) == [
        (b"", NAMES),
        *((b"a", NAMES), (b"a/f", WHOLE)),
        *((b"b", NAMES), (b"b/new", WHOLE), (b"b/old", WHOLE)),
        *((b"c", TREE), (b"d", TREE), (b"e", TREE)),
    ]


def test_a_file_with_several_names_is_known_by_one_that_was_not_touched() -> None:
    flags = Flag.MULTILINK
    found = folded_for_either(
        record(Kind.LINK, b"f", path2=b"g", inode=7, flags=flags), write(b"g", 0, 1, 7, flags)
    )
    assert shown(found) == [(b"", NAMES), (b"g", WHOLE), (b"f", LINKED)]


def test_losses_do_not_tell_of_old_names() -> None:
    found = folded_for_either(record(Kind.HOLE, b"", payload=folded(write(b"f", 0, 1)).encode()))
    assert found.is_everything


def test_a_file_that_appears_with_all_it_holds() -> None:
    assert shown(folded(record(Kind.FILE, b"d/f", inode=7))) == [(b"d", NAMES), (b"d/f", WHOLE)]


def test_several_names_without_identity_are_everything() -> None:
    assert folded(write(b"f", 0, 1, 0, Flag.MULTILINK)).is_everything


def test_directories_come_before_what_is_in_them() -> None:
    chance = random.Random(1)
    paths = [
        b"/".join(chance.choice((b"a", b"b", b"c.d", b"c")) for _ in range(chance.randrange(1, 6)))
        for _ in range(99)
    ]
    found = DirtyMap()
    for path in paths:
        found.fold(record(Kind.SETATTR, path, flags=Flag.DIRECTORY))
    order = [entry.path for entry in found]
    for index, path in enumerate(order):
        assert all(not below.startswith(path + b"/") for below in order[:index])
    assert sorted(order) == sorted(set(paths))


def test_a_very_deep_path() -> None:
    path = b"/".join([b"x"] * 2047)
    found = folded(write(path, 0, 1))
    assert [entry.path for entry in found] == [path]
    assert list(DirtyMap.decode(found.encode())) == list(found)
    found.fold(record(Kind.DOUBT, b"x"))
    assert shown(found) == [(b"x", TREE)]


def test_estimate() -> None:
    found = folded(
        write(b"f", 0, 8192),
        record(Kind.TRUNCATE, b"g", arg0=4096),
        record(Kind.CREATE, b"d/h"),
        record(Kind.DOUBT, b"t"),
        record(Kind.SETATTR, b"x", flags=Flag.DIRECTORY),
        write(b"l", 0, 1, 9, Flag.MULTILINK),
    )
    estimate = found.estimate()
    assert estimate == (4, 8192 + 4096, 1, 1)


# --- the limit ---


def test_regions_with_the_smallest_gaps_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRTY_REGIONS", 4)
    blocks = [0, 10, 12, 100, 300]
    found = folded(*(write(b"f", 4096 * block, 1) for block in blocks))
    assert [len(entry.regions) for entry in found] == [2]
    ((start, middle), (last, end)) = next(iter(found)).regions
    assert (start, middle, last, end) == (0, 101 * 4096, 300 * 4096, 301 * 4096)


def test_equal_gaps_are_not_all_joined() -> None:
    bounds = array("Q", [4096 * n for n in range(40)])
    assert len(regions.thinned(bounds, 7)) == 14
    assert len(regions.thinned(bounds, 1)) == 2
    assert regions.thinned(bounds, 20) is bounds


def test_a_small_file_becomes_whole_before_a_large_one() -> None:
    found = DirtyMap(20_000)
    for block in range(0, 8 * 20, 8):
        found.fold(write(b"big", 20 * MIB + 4096 * block, 1))
    number = 0
    while not found.coarsened:
        number += 1
        found.fold(write(b"d/small%d" % number, 0, 1))
    scopes = dict(shown(found))
    assert not scopes[b"big"]
    assert {WHOLE, FILES} & set(scopes.values())


def test_it_becomes_coarser_step_by_step() -> None:
    chance = random.Random(2)
    operations = [write(b"%d/%d/%d" % (n % 3, n % 20, n), 4096 * chance.randrange(9), 1) for n in range(300)]
    seen = []
    for limit in (200_000, 100_000, 60_000, 20_000, 2_000, 300):
        found = folded(*operations, limit=limit)
        assert found.cost_bytes <= limit or found.is_everything
        seen.append({scope for _, scope in shown(found)})
    assert seen[0] == {Scope(0)}
    assert FILES in seen[-3] or TREE in seen[-3]
    assert seen[-1] == {TREE}


def test_the_cost_is_what_it_takes_in_memory() -> None:
    """Within a factor: never less than it takes, and not three times as much."""
    chance = random.Random(3)
    records = [
        write(b"home/%d/%d" % (n % 500, n), 4096 * chance.randrange(1 << 20), 1, n + 2) for n in range(8000)
    ]
    records += [
        write(b"base/%d" % (n % 20), 4096 * chance.randrange(1 << 20), 1, n % 20) for n in range(8000)
    ]
    records += [write(b"links/%d" % n, 0, 1, n + 9999, Flag.MULTILINK) for n in range(2000)]
    records += [record(Kind.CREATE, b"new/%d/%d" % (n % 50, n), inode=n) for n in range(2000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = folded(*records)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert not found.coarsened
    assert taken < found.cost_bytes * 1.1
    assert found.cost_bytes < 3 * taken


def test_decoding_costs_no_more_than_the_limit() -> None:
    found = DirtyMap(64 * MIB)
    for number in range(20_000):
        found.fold(record(Kind.CREATE, b"%d" % number, inode=number))
    data = found.encode()
    tracemalloc.start()
    try:
        small = DirtyMap.decode(data, 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000
    assert small.cost_bytes <= 100_000


# --- bytes ---


def test_round_trip() -> None:
    found = folded(
        write(b"d/f", 0, 1),
        write(b"d/f", 90_000, 1),
        record(Kind.CREATE, b"d/n\xff", inode=(1 << 64) - 1),
        record(Kind.DOUBT, b"x"),
        record(Kind.SETATTR, b"", flags=Flag.DIRECTORY),
        write(b"l", 0, 1, 9, Flag.MULTILINK),
        record(Kind.SETATTR, b"m", inode=10, generation=3, flags=Flag.MULTILINK),
    )
    again = DirtyMap.decode(found.encode())
    assert list(again) == list(found)
    assert again.cost_bytes == found.cost_bytes


def item(path: bytes, scope: int, bounds: list[int] | None = None) -> bytes:
    return dirty_codec.encode([(path, scope, 0, array("Q", bounds) if bounds else None)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RDM\x01",
        item(b"a/../b", 8),
        item(b"a//b", 8),
        item(b"/a", 8),
        item(b"a\0", 8),
        item(b".", 8),
        item(b"a", 0),
        item(b"a", 128),
        item(b"a", DIRECTORY),
        item(b"a", NAMES | WHOLE),
        item(b"a", TREE | NAMES),
        item(b"a", WHOLE, [0, 4096]),
        item(b"a", 0, [0, 4095]),
        item(b"a", 0, [4096, 4096]),
        item(b"a", 0, [0, 4096, 8192]),
        item(b"a", 0, [0, regions.END + 4096]),
        item(b"x" * (limits.PATH_BYTES + 1), 8),
    ],
)
def test_what_is_no_map(data: bytes) -> None:
    with pytest.raises(CorruptDirtyMap):
        DirtyMap.decode(data)


def test_only_an_exact_entry_is_discarded() -> None:
    found = folded(write(b"d/f", 0, 1), record(Kind.CREATE, b"d/g"))
    names, whole = [entry for entry in found if entry.path != b"d/f"]
    (region,) = [entry for entry in found if entry.path == b"d/f"]
    found.fold(write(b"d/f", 8192, 1))
    assert not found.discard(region)  # more has come to it since
    assert found.discard(names)
    assert not found.discard(names)
    assert found.discard(whole)
    assert [entry.path for entry in found] == [b"d/f"]
    assert found.discard(next(iter(found)))
    assert found.is_empty
