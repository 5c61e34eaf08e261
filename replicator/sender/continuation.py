"""Where a stream goes on whose journal has begun a new row: after a loss of power, or damage.

Pure. The row begins with a HOLE. If that says what may have become different, on either side, since some
operation, a copy that has all up to that one needs nothing else.
"""

from replicator.ops import Kind, Position, Record
from replicator.status import TargetDataState


def is_exact(data_state: str, *, mirroring: bool, power_lost: bool) -> bool:
    """Whether a copy is what the journal up to its position says. No map tells of what else it lacks."""
    return data_state == TargetDataState.OK and not mirroring and not power_lost


def goes_on_at(
    received: int, start: tuple[Position, Record] | None, covered: int, *, exact: bool
) -> Position | None:
    """The position before the HOLE that brings what is different; None: everything has to be compared.

    `received`: sequence of the last record the copy has. `start`: the beginning of the present row, and its
    first record. `covered`: of this reader, see `Header.covered_sequence`. `exact`: see `is_exact`.
    """
    if start is None or not exact:
        return None
    position, hole = start
    tells = hole.kind == Kind.HOLE and hole.arg1 > 0
    if not tells or not 0 < covered <= position.sequence:
        return None
    return position if hole.arg1 - 1 <= received < position.sequence else None
