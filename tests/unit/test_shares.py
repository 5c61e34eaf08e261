"""How recoveries share a host: the table of speeds, and of priorities."""

import pytest

from replicator.shares import SPEEDS, Priority, Speed, shares

C, H, R, L = Priority.CRITICAL, Priority.HIGH, Priority.REGULAR, Priority.LOW


@pytest.mark.parametrize(
    ("speed", "priorities", "busy", "expected"),
    [
        # One recovery: the speed alone, whatever its priority.
        (Speed.NONE, [R], False, [0.0]),
        (Speed.NONE, [C, L], True, [0.0, 0.0]),
        (Speed.LOW, [R], True, [0.25]),
        (Speed.LOW, [R], False, [0.5]),
        (Speed.NORMAL, [R], True, [0.5]),
        (Speed.NORMAL, [L], True, [0.5]),
        (Speed.NORMAL, [C], False, [1.0]),
        (Speed.HIGH, [R], True, [0.75]),
        (Speed.HIGH, [R], False, [1.0]),
        (Speed.MAXIMUM, [R], True, [1.0]),
        (Speed.MAXIMUM, [R], False, [1.0]),
        # Several: each priority half as much as the one above it.
        (Speed.MAXIMUM, [C, H, R, L], False, [1.0, 0.5, 0.25, 0.125]),
        (Speed.MAXIMUM, [L, R], True, [0.5, 1.0]),
        (Speed.NORMAL, [C, L], True, [0.5, 0.0625]),
        (Speed.NORMAL, [R, R], True, [0.5, 0.5]),
        # More than work beside each other: they share that.
        (Speed.LOW, [R] * 4, True, [0.125] * 4),
        (Speed.NORMAL, [R] * 4, True, [0.5] * 4),
        (Speed.NORMAL, [R] * 8, True, [0.25] * 8),
        (Speed.NORMAL, [C, *[H] * 14], False, [0.5, *[0.25] * 14]),
        (Speed.MAXIMUM, [R] * 100, True, [1.0] * 100),
        (Speed.NORMAL, [], True, []),
    ],
)
def test_shares(speed: Speed, priorities: list[Priority], busy: bool, expected: list[float]) -> None:
    assert shares(speed, priorities, busy=busy) == pytest.approx(expected)


def test_the_steps_are_those_an_administrator_knows() -> None:
    """Five, each faster than the one before; normal is half of the maximum."""
    busy = [SPEEDS[speed].busy for speed in Speed]
    assert busy == sorted(set(busy)) and len(busy) == 5
    assert SPEEDS[Speed.MAXIMUM].busy == 2 * SPEEDS[Speed.NORMAL].busy == 4 * SPEEDS[Speed.LOW].busy
    assert all(step.quiet >= step.busy for step in SPEEDS.values())


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("speed", [speed for speed in Speed if speed is not Speed.NONE])
def test_nobody_waits_for_another(speed: Speed, busy: bool) -> None:
    assert all(part > 0.01 for part in shares(speed, [C, C, H, R, L], busy=busy))
