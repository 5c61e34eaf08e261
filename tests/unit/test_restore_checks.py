"""Where a restore writes, and every danger it is refused for."""

from datetime import UTC, datetime

import msgspec
import pytest

from replicator.agent.copy_keeper import orders_of
from replicator.agent.restore_calls import Call
from replicator.agent.restore_checks import (
    Facts,
    check_orphans_directory,
    check_request,
    dangers,
    job_of,
    refusal,
    restricted,
)
from replicator.agent.state import Connection, ConnectionOptions, State
from replicator.errors import UsageError
from replicator.limit_calendar import LimitEntry
from replicator.orphans import OrphanAction
from replicator.repset import ReplicationSet, Rule, compile_filter
from replicator.restores import CopyView, Danger, Existing, RestoreRequest, Root
from replicator.transmission import TransmissionSettings

REPSET = ReplicationSet(
    "web", 3, (Rule("/srv/www"), Rule("/srv/www/cache", include=False), Rule("/srv/www/*.tmp", include=False))
)
ROOT = Root("/srv/www", "/replica/www")
COPY = CopyView(
    uuid="11111111-1111-1111-1111-111111111111",
    repset=REPSET,
    roots=(ROOT,),
    source_uuid="alpha",
    source_name="alpha",
    agent="beta",
    data_state="OK",
    connected=False,
    paused=False,
    waiting_bytes=0,
    remap_links=True,
    epoch=0,
    restoring="",
)
SAFE = Facts(None, False, 0, "", "", False)


def request(**values: object) -> RestoreRequest:
    return RestoreRequest(copy="web", **values)  # type: ignore[arg-type]


def copy(**values: object) -> CopyView:
    return msgspec.structs.replace(COPY, **values)


# --- places ---


def test_by_default_everything_goes_where_it_was() -> None:
    job = job_of(request(), COPY)
    assert job.places == ("/srv/www",) and job.is_at_home and job.repset == REPSET


def test_it_is_sent_as_the_line_to_its_host_allows() -> None:
    own, target = TransmissionSettings(bandwidth="1 MB/s"), TransmissionSettings(compression="auto")
    connection = Connection(
        uuid="u",
        id=1,
        repset=ReplicationSet("web"),
        target_host="Backup",
        target_port=1500,
        maps=(),
        options=ConnectionOptions(transmission=own),
        created=0.0,
    )
    state = State(connections=(connection,), transmissions={"backup": target})
    nothing, noon = TransmissionSettings(), datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
    assert state.transmission_from("u", "10.0.0.7", noon, UTC) == (own, target)
    assert state.transmission_from("other", "BACKUP", noon, UTC) == (nothing, target)
    assert state.transmission_from("other", "else", noon, UTC) == (nothing, nothing)
    # As calendars say at that moment: of the connection, and of the target.
    day = LimitEntry(label="day", start="08:00", end="18:00", limit="100 kB/s")
    options = msgspec.structs.replace(connection.options, limit_calendar=(day,))
    limited = msgspec.structs.replace(connection, options=options)
    state = msgspec.structs.replace(state, connections=(limited,), limit_calendars={"backup": (day,)})
    for now, of_connection, of_target in ((noon, "100 kB/s", "100 kB/s"), (noon + 7 * 3600, "1 MB/s", "")):
        found = state.transmission_from("u", "10.0.0.7", now, UTC)
        assert [settings.bandwidth for settings in found] == [of_connection, of_target]
        assert found[1].compression == "auto"
    orders = orders_of(Call(action="attach", own=own, target=target))
    assert (orders.compression, orders.own, orders.target, orders.target_page) == ("auto", own, target, "")
    off = msgspec.structs.replace(own, limiting=False)
    assert orders_of(Call(action="attach", own=off)).own == off
    for wrong in (TransmissionSettings(bandwidth="a lot"), TransmissionSettings(compression="10")):
        with pytest.raises(UsageError):
            orders_of(Call(action="status", target=wrong))


def test_another_directory() -> None:
    assert job_of(request(to="/tmp/x"), COPY).places == ("/tmp/x",)
    two = copy(roots=(ROOT, Root("/etc/web", "/replica/etc")))
    assert job_of(request(to="/tmp/x"), two).places == ("/tmp/x/srv/www", "/tmp/x/etc/web")


def test_maps() -> None:
    assert job_of(request(maps=(Root("/srv", "/mnt"),)), COPY).places == ("/mnt/www",)
    assert job_of(request(maps=(Root("/srv", "/a"), Root("/srv/www", "/b"))), COPY).places == ("/b",)
    two = copy(roots=(ROOT, Root("/etc/web", "/replica/etc")))
    with pytest.raises(UsageError, match="no map says where /etc/web goes: add --map /etc/web="):
        job_of(request(maps=(Root("/srv", "/mnt"),)), two)


@pytest.mark.parametrize("wrong", ["/etc", "/srv/www/a", "/srv/ww"])
def test_a_map_of_what_the_copy_does_not_have(wrong: str) -> None:
    """Beside one that says all: it means something else than what would happen."""
    with pytest.raises(UsageError, match=f"--map {wrong}: the copy begins at /srv/www: map that"):
        job_of(request(maps=(Root("/srv/www", "/mnt"), Root(wrong, "/mnt/other"))), COPY)


def test_where_moved_orphans_go() -> None:
    taken = [("/var/lib/replicator", "the agent's own /var/lib/replicator")]
    check_orphans_directory("/srv/orphans", ["/srv/www"], taken)
    for wrong in ("/srv/www", "/srv/www/orphans", "/srv", "/var/lib/replicator/orphans"):
        with pytest.raises(UsageError, match="overlap: choose another directory"):
            check_orphans_directory(wrong, ["/srv/www"], taken)


def test_paths_restrict_the_set_and_heed_its_rules() -> None:
    two = copy(roots=(ROOT, Root("/etc/web", "/replica/etc")))
    job = job_of(request(paths=("/srv/www/a",)), two)
    assert job.roots == (ROOT,)
    rules = compile_filter(job.repset, b"/srv/www")
    assert rules.roots == (b"a",)
    assert rules.includes(b"a/b") and not rules.includes(b"c")
    rules = compile_filter(restricted(REPSET, ["/srv/www"], [ROOT]), b"/srv/www")
    assert rules.includes(b"a") and not rules.includes(b"cache/b") and not rules.includes(b"no.tmp")


@pytest.mark.parametrize("path", ["/srv/www/cache/x", "/srv/other", "/"])
def test_a_path_that_is_not_in_the_set(path: str) -> None:
    with pytest.raises(UsageError, match="is not in the copy"):
        job_of(request(paths=(path,)), COPY)


@pytest.mark.parametrize(
    "values",
    [
        {"to": "/a", "maps": (ROOT,)},
        {"protect": True, "to": "/a"},
        {"protect": True, "paths": ("/srv/www/a",)},
        {"protect": True, "existing": Existing.NEWER},
        {"existing": Existing.MISSING, "orphans": OrphanAction.DELETE},
        {"orphans": OrphanAction.MOVE},
        {"orphans_directory": "/a"},
        {"orphans": OrphanAction.DELETE, "orphans_directory": "/a"},
        {"orphans": OrphanAction.MOVE, "orphans_directory": "a"},
        {"orphans": OrphanAction.DELETE, "orphans_older_than_days": -1.0},
        {"orphans_older_than_days": 7.0},
        {"orphans": OrphanAction.KEEP, "orphans_over_limit": True},
    ],
)
def test_contradictions(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        check_request(request(**values))


# --- dangers ---

CASES = [
    (Danger.REPLICATING, COPY, SAFE._replace(connection=1, replicates=True, replaces_source=True)),
    (Danger.REPLICATING, copy(connected=True), SAFE),
    (Danger.REPLICATING, copy(connected=True), SAFE._replace(replaces_source=True)),
    (Danger.INCOMPLETE, copy(data_state="Mirroring"), SAFE),
    (Danger.INCOMPLETE, copy(data_state="Mirror Required"), SAFE),
    (Danger.WAITING, copy(paused=True, waiting_bytes=5), SAFE._replace(replaces_source=True)),
    (Danger.NOT_EMPTY, COPY, SAFE._replace(occupied="/tmp/x")),
    (Danger.NEWER, COPY, SAFE._replace(newer="/srv/www/file")),
    (Danger.NEWER, COPY, SAFE._replace(connection=1, queued_ops=3, replaces_source=True)),
]


@pytest.mark.parametrize(("danger", "there", "facts"), CASES)
def test_each_danger_has_to_be_accepted_by_name(danger: Danger, there: CopyView, facts: Facts) -> None:
    assert [found for found, _ in dangers(there, facts)] == [danger]
    text = refusal(there, facts, [d for d in Danger if d is not danger])
    assert text.endswith(f"--even-if {danger}") and "\n" not in text
    assert refusal(there, facts, [danger]) == ""


@pytest.mark.parametrize(
    ("there", "facts"),
    [
        (COPY, SAFE),
        (copy(data_state="Restore Required"), SAFE._replace(replaces_source=True)),
        (copy(paused=True, waiting_bytes=5), SAFE),  # it goes on afterwards
        (copy(connected=True), SAFE._replace(connection=1, replicates=True)),  # paths, beside replication
    ],
)
def test_no_danger(there: CopyView, facts: Facts) -> None:
    assert dangers(there, facts) == []
