"""When something is due again."""

import pytest

from replicator.errors import UsageError
from replicator.schedules import Schedule, every_text, next_after, parse_every, parse_start


@pytest.mark.parametrize(
    ("every_s", "now", "expected"),
    [
        (0.0, 5.0, 10.0),
        (0.0, 10.0, None),
        (60.0, 9.9, 10.0),
        (60.0, 10.0, 70.0),
        (60.0, 69.9, 70.0),
        (60.0, 70.0, 130.0),
        (60.0, 10.0 + 5 * 60 + 1, 10.0 + 6 * 60),  # what was missed is not made up for one by one
    ],
)
def test_next(every_s: float, now: float, expected: float | None) -> None:
    assert next_after(Schedule(first=10.0, every_s=every_s), now) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30 minutes", 1800), ("1 hour", 3600), ("12h", 43200), ("2 days", 172800), ("5m", 300)],
)
def test_interval(text: str, seconds: float) -> None:
    assert parse_every(text) == seconds
    assert parse_every(every_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "often", "0 minutes", "-1 hours", "1 week", "5"])
def test_no_interval(text: str) -> None:
    with pytest.raises(UsageError):
        parse_every(text)


def test_start() -> None:
    assert parse_start("now", 17.0) == 17.0
    assert parse_start("2026-03-01 02:00", 0.0) - parse_start("2026-03-01T01:00:00", 0.0) == 3600
    with pytest.raises(UsageError):
        parse_start("tomorrow", 0.0)
