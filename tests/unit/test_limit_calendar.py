"""Which limit of a calendar holds, and until when."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from replicator.errors import UsageError
from replicator.limit_calendar import LimitEntry, check, in_force, parse_days

BERLIN = ZoneInfo("Europe/Berlin")
WORK = ("mo", "tu", "we", "th", "fr")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


DTCL = [  # each holds until the next fires
    LimitEntry(label="day", days=WORK, start="08:00", limit="1 MB/s"),
    LimitEntry(label="night", days=WORK, start="18:00", limit="unlimited"),
]
SPANS = [
    LimitEntry(label="office", days=WORK, start="08:00", end="18:00", limit="1 MB/s"),
    LimitEntry(label="lunch", days=WORK, start="12:00", end="13:00", limit="5 MB/s"),
    LimitEntry(label="weekend", days=("fr",), start="22:00", end="04:00", limit="10 MB/s"),
]


@pytest.mark.parametrize(
    ("entries", "now", "label", "until"),
    [
        (DTCL, "2026-12-01 07:59:59", "night", "2026-12-01 08:00"),  # a Tuesday
        (DTCL, "2026-12-01 08:00", "day", "2026-12-01 18:00"),
        (DTCL, "2026-12-04 18:00", "night", "2026-12-07 08:00"),  # over the weekend
        (DTCL, "2026-12-06 12:00", "night", "2026-12-07 08:00"),
        (SPANS, "2026-12-01 07:00", None, "2026-12-01 08:00"),
        (SPANS, "2026-12-01 11:00", "office", "2026-12-01 12:00"),
        (SPANS, "2026-12-01 12:30", "lunch", "2026-12-01 13:00"),
        (SPANS, "2026-12-01 13:00", "office", "2026-12-01 18:00"),
        (SPANS, "2026-12-05 03:00", "weekend", "2026-12-05 04:00"),
        (SPANS, "2026-12-05 04:00", None, "2026-12-07 08:00"),
        ([], "2026-12-01 08:00", None, None),
    ],
)
def test_in_force(entries: list[LimitEntry], now: str, label: str | None, until: str | None) -> None:
    found = in_force(entries, at(now), BERLIN)
    assert (found.entry.label if found.entry else None) == label
    assert found.until == (at(until) if until else None)


def test_every_hour_of_a_year_has_the_limit_of_its_time_of_day() -> None:
    """Also on the days on which clocks are set."""
    now, end = at("2026-01-01 00:00"), at("2027-01-01 00:00")
    while now < end:
        local = datetime.fromtimestamp(now, BERLIN)
        office = local.weekday() < 5 and 8 <= local.hour < 18 and local.hour != 12
        found = in_force(SPANS, now, BERLIN)
        assert (found.entry is not None and found.entry.label == "office") is office, local
        assert found.until is not None and found.until > now
        now += 4 * 3600 if local.month not in (3, 10) else 3600


def test_an_hour_that_is_missing_or_doubled() -> None:
    entries = [LimitEntry(label="early", start="02:30", end="03:30", limit="1 MB/s")]
    # It does not exist on 29 March: from 03:00 on. On 25 October it is two hours long, and begins once.
    assert in_force(entries, at("2026-03-29 01:00"), BERLIN).until == at("2026-03-29 03:00")
    begins = at("2026-10-25 02:30")
    assert in_force(entries, begins, BERLIN) == (entries[0], begins + 7200)


@pytest.mark.parametrize(
    ("text", "days"),
    [("", ()), ("all", ()), ("mo,Tuesday", ("mo", "tu")), ("Sunday, sa", ("sa", "su"))],
)
def test_days(text: str, days: tuple[str, ...]) -> None:
    assert parse_days(text) == days


def test_refused() -> None:
    with pytest.raises(UsageError):
        parse_days("m")
    for wrong in (
        [LimitEntry(label="a", start="8", limit="1")],
        [LimitEntry(label="a", start="08:00", end="08:00", limit="1")],
        [LimitEntry(label="a", days=("never",), start="08:00", limit="1")],
        [LimitEntry(label="", start="08:00", limit="1")],
        [LimitEntry(label="two\nlines", start="08:00", limit="1")],  # it is in events, and in lists
        [LimitEntry(label="x" * 101, start="08:00", limit="1")],
        [LimitEntry(label=str(number), start="08:00", limit="1") for number in range(101)],
        [DTCL[0], DTCL[0]],
    ):
        with pytest.raises(UsageError):
            check(wrong)
