"""Events: catalogue, ring, log file with rotation."""

import os
import string
from pathlib import Path

import pytest

from replicator import events
from replicator.agent.eventlog import EventLog
from replicator.events import Event, EventRing, EventType, Severity

CATALOGUE = {name: value for name, value in vars(events).items() if isinstance(value, EventType)}


def test_ids_are_unique() -> None:
    ids = [event.id for event in CATALOGUE.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", CATALOGUE)
def test_texts_are_one_line_with_named_fields(name: str) -> None:
    text = CATALOGUE[name].text
    assert "\n" not in text
    assert all(field is None or field.isidentifier() for _, field, _, _ in string.Formatter().parse(text))


def test_a_ring_keeps_the_newest() -> None:
    logged: list[Event] = []
    ring = EventRing(lambda: 1_500_000_000, logged.append, kept=3)
    for number in range(5):
        ring.add(events.REPSET_DELETED, repset=f"s{number}")
    assert [event.sequence for event in ring.since()] == [3, 4, 5]
    assert [event.sequence for event in ring.since(4)] == [5]
    assert [event.sequence for event in ring.since(0, 2)] == [4, 5]
    assert ring.since(0, 0) == []
    assert len(logged) == 5 and logged[0].time == 1.5


def event(text: str) -> Event:
    return Event(1, 1_767_225_600.25, 4000, Severity.INFO, text)


def test_a_line_has_time_id_severity_and_text() -> None:
    line = event("two\nlines  here").line()
    assert line.endswith(" 4000 info    two lines here")
    assert ".250" in line.split(" ", 2)[1] and ("+" in line.split(" ")[1] or "-" in line.split(" ")[1])


def test_the_log_is_kept_small(tmp_path: Path) -> None:
    path = tmp_path / "dtd.log"
    log = EventLog(str(path), 200, 3)
    for number in range(20):
        log.write(event(f"event {number:02} {'x' * 40}"))
    assert sorted(os.listdir(tmp_path)) == ["dtd.log", "dtd.log.1", "dtd.log.2"]
    assert all((tmp_path / name).stat().st_size <= 200 for name in os.listdir(tmp_path))
    kept = [
        line.split()[5]
        for name in ("dtd.log.2", "dtd.log.1", "dtd.log")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == [f"{number:02}" for number in range(20 - len(kept), 20)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_file_only(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "dtd.log"), 100, 1)
    for _ in range(5):
        log.write(event("x" * 40))
    assert os.listdir(tmp_path) == ["dtd.log"] and (tmp_path / "dtd.log").stat().st_size <= 100


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EventLog(str(tmp_path / "none" / "dtd.log"), 100, 3).write(event("said anyway"))
    assert "said anyway (not logged: No such file or directory)" in capsys.readouterr().err
