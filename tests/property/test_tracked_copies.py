"""One fold from a durable mark on serves every copy that a target can have beyond it: exact at any operation
in between, or, after a loss of power, any mixture of all that was in between.
"""

import random
from collections.abc import Callable

import pytest
from kit.dirty_model import Flat, Model, random_steps, recover

from replicator.ops import Kind, Record
from replicator.queue.dirty import DirtyMap

LIMITS = (700, 2500, 8000, 1_000_000)


def any_of_them(states: list[Flat], chance: random.Random) -> Flat:
    """Exact, as at one moment."""
    return dict(chance.choice(states))


def a_mixture(states: list[Flat], chance: random.Random) -> Flat:
    """Each path as it was at some moment, if its directory is there."""
    mixed: Flat = {}
    for path in sorted({path for state in states for path in state}):
        found = chance.choice(states).get(path)
        parent = path.rpartition(b"/")[0]
        if path and mixed.get(parent, (0, ()))[1] is not None:
            continue
        if not path:
            found = states[-1][b""] if found is None else found
        if found is not None:
            mixed[path] = found
    return mixed


Copy = Callable[[list[Flat], random.Random], Flat]


def check(seed: int, copy_of: Copy, fold: Callable[[DirtyMap, Record], None] = DirtyMap.fold) -> None:
    chance = random.Random(seed)
    model = Model()
    for step in random_steps(chance, chance.randrange(60)):
        model.step(step)
    dirty_map = DirtyMap(chance.choice(LIMITS))
    states = [model.flat()]
    for step in random_steps(chance, chance.randrange(40), calm=chance.random() < 0.3):
        for operation in model.step(step):
            fold(dirty_map, operation)
        states.append(model.flat())
    sent = chance.randrange(len(states)) + 1
    copy = copy_of(states[:sent], chance)
    recover(dirty_map, model, copy)
    assert copy == model.flat(), seed


@pytest.mark.parametrize("copy_of", [any_of_them, a_mixture])
def test_the_copy_becomes_equal(copy_of: Copy) -> None:
    for seed in range(1500):
        check(seed, copy_of)


def _no_old_names(dirty_map: DirtyMap, operation: Record) -> None:
    if operation.kind != Kind.UNLINK:
        dirty_map.fold(operation)


def _no_attributes(dirty_map: DirtyMap, operation: Record) -> None:
    if operation.kind != Kind.SETATTR:
        dirty_map.fold(operation)


@pytest.mark.parametrize("wrong", [_no_old_names, _no_attributes])
def test_planted_mistakes_are_found(wrong: Callable[[DirtyMap, Record], None]) -> None:
    with pytest.raises(AssertionError):
        for seed in range(300):
            check(seed, any_of_them, wrong)
