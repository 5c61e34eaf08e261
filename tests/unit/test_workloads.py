"""The checks of `kit.workloads` accept every prefix, and notice what came late, early or never."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.recording import Source
from kit.workloads import CHECKS, WORKLOADS

from replicator.errors import ReplicatorError
from replicator.fs.apply import Applier
from replicator.fs.beneath import Root
from replicator.ops import Kind, Record

ROUNDS = 15
NAMES = sorted(WORKLOADS)


@pytest.fixture(params=NAMES)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Record]]:
    """A workload's name, and its operations."""
    directory = tmp_path / "source"
    directory.mkdir()
    source = Source(directory)
    for _ in itertools.islice(WORKLOADS[request.param](source), ROUNDS):
        pass
    return request.param, source.records


def wrong_states(name: str, records: list[Record], target: Path) -> Iterator[list[str]]:
    """What is wrong after each operation that changed something, as a careless target applies them."""
    target.mkdir()
    root = Root(str(target))
    try:
        applier = Applier([(b"", root)])
        for record in records:
            try:
                applier.apply(record, tolerant=True)
            except (OSError, ReplicatorError):
                pass
            yield CHECKS[name](target)
    finally:
        root.close()


def test_every_prefix_is_accepted(recorded: tuple[str, list[Record]], tmp_path: Path) -> None:
    name, records = recorded
    assert not any(wrong_states(name, records, tmp_path / "target"))


@pytest.mark.parametrize("how", ["dropped", "swapped", "late"])
def test_a_broken_order_is_noticed(recorded: tuple[str, list[Record]], how: str, tmp_path: Path) -> None:
    name, records = recorded
    unnoticed = []
    # Not the first: the same state is a prefix of another run; not the last: nothing follows that would tell.
    chosen = range(8, min(len(records) - 8, 48))
    assert len(chosen) >= 15
    for index in chosen:
        broken = list(records)
        moved = broken.pop(index)
        if how != "dropped":
            broken.insert(index + (1 if how == "swapped" else 5), moved)
        target = tmp_path / f"target-{index}"
        if records[index + 1].kind == Kind.RMDIR:
            continue  # a tolerant target empties the directory by itself: nobody can see the difference
        if not any(wrong_states(name, broken, target)):
            unnoticed.append(f"{index}: {Kind(moved.kind).name} {moved.path!r}")
    assert not unnoticed
