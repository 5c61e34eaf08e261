"""A dirty map against a model: whatever happened, copying just what the map names makes the copy equal."""

import random
from array import array
from collections.abc import Callable

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.dirty_model import CALM, Flat, Model, Step, changes_names, random_steps, record, recover

from replicator import limits
from replicator.errors import JournalError
from replicator.ops import Kind, Record
from replicator.queue import dirty_codec, regions
from replicator.queue.dirty import CorruptDirtyMap, DirtyMap, Scope
from replicator.queue.dirty_entry import CHILDREN_BYTES, NODE_BYTES, Node, bounds_cost

LIMITS = (100, 700, 1500, 2500, 4000, 8000, 1_000_000)
NUMBER = st.integers(0, 999)
STEPS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=60)
CALM_STEPS = st.lists(st.tuples(st.sampled_from(CALM), NUMBER, NUMBER, NUMBER), max_size=60)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRTY_REGIONS", 4)
    monkeypatch.setattr(limits, "DIRTY_LARGE_BYTES", 40 * 1024)


def check(before: list[Step], lost: list[Step], limit: int, hole_every: int) -> None:
    """Some steps the copy has; then some it has not. `hole_every`: so many are told by a HOLE, from time to
    time.
    """
    model = Model()
    for step in before:
        model.step(step)
    copy = model.flat()
    dirty_map = DirtyMap(limit)
    hole = DirtyMap(limit)
    for number, step in enumerate(lost):
        inside = hole_every and number // hole_every % 2
        for operation in model.step(step):
            (hole if inside else dirty_map).fold(operation)
        if not inside and not hole.is_empty:
            dirty_map.fold(record(Kind.HOLE, b"", payload=hole.encode()))
            hole = DirtyMap(limit)
        check_cost(dirty_map)
    dirty_map.merge(hole)
    check_cost(dirty_map)
    check_codec(dirty_map)
    recover(dirty_map, model, copy)
    assert copy == model.flat()


def at_point(before: list[Step], window: list[Step], count: int, lost: set[int]) -> Model:
    """After so many steps of the window. `lost`: numbers of steps whose content or attributes were lost."""
    model = Model()
    for step in before:
        model.step(step)
    for number, step in enumerate(window[:count]):
        model.values = 1000 * (number + 1)  # a step does the same whatever others were lost
        if changes_names(step) or number not in lost:
            model.step(step)
    return model


def check_either(before: list[Step], window: list[Step], limit: int, chance: random.Random) -> None:
    """Source and copy each at some point of a window; either may have lost contents as a disk does."""
    found = DirtyMap(limit, either=True)
    model = at_point(before, [], 0, set())
    for number, step in enumerate(window):
        model.values = 1000 * (number + 1)
        for operation in model.step(step):
            found.fold(operation)
        check_cost(found)
    check_codec(found)
    sides = []
    for _ in range(2):
        share = chance.choice((0, 0, 0.3, 1))
        lost = {number for number in range(len(window)) if chance.random() < share}
        sides.append(at_point(before, window, chance.randrange(len(window) + 1), lost))
    source, copy = sides[0], sides[1].flat()
    check_contract(found, source.flat(), copy)
    recover(found, source, copy)
    assert copy == source.flat()


def check_contract(found: DirtyMap, *sides: Flat) -> None:
    """What is not said to be another object is the same one on both sides, so it is there."""
    for path, scope, _, _ in found:
        if scope & (Scope.TREE | Scope.LINKED):
            continue
        is_directory = bool(scope & (Scope.NAMES | Scope.FILES | Scope.DIRECTORY))
        for side in sides:
            assert (path in side) or scope & Scope.WHOLE
            assert path not in side or (side[path][1] is None) == is_directory


def check_random_either(chance: random.Random, limit: int) -> None:
    before = random_steps(chance, chance.randrange(120))
    window = random_steps(chance, chance.randrange(chance.choice((10, 200))), calm=chance.random() < 0.3)
    check_either(before, window, limit, chance)


def check_random(chance: random.Random, limit: int) -> None:
    before = random_steps(chance, chance.randrange(120))
    lost = random_steps(chance, chance.randrange(chance.choice((10, 200))), calm=chance.random() < 0.5)
    check(before, lost, limit, chance.choice((0, 0, 1, 5)))


def check_cost(found: DirtyMap) -> None:
    links = sum(
        NODE_BYTES + CHILDREN_BYTES + bounds_cost(node.bounds) + len(path)
        for node, path in found.links.values()
    )
    assert found.cost_bytes == found.weigh(found.root) + links
    assert found.cost_bytes <= max(found.limit_bytes, NODE_BYTES) or found.is_everything
    if found.is_everything:
        assert [entry.scope for entry in found] == [Scope.TREE]


def check_codec(found: DirtyMap) -> None:
    data = found.encode()
    assert len(data) <= dirty_codec.HEADER_BYTES + found.cost_bytes
    decoded = DirtyMap.decode(data, 10**9)
    assert list(decoded) == list(found)
    assert decoded.encode() == data


@settings(max_examples=400, deadline=None)
@given(STEPS, STEPS | CALM_STEPS, st.sampled_from(LIMITS), st.sampled_from((0, 0, 1, 3)))
def test_what_the_map_names_makes_the_copy_equal(
    before: list[Step], lost: list[Step], limit: int, hole_every: int
) -> None:
    check(before, lost, limit, hole_every)


@pytest.mark.parametrize("seed", range(8))
def test_many_steps(seed: int) -> None:
    chance = random.Random(seed)
    for limit in LIMITS:
        for _ in range(12):
            check_random(chance, limit)


@settings(max_examples=400, deadline=None)
@given(STEPS, STEPS | CALM_STEPS, st.sampled_from(LIMITS), st.randoms(use_true_random=False))
def test_either_side_may_be_ahead(
    before: list[Step], window: list[Step], limit: int, chance: random.Random
) -> None:
    check_either(before, window, limit, chance)


@pytest.mark.parametrize("seed", range(8))
def test_either_side_may_be_ahead_by_many_steps(seed: int) -> None:
    chance = random.Random(seed)
    for limit in LIMITS:
        for _ in range(12):
            check_random_either(chance, limit)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from(LIMITS), st.randoms(use_true_random=False))
def test_a_repaired_entry_can_be_discarded_and_nothing_else_goes(
    lost: list[Step], limit: int, chance: random.Random
) -> None:
    found = DirtyMap(limit)
    model = Model()
    for step in random_steps(chance, 30):
        model.step(step)
    for step in lost:
        for operation in model.step(step):
            found.fold(operation)
    entries = list(found)
    chance.shuffle(entries)
    while entries:
        entry = entries.pop()
        assert found.discard(entry)
        assert not found.discard(entry)
        check_cost(found)
        assert sorted(found) == sorted(entries)
    assert found.is_empty
    assert found.cost_bytes == DirtyMap().cost_bytes


@settings(max_examples=300, deadline=None)
@given(STEPS, NUMBER, st.integers(0, 255), st.binary(max_size=40))
def test_damage_is_seen(lost: list[Step], place: int, value: int, more: bytes) -> None:
    found = DirtyMap(10**6)
    model = Model()
    for step in lost:
        for operation in model.step(step):
            found.fold(operation)
    data = bytearray(found.encode())
    entries = list(found)
    cut = bytes(data[: place % len(data)])
    for wrong in (cut, bytes(data) + more + b"\1"):
        with pytest.raises(CorruptDirtyMap):
            DirtyMap.decode(wrong)
    data[place % len(data)] ^= value or 1
    with pytest.raises(CorruptDirtyMap):
        DirtyMap.decode(bytes(data))
    assert list(found) == entries


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.sampled_from((100, 5000)))
def test_hostile_entries_with_a_right_checksum(body: bytes, limit: int) -> None:
    try:
        found = DirtyMap.decode(with_checksum(body), limit)
    except JournalError:
        return
    check_cost(found)
    assert list(DirtyMap.decode(found.encode(), limit)) == list(found)


SCOPE = st.sampled_from([1, 2, 3, 4, 8, 16, 48, 49, 64, 72, 80, 0])
PART = st.tuples(
    SCOPE, st.sampled_from([b"", b"a", b"b", b"a/b", b"a/b/c", b"a//b", b".."]), st.integers(0, 3)
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PART, max_size=12), st.sampled_from(LIMITS))
def test_contradictory_entries_are_covered(parts: list[tuple[int, bytes, int]], limit: int) -> None:
    """Two kinds of object at one path and the like: no writer of ours, but nothing may break, or be less."""
    entries = []
    for scope, path, count in parts:
        file_like = not scope & ~int(Scope.ATTRIBUTES | Scope.LINKED)
        bounds = array("Q", (4096 * n for n in range(1, 2 * count + 1))) if file_like and count else None
        entries.append((path, scope, 7 * count, bounds))
    data = dirty_codec.encode(entries)
    try:
        found = DirtyMap.decode(data, limit)
    except CorruptDirtyMap:
        return
    check_cost(found)
    covered = {entry.path: entry for entry in found if not entry.scope & Scope.LINKED}
    for path, scope, _, _ in entries:
        above = [path[:end] for end in range(len(path)) if path[end : end + 1] == b"/"]
        trees = [p for p in (b"", *above, path) if p in covered and covered[p].scope & Scope.TREE]
        files = covered.get(path.rpartition(b"/")[0])
        if scope & Scope.LINKED:
            assert found.is_everything or any(e.scope & Scope.LINKED for e in found)
        elif not trees and not (files is not None and files.scope & Scope.FILES and not scope & 35):
            assert path in covered


def with_checksum(body: bytes) -> bytes:
    empty = dirty_codec.encode(())
    return empty[:8] + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + body


# --- planted mistakes ---


class Deaf(dict[bytes, object]):
    """A cache of files that is never told that something has gone."""

    def clear(self) -> None:
        pass

    def pop(self, *_: object) -> None:  # type: ignore[override]
        pass


def _rename_forgets_the_new_name(self: DirtyMap, operation: Record) -> None:
    self._lost_name(operation.path, int(Scope.WHOLE))
    self._lost_name(operation.path2, int(Scope.WHOLE))


def _rename_covers_one_side(self: DirtyMap, operation: Record) -> None:
    right_rename(self, operation._replace(arg0=0))


def _forgets_names(self: DirtyMap, path: bytes, scope: int) -> None:
    self._detach(path)


def _files_unsaid(self: DirtyMap, node: Node) -> None:
    right_make_files(self, node)
    node.scope &= ~int(Scope.FILES)


def _thinned_by_dropping(bounds: "array[int]", intervals: int) -> "array[int]":
    return bounds[: 2 * intervals]


def _rounded_down(offset: int, length: int) -> tuple[int, int]:
    return offset & -4096, max(offset + length & -4096, (offset & -4096) + 4096)


def _no_links(self: DirtyMap, identity: int, path: bytes) -> object:
    return self._file(path, identity)


def _merge_without_links(self: DirtyMap, other: DirtyMap) -> None:
    for path, node in other.walk():
        if node.says_something:
            self.include(path, node.scope, node.identity, node.bounds)


def _covered_by_less(self: DirtyMap, node: Node) -> None:
    """A directory becomes a tree, and what only its own names were does not."""
    right_make_tree(self, node)
    node.scope = int(Scope.NAMES | Scope.FILES)


def _link_keeps_no_name(self: DirtyMap, path: bytes, scope: int, identity: int) -> None:
    if scope == Scope.TREE:
        right_new_name(self, path, scope, identity)
    else:
        self._lost_name(path, scope)
        self.add(path, int(Scope.ATTRIBUTES), identity)


right_rename = DirtyMap._rename
right_make_files = DirtyMap.make_files
right_make_tree = DirtyMap.make_tree
right_new_name = DirtyMap._new_name
right_init = DirtyMap.__init__


def _deaf(self: DirtyMap, limit_bytes: int = limits.DIRTY_MAP_BYTES, *, either: bool = False) -> None:
    right_init(self, limit_bytes, either=either)
    self._hot = Deaf()  # type: ignore[assignment]


PLANTED: list[tuple[str, object, str, Callable[..., object]]] = [
    ("a rename forgets its new name", DirtyMap, "_rename", _rename_forgets_the_new_name),
    ("an exchange covers one side", DirtyMap, "_rename", _rename_covers_one_side),
    ("a removal forgets the directory", DirtyMap, "_lost_name", _forgets_names),
    ("all files become none", DirtyMap, "make_files", _files_unsaid),
    ("surplus regions are dropped", regions, "thinned", _thinned_by_dropping),
    ("a region ends too early", regions, "rounded", _rounded_down),
    ("files with several names are taken for others", DirtyMap, "_linked", _no_links),
    ("a merge passes over those", DirtyMap, "merge", _merge_without_links),
    ("a tree is only its first level", DirtyMap, "make_tree", _covered_by_less),
    ("a new name is not whole", DirtyMap, "_new_name", _link_keeps_no_name),
    ("the cache of files is not told", DirtyMap, "__init__", _deaf),
]


@pytest.mark.parametrize(("where", "name", "wrong"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_planted_mistakes_are_found(
    where: object, name: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, wrong)
    chance = random.Random(1)
    with pytest.raises((AssertionError, KeyError)):
        for _ in range(400):
            check_random(chance, chance.choice(LIMITS))


def _old_names_forgotten(self: DirtyMap, path: bytes, scope: int) -> None:
    either, self._either = self._either, False
    right_lost_name(self, path, scope)
    self._either = either


def _old_names_stay_files(self: DirtyMap, path: bytes, scope: int) -> None:
    right_lost_name(self, path, int(Scope.WHOLE))


right_lost_name = DirtyMap._lost_name


@pytest.mark.parametrize("wrong", [_old_names_forgotten, _old_names_stay_files])
def test_planted_mistakes_about_old_names_are_found(
    wrong: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirtyMap, "_lost_name", wrong)
    chance = random.Random(1)
    with pytest.raises((AssertionError, KeyError)):
        for _ in range(400):
            check_random_either(chance, chance.choice(LIMITS))
