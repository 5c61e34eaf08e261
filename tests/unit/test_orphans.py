"""Which orphans go, how many are too many, and what is an orphan in a directory."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import UsageError
from replicator.fs.beneath import Root
from replicator.fs.path_maps import PathMaps
from replicator.mirror.orphan_table import OrphanTable
from replicator.mirror.orphans import Finder
from replicator.ops import RENAME_EXCHANGE, Kind, Record
from replicator.orphans import (
    Orphan,
    OrphanAction,
    OrphanPhase,
    OrphanReport,
    OrphanSettings,
    check,
    decide,
    over_limit,
)
from replicator.repset import ReplicationSet, Rule, compile_filter

DAY_NS = 86_400_000_000_000
NOW_NS = 1_000 * DAY_NS
NAMES = st.sampled_from([b"a", b"b", b"c"])


@st.composite
def trees(draw: st.DrawFn) -> list[Orphan]:
    """Orphans with all that is in them, what is in a directory before it."""
    paths = draw(st.sets(st.lists(NAMES, min_size=1, max_size=4).map(b"/".join), max_size=20))
    every = {b"/".join(path.split(b"/")[: n + 1]) for path in paths for n in range(path.count(b"/") + 1)}
    found = []
    for path in sorted(every, reverse=True):
        directory = any(other.startswith(path + b"/") for other in every)
        age_days = draw(st.integers(0, 20))
        holds = directory and draw(st.integers(0, 5)) == 0
        found.append(Orphan(path, directory, 0 if directory else 7, NOW_NS - age_days * DAY_NS, holds))
    return found


@given(orphans=trees(), days=st.sampled_from([0, 1, 7, 30]))
def test_a_directory_goes_if_all_in_it_goes(orphans: list[Orphan], days: int) -> None:
    settings = OrphanSettings(action=OrphanAction.DELETE, older_than_days=days)
    goes = {orphan.path: went for orphan, went in decide(orphans, settings, NOW_NS)}
    assert list(goes) == [orphan.path for orphan in orphans]
    for orphan in orphans:
        old = orphan.mtime_ns <= NOW_NS - days * DAY_NS
        below = [goes[other.path] for other in orphans if other.path.startswith(orphan.path + b"/")]
        assert goes[orphan.path] == (old and not orphan.holds and all(below))


@pytest.mark.parametrize(
    ("count", "seen", "limit", "percent", "halts"),
    [
        (0, 0, 1, 10, False),
        (1000, 1_000_000, 1000, 10, False),
        (1001, 1_000_000, 1000, 10, True),
        (10, 100, 1000, 10, False),
        (11, 100, 1000, 10, True),
        (5000, 5000, 0, 0, False),
        (100, 100, 0, 99.9, True),
    ],
)
def test_limits(count: int, seen: int, limit: int, percent: float, halts: bool) -> None:
    settings = OrphanSettings(limit_count=limit, limit_percent=percent)
    assert bool(over_limit(count, seen, settings)) is halts


@pytest.mark.parametrize(
    "settings",
    [
        OrphanSettings(action=OrphanAction.MOVE),
        OrphanSettings(action=OrphanAction.MOVE, directory="orphans"),
        OrphanSettings(directory="/"),
        OrphanSettings(directory="/srv/../copy"),
        OrphanSettings(older_than_days=-1),
        OrphanSettings(limit_percent=101),
        OrphanSettings(limit_count=-1),
    ],
)
def test_settings_that_make_no_sense(settings: OrphanSettings) -> None:
    with pytest.raises(UsageError):
        check(settings)


def record(kind: Kind, path: bytes, path2: bytes = b"", arg0: int = 0) -> Record:
    return Record(
        kind=kind,
        flags=0,
        sequence=1,
        boot=1,
        monotonic_ns=0,
        wall_ns=0,
        inode=0,
        generation=0,
        arg0=arg0,
        arg1=0,
        chain=0,
        path=path,
        path2=path2,
        payload=b"",
    )


@pytest.fixture
def table() -> OrphanTable:
    table = OrphanTable()
    for path in (b"d/x", b"d/y", b"d/y/1", b"e", b"f"):
        table.add(0, Orphan(path, path == b"d/y", 1, 1), 1)
    return table


@pytest.mark.parametrize(
    ("kind", "path", "path2", "flags", "left"),
    [
        (Kind.CREATE, b"d/x", b"", 0, {b"d/y", b"d/y/1", b"e", b"f"}),
        (Kind.CREATE, b"d/y/2", b"", 0, {b"d/x", b"d/y/1", b"e", b"f"}),  # so the source has d/y
        (Kind.MKDIR, b"d/y", b"", 0, {b"d/x", b"d/y/1", b"e", b"f"}),
        (Kind.REMOVE_TREE, b"d", b"", 0, {b"e", b"f"}),
        (Kind.RENAME, b"d", b"n", 0, {b"n/x", b"n/y", b"n/y/1", b"e", b"f"}),
        (Kind.RENAME, b"n", b"d", 0, {b"e", b"f"}),
        (Kind.RENAME, b"d", b"e", 0, {b"e/x", b"e/y", b"e/y/1", b"f"}),
        (Kind.RENAME, b"d", b"g", RENAME_EXCHANGE, {b"g/x", b"g/y", b"g/y/1", b"e", b"f"}),
        (Kind.LINK, b"q", b"e", 0, {b"d/x", b"d/y", b"d/y/1", b"f"}),
        (Kind.WRITE, b"e", b"", 0, {b"d/x", b"d/y", b"d/y/1", b"e", b"f"}),
    ],
)
def test_orphans_follow_the_stream(
    table: OrphanTable, kind: Kind, path: bytes, path2: bytes, flags: int, left: set[bytes]
) -> None:
    table.follow(0, record(kind, path, path2, flags))
    assert {orphan.path for orphan in table.found(0)} == left
    table.close()


def test_what_the_rules_exclude_is_found_nowhere(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("d/known", "d/orphan", "d/x.log", "o/1", "o/x.log", "o/p/2", "cache/3"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(name)
    rules = ReplicationSet(
        name="set",
        generation=1,
        rules=(Rule("/src", True, True), Rule("/src/*.log", False, True), Rule("/src/cache", False, True)),
    )
    table = OrphanTable(str(tmp_path / "table"))
    with Root(copy) as root:
        finder = Finder(table, 0, PathMaps([(b"", root)]), compile_filter(rules, b"/src"), b".replicator")
        table.save(OrphanReport(phase=OrphanPhase.LOOKING))
        finder.look(b"", {b"d"})
        finder.look(b"d", {b"known"})
        found = {orphan.path: orphan for orphan in table.found(0)}
        assert set(found) == {b"d/orphan", b"o", b"o/1", b"o/p", b"o/p/2"}
        assert found[b"o"].holds and not found[b"o/p"].holds
        assert table.report.seen == 3 + 3 + 3 + 1
        finder.remove_others(b"o", lambda path: None)
        assert sorted(os.listdir(copy / "o")) == ["x.log"]
    table.close()
