"""What is hot against a model: whatever either side lost, copying what the notes name makes both equal."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.dirty_model import CALM, Flat, Model, Step, changes_names, random_steps, recover

from replicator import limits
from replicator.ops import Kind, Record
from replicator.queue import hot
from replicator.queue.dirty import DirtyMap
from replicator.queue.hot import HotSet

NUMBER = st.integers(0, 999)
STEPS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=60)
CALM_STEPS = st.lists(st.tuples(st.sampled_from(CALM), NUMBER, NUMBER, NUMBER), max_size=60)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "_SHIFT", 12)
    monkeypatch.setattr(limits, "ACTIVITY_REGIONS", 2)


def at_point(before: list[Step], window: list[Step], count: int, lost: set[int]) -> Model:
    """After so many steps of the window, without the contents and attributes of those that are `lost`."""
    model = Model()
    for step in before:
        model.step(step)
    for number, step in enumerate(window[:count]):
        model.values = 1000 * (number + 1)
        if changes_names(step) or number not in lost:
            model.step(step)
    return model


def noted(before: list[Step], window: list[Step], forget_every: int) -> Iterator[Record]:
    """What is noted of a window; from time to time another file is begun."""
    known = HotSet()
    model = at_point(before, [], 0, set())
    for number, step in enumerate(window):
        model.values = 1000 * (number + 1)
        if forget_every and number % forget_every == 0:
            known.clear()
        for operation in model.step(step):
            length = len(operation.payload)
            if not known.covers(operation.kind, operation.path, operation.flags, operation.arg0, length):
                yield from known.notes(operation)


def check(before: list[Step], window: list[Step], chance: random.Random) -> int:
    found = DirtyMap(either=True)
    count = 0
    for note in noted(before, window, chance.choice((0, 0, 7, 30))):
        found.fold(note)
        count += 1
    sides = []
    for _ in range(2):
        share = chance.choice((0, 0, 0.3, 1))
        lost = {number for number in range(len(window)) if chance.random() < share}
        sides.append(at_point(before, window, chance.randrange(len(window) + 1), lost))
    source = sides[0]
    copy: Flat = sides[1].flat()
    recover(found, source, copy)
    assert copy == source.flat()
    return count


def check_random(chance: random.Random) -> None:
    before = random_steps(chance, chance.randrange(120))
    check(before, random_steps(chance, chance.randrange(200), calm=chance.random() < 0.3), chance)


@settings(max_examples=400, deadline=None)
@given(STEPS, STEPS | CALM_STEPS, st.randoms(use_true_random=False))
def test_what_is_noted_makes_both_sides_equal(
    before: list[Step], window: list[Step], chance: random.Random
) -> None:
    check(before, window, chance)


@pytest.mark.parametrize("seed", range(8))
def test_many_steps(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        check_random(chance)


def test_what_is_hot_is_not_noted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACTIVITY_REGIONS", 64)
    chance = random.Random(3)
    before = random_steps(chance, 100)
    window = random_steps(chance, 100)
    model = at_point(before, [], 0, set())
    known = HotSet()
    operations = [operation for step in window for operation in model.step(step)]
    assert [note for operation in operations for note in known.notes(operation)]
    again = [note for operation in operations for note in known.notes(operation)]
    assert all(note.kind == Kind.DOUBT for note in again)


# --- planted mistakes ---


def _rename_forgets_the_old_name(self: HotSet, operation: Record) -> Iterator[Record]:
    for note in right_rename(self, operation):
        yield note._replace(kind=Kind.CREATE, path=note.path2, path2=b"")


def _any_region(self: HotSet, kind: int, path: bytes, flags: int, offset: int, length: int) -> bool:
    return kind == Kind.WRITE and path in self._known


def _one_region_of_many(operation: Record, first: int, last: int) -> Record:
    return right_region(operation, first, first)


def _directory_is_a_file(self: HotSet, path: bytes) -> bool:
    return path in self._known


def _links_by_path(self: HotSet, operation: Record, offset: int, length: int) -> Iterator[Record]:
    return right_content(self, operation._replace(flags=0), offset, length)


right_rename, right_region, right_content = HotSet._rename, hot._region, HotSet._content
PLANTED = [
    ("a rename forgets its old name", HotSet, "_rename", _rename_forgets_the_old_name),
    ("one region is taken for all", HotSet, "covers", _any_region),
    ("a long range is its first region", hot, "_region", _one_region_of_many),
    ("a file is taken for a tree", HotSet, "_is_tree", _directory_is_a_file),
    ("files with several names are taken for others", HotSet, "_content", _links_by_path),
]


@pytest.mark.parametrize(("where", "name", "wrong"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_planted_mistakes_are_found(
    where: object, name: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, wrong)
    chance = random.Random(1)
    with pytest.raises((AssertionError, KeyError)):
        for _ in range(600):
            check_random(chance)
