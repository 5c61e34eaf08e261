"""The way back of a promoted copy: which connection, set and maps lead from what it has become to where it
came from. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from replicator.failovers import Policy
from replicator.mirror.order import is_below_or_equal, parent_of
from replicator.queue.dirty import Dirty, DirtyMap, Scope
from replicator.repset import ReplicationSet, Rule, escape, is_inside, unique_name
from replicator.restores import Root

_RETURN = "-return"
_NAMES = Scope.NAMES | Scope.FILES


class Way(NamedTuple):
    """What lies at `source` in one journal lies at `path` in the journal `journal` of the other direction."""

    source: bytes
    journal: str
    path: bytes


def translated(dirty: Iterable[Dirty] | None, ways: Sequence[Way]) -> Mapping[str, DirtyMap | None]:
    """A dirty map of one journal in terms of those of the other direction, by journal id. None: anything.
    What lies nowhere there concerns nothing of the set.
    """
    found: dict[str, DirtyMap | None] = {way.journal: None if dirty is None else DirtyMap() for way in ways}
    for entry in dirty or ():
        inside = [way for way in ways if is_below_or_equal(entry.path, way.source)]
        if inside:
            way = max(inside, key=lambda way: len(way.source))
            _include(found, way, _joined(way.path, entry.path[len(way.source) :].lstrip(b"/")), entry)
        for way in ways:
            if way in inside or not is_below_or_equal(way.source, entry.path):
                continue
            # It speaks of a directory above: of all below, or of the names of which this way's own is one.
            named = bool(entry.scope & _NAMES) and parent_of(way.source) == entry.path
            if entry.scope & Scope.TREE or named:
                _include(found, way, way.path, Dirty(way.path, Scope.TREE, entry.identity))
    return found


def _include(found: dict[str, DirtyMap | None], way: Way, path: bytes, entry: Dirty) -> None:
    known = found[way.journal]
    if known is not None:
        known.include_entry(path, entry)


def _joined(directory: bytes, below: bytes) -> bytes:
    return b"/".join(part for part in (directory, below) if part)


def returning_set(repset: ReplicationSet, roots: Sequence[Root], taken: Iterable[str]) -> ReplicationSet:
    """The same rules, in terms of where the copy is. `taken`: names of sets that exist."""
    rules = []
    for rule in repset.rules:
        root = next((root for root in roots if is_inside(rule.path, escape(root.source))), None)
        if root is not None:
            below = rule.path[len(escape(root.source).rstrip("/")) :]
            rules.append(Rule(escape(root.replica).rstrip("/") + below, rule.include, rule.recursive))
    there = repset.name.endswith(_RETURN)  # then this is the way back of a way back
    name = repset.name.removesuffix(_RETURN) if there else repset.name + _RETURN
    return ReplicationSet(name=unique_name(name, list(taken)), generation=1, rules=tuple(rules))


class ReturnWay(msgspec.Struct, frozen=True, kw_only=True):
    """What a former owner has to know of a return connection. `journals`: (id, root at the new owner).
    `maps`: (number of the journal, path in it, absolute path at the former owner).
    """

    connection: str  # forward
    copy: str  # uuid of the return connection
    owner_uuid: str
    owner_name: str
    journals: tuple[tuple[str, str], ...]
    maps: tuple[tuple[int, str, str], ...]
    policy: Policy = Policy.MANUAL  # of the group
    prefer_node: str = ""
