"""What a connection means for a host: journals, maps, places, prefixes."""

import pytest

from replicator import repset
from replicator.agent import planning
from replicator.agent.state import Map, Mount
from replicator.errors import ReplicatorError, UsageError
from replicator.repset import Place, ReplicationSet, compile_filter

DATA = Mount(id="d", path="/srv/data", mountpoint="/srv/data")
HOME = Mount(id="h", path="/home", mountpoint="/mnt/home")


def rules(*texts: str) -> ReplicationSet:
    return repset.with_rules(ReplicationSet("web"), [repset.parse_rule(text) for text in texts])


# --- which mounts ---


def test_a_set_needs_the_mounts_its_rules_name() -> None:
    found = planning.journals_of(rules("/srv/data/www inc, rec", "/srv/data/x exc, rec"), [DATA, HOME])
    assert [(j.mount, j.root, j.sources) for j in found] == [(DATA, "/srv/data", ["/srv/data/www"])]


def test_a_set_may_span_mounts() -> None:
    found = planning.journals_of(rules("/srv/data inc, rec", "/mnt/home/*.db inc, rec"), [DATA, HOME])
    assert [(j.mount.id, j.sources) for j in found] == [("d", ["/srv/data"]), ("h", ["/mnt/home"])]


def test_a_mount_elsewhere_is_named_by_either_path_but_one_of_them() -> None:
    assert planning.journals_of(rules("/home/a inc, rec"), [HOME])[0].root == "/home"
    assert planning.journals_of(rules("/mnt/home/a inc, rec"), [HOME])[0].root == "/mnt/home"
    with pytest.raises(ReplicatorError, match="use one of them"):
        planning.journals_of(rules("/home/a inc, rec", "/mnt/home/b inc, rec"), [HOME])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((), "includes nothing"),
        (("/srv/data exc, rec",), "includes nothing"),
        (("/srv/other inc, rec",), "dtctl mount add /srv/other"),
        (("/srv/data inc, rec", "/etc inc, rec"), "/etc is not captured"),
        (("/srv inc, rec",), "captured in part only (/srv/data)"),
        (("/srv/data2 inc, rec",), "not captured"),
    ],
)
def test_what_is_not_captured_is_said(texts: tuple[str, ...], words: str) -> None:
    with pytest.raises(ReplicatorError) as caught:
        planning.journals_of(rules(*texts), [DATA])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "mountpoint", "words"),
    [
        ("/", "/", "root directory"),
        ("/srv/data", "/srv/data", "captured already"),
        ("/srv/data/x", "/srv/data/x", "lie inside each other"),
        ("/srv", "/srv", "lie inside each other"),
        ("/mnt", "/mnt", "lie inside each other"),
        ("/home/x", "/y", "lie inside each other"),
        ("/a", "/a/b", "lie inside each other"),
        ("/var", "/var", "keeps its own files"),
        ("/var/lib/replicator/x", "/var/lib/replicator/x", "keeps its own files"),
    ],
)
def test_impossible_mounts(path: str, mountpoint: str, words: str) -> None:
    with pytest.raises(ReplicatorError, match=words):
        planning.check_new_mount(path, mountpoint, [DATA, HOME], ["/var/lib/replicator"])


def test_possible_mounts() -> None:
    for path, mountpoint in (("/srv/data2", "/srv/data2"), ("/a", "/b")):
        planning.check_new_mount(path, mountpoint, [DATA, HOME], ["/var/lib/replicator"])


# --- where copies go ---


def test_all_to_one() -> None:
    maps = planning.all_to_one(["/srv/data/www", "/"], "/copies", "alpha", "web")
    assert maps == (Map("/srv/data/www", "/copies/alpha/web/srv/data/www"), Map("/", "/copies/alpha/web"))


def test_one_to_one() -> None:
    assert planning.one_to_one(["/srv/data"]) == (Map("/srv/data", "/srv/data"),)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ((Map("/a", "/t"), Map("/a", "/u")), "mapped twice"),
        ((Map("/a", "/t"), Map("/other", "/u")), "has nothing there"),
        ((), "add --map /a=/path/on/target"),
        ((Map("/a/below", "/t"),), "no map says where /a goes"),
    ],
)
def test_impossible_maps(maps: tuple[Map, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        planning.check_custom(maps, ["/a"])


def test_the_most_specific_map_counts() -> None:
    maps = (Map("/a", "/t"), Map("/a/b", "/u"), Map("/", "/all"))
    assert planning.target_of("/a/x", maps) == "/t/x"
    assert planning.target_of("/a/b/x", maps) == "/u/x"
    assert planning.target_of("/ab", maps) == "/all/ab"
    assert planning.target_of("/a", maps) == "/t"


def test_places_are_roots_and_what_is_mapped_elsewhere() -> None:
    maps = (Map("/a", "/t"), Map("/a/b", "/u"), Map("/a/c", "/t/c"))
    assert planning.places_of("web", ["/a"], maps, "host") == [
        Place("web", "/a", "host", "/t"),
        Place("web", "/a/b", "host", "/u"),
    ]


def test_maps_of_a_journal_are_relative_to_its_root() -> None:
    maps = (Map("/srv", "/t"), Map("/srv/data/x", "/u"), Map("/home", "/v"))
    assert planning.journal_maps("/srv/data", maps) == [("", "/t/data"), ("x", "/u")]
    assert planning.journal_maps("/home", maps) == [("", "/v")]
    assert planning.journal_maps("/srv/data", (Map("/srv/data/a", "/t"),)) == [("a", "/t")]


# --- what has to be journaled ---


def test_active_prefixes_are_those_of_all_connections() -> None:
    def decisions(*texts: str) -> repset.Filter:
        return compile_filter(rules(*texts), b"/srv/data")

    assert planning.active_prefixes([]) == []
    some = [decisions("/srv/data/a inc, rec"), decisions("/srv/data/a/b inc, rec", "/srv/data/c inc, rec")]
    assert planning.active_prefixes(some) == [b"a", b"c"]
    assert planning.active_prefixes([*some, decisions("/srv/data inc, rec")]) == [b""]
