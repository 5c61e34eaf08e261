"""Where a stream goes on whose journal has begun a new row."""

import pytest

from replicator.ops import Kind, Position, Record
from replicator.queue.recovery import row_start
from replicator.sender.continuation import goes_on_at, is_exact

START = Position(row_start(3), 77)
BEFORE = row_start(2)


def hole(since: int, kind: Kind = Kind.HOLE) -> Record:
    """`since`: of the first operation it tells of; 0: of nobody knows which."""
    return Record(kind, 0, START.sequence + 1, 0, 0, 0, 0, 0, 0, 1, since, b"", b"", b"")


@pytest.mark.parametrize(
    ("received", "record", "covered", "exact", "goes_on"),
    [
        (BEFORE + 9, hole(BEFORE + 10), BEFORE + 1, True, True),
        (BEFORE + 99, hole(BEFORE + 10), BEFORE + 1, True, True),
        (BEFORE + 9, hole(1), 1, True, True),  # of a row before the last one
        (0, hole(1), 1, True, True),
        (BEFORE + 8, hole(BEFORE + 10), BEFORE + 1, True, False),  # lacks one that is cold
        (BEFORE + 9, hole(0), BEFORE + 1, True, False),  # nobody knows
        (BEFORE + 9, hole(BEFORE + 10), 0, True, False),  # has what the storage had not
        (BEFORE + 9, hole(BEFORE + 10), START.sequence + 1, True, False),  # found out too late
        (BEFORE + 9, hole(BEFORE + 10), BEFORE + 1, False, False),
        (START.sequence + 1, hole(BEFORE + 10), BEFORE + 1, True, False),  # of this row, and not found in it
        (BEFORE + 9, hole(BEFORE + 10, Kind.WRITE), BEFORE + 1, True, False),
    ],
)
def test_where_it_goes_on(received: int, record: Record, covered: int, exact: bool, goes_on: bool) -> None:
    found = goes_on_at(received, (START, record), covered, exact=exact)
    assert found == (START if goes_on else None)


def test_a_row_whose_start_is_gone() -> None:
    assert goes_on_at(BEFORE, None, 1, exact=True) is None


def test_which_copies_are_exact() -> None:
    assert is_exact("OK", mirroring=False, power_lost=False)
    assert not is_exact("OK", mirroring=True, power_lost=False)
    assert not is_exact("OK", mirroring=False, power_lost=True)
    assert not is_exact("Mirror Required", mirroring=False, power_lost=False)
