"""The way back of a promoted copy: sets and dirty maps in terms of the other side."""

from array import array

import pytest

from replicator.agent.failover.return_way import Way, returning_set, translated
from replicator.queue import regions
from replicator.queue.dirty import DirtyMap, Scope
from replicator.repset import ReplicationSet, Rule
from replicator.restores import Root

WHOLE = [Way(b"", "there", b"")]
BELOW = [Way(b"data/one", "first", b""), Way(b"data/two", "second", b"copies/two")]


def dirty(*entries: tuple[bytes, int]) -> DirtyMap:
    found = DirtyMap()
    for path, scope in entries:
        found.include(path, scope, 0)
    return found


def said(found: DirtyMap | None) -> list[tuple[bytes, int]] | None:
    return None if found is None else [(entry.path, int(entry.scope)) for entry in found]


def test_the_same_paths() -> None:
    whole = dirty((b"a", Scope.WHOLE), (b"b", Scope.TREE))
    assert said(translated(whole, WHOLE)["there"]) == said(whole)


def test_regions_are_kept() -> None:
    whole = DirtyMap()
    whole.include(b"file", 0, 7, array(regions.type_code, (0, 4096)))
    (entry,) = translated(whole, [Way(b"", "there", b"at")])["there"] or ()
    assert (entry.path, entry.regions, entry.identity.inode) == (b"at/file", ((0, 4096),), 7)


@pytest.mark.parametrize(
    ("path", "scope", "first", "second"),
    [
        (b"data/one/file", Scope.WHOLE, [(b"file", Scope.WHOLE)], []),
        (b"data/two/file", Scope.WHOLE, [], [(b"copies/two/file", Scope.WHOLE)]),
        (b"data", Scope.TREE, [(b"", Scope.TREE)], [(b"copies/two", Scope.TREE)]),
        # One of the names that have changed may be that of a root.
        (b"data", Scope.NAMES, [(b"", Scope.TREE)], [(b"copies/two", Scope.TREE)]),
        (b"", Scope.NAMES, [], []),
        (b"elsewhere", Scope.TREE, [], []),
        (b"data/one", Scope.NAMES, [(b"", Scope.NAMES)], []),
    ],
)
def test_parts(
    path: bytes, scope: Scope, first: list[tuple[bytes, int]], second: list[tuple[bytes, int]]
) -> None:
    found = translated(dirty((path, int(scope))), BELOW)
    assert said(found["first"]) == first
    assert said(found["second"]) == second


def test_what_nobody_knows_is_anything() -> None:
    assert translated(None, BELOW) == {"first": None, "second": None}


def test_rules_of_the_returning_set() -> None:
    repset = ReplicationSet(
        "web",
        3,
        (Rule("/srv/a"), Rule("/srv/a/*.tmp", include=False), Rule("/srv/b/deep", recursive=False)),
    )
    roots = [Root("/srv/a", "/copy/[a]"), Root("/srv/b/deep", "/copy/b")]
    found = returning_set(repset, roots, ["web-return"])
    assert found.name == "web-return 2"
    assert returning_set(ReplicationSet("web-return", 1, repset.rules), roots, []).name == "web"
    assert found.rules == (
        Rule("/copy/\\[a]"),
        Rule("/copy/\\[a]/*.tmp", include=False),
        Rule("/copy/b", recursive=False),
    )
