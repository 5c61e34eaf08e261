"""What happened to groups: durable, bounded, and readable after a crash."""

from pathlib import Path

import pytest

from replicator import limits
from replicator.agent.failover.history import Entry, History


def entry(number: int) -> Entry:
    return Entry(time=float(number), group="g", name="web", what="added", text=f"text {number}")


async def test_entries_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "failover" / "history"
    history = History(str(path))
    assert await history.read() == []
    for number in range(3):
        await history.add(entry(number))
    assert await History(str(path)).read() == [entry(0), entry(1), entry(2)]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_a_crash_has_cut_off_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = History(str(path))
    await history.add(entry(0))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole + whole[:size])
        await history.add(entry(1))
        assert [found for found in await history.read() if found == entry(1)] == [entry(1)], size
        assert (await history.read())[0] == entry(0)


async def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FAILOVER_HISTORY_BYTES", 2000)
    path = tmp_path / "history"
    history = History(str(path))
    for number in range(100):
        await history.add(entry(number))
        assert path.stat().st_size <= 2000
    found = await history.read()
    assert found[-1] == entry(99) and len(found) > 5
    assert [e.time for e in found] == sorted(e.time for e in found)


async def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "failover").write_text("no directory")
    history = History(str(tmp_path / "failover" / "history"))
    await history.add(entry(0))
    assert await history.read() == []
