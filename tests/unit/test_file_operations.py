"""The random operations on files, and what is found with them: planted mistakes must not go unnoticed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.file_exerciser import Exerciser
from kit.file_operations import CHANGES, SIZE_MAX, History, Kind, Operation, between

WRITING = {Kind.WRITE, Kind.APPEND, Kind.WRITE_DIRECT, Kind.STORE}


def states(seed: int, count: int) -> list[list[bytes]]:
    """What the files hold after 0, 1, ... operations."""
    history = History(seed)
    found = []
    for _ in range(count + 1):
        found.append([bytes(content) for content in history.contents])
        history.step()
    return found


def test_the_same_seed_gives_the_same_states_and_all_kinds() -> None:
    history, kinds = History(5), set()
    for _ in range(1000):
        kinds.add(history.next.kind)
        history.step()
        assert all(len(content) <= SIZE_MAX for content in history.contents)
    assert kinds == set(Kind)
    assert [bytes(content) for content in history.contents] == states(5, 1000)[-1]


def test_each_state_is_found_in_turn() -> None:
    chance, history, last = random.Random(1), History(1), 0
    found = states(1, 600)
    for number in sorted(chance.sample(range(600), 60)):
        place = history.find(found[number], 600)
        assert last <= place <= number
        assert found[number] in (found[place], found[place + 1])  # done, or at work and nearly done
        last = place


def test_an_operation_at_work_is_no_mistake() -> None:
    before = states(1, 200)
    history, halves = History(1), 0
    while history.number < 200:
        one, other = (
            before[history.number],
            before[history.number + 1] if history.number < 200 else before[-1],
        )
        which = history.next.file
        if (
            history.next.kind == Kind.WRITE
            and len(one[which]) == len(other[which])
            and history.next.length > 4096
        ):
            half = history.next.start + history.next.length // 2
            partly = list(one)
            partly[which] = other[which][:half] + one[which][half:]
            assert History(1).find(partly, 201) <= history.number
            halves += 1
        history.step()
    assert halves


def test_a_lost_change_is_found() -> None:
    """All operations but one, up to the next write to another file: what that wrote was nowhere before."""
    tried = 0
    for number in range(40, 200):
        history = History(2)
        while history.number < number:
            history.step()
        before, lost = [bytes(content) for content in history.contents], history.next.file
        history.step()
        after = [bytes(content) for content in history.contents]
        while history.next.kind not in CHANGES:
            history.step()
        if after == before or history.next.file == lost or history.next.kind not in WRITING:
            continue
        history.step()
        found = [bytes(content) for content in history.contents]
        found[lost] = before[lost]
        with pytest.raises(AssertionError, match="no state"):
            History(2).find(found, history.number - 1)
        tried += 1
    assert tried > 20


def test_a_state_of_before_is_not_found_again() -> None:
    history, found = History(3), states(3, 300)
    history.find(found[300], 300)
    with pytest.raises(AssertionError, match="no state"):
        history.find(found[100], 300)


def test_between() -> None:
    assert between(b"aabb", b"aaaa", b"bbbb")
    assert not between(b"aabx", b"aaaa", b"bbbb")
    assert between(b"aa\0", b"aa", b"aabb")
    assert not between(b"a", b"aa", b"aabb")
    assert not between(b"aabbb", b"aa", b"aabb")


@pytest.mark.parametrize("kind", [Kind.APPEND, Kind.TRUNCATE, Kind.PUNCH, Kind.STORE, Kind.COPY])
def test_the_exerciser_notices_what_was_not_done(kind: Kind, tmp_path: Path) -> None:
    exerciser = Exerciser(tmp_path / "files", 4)
    nothing: Callable[[Operation], None] = lambda operation: None  # noqa: E731
    exerciser._perform[kind] = nothing
    try:
        with pytest.raises(AssertionError) as caught:
            for _ in range(300):
                exerciser.step()
    finally:
        exerciser.close()
    assert f"Kind.{kind.name}:" in caught.value.__notes__[0]
