"""What a mirror has to bring because a dirty map says so.

Pure. Coarse as yet: a directory of which something may differ is brought with all below it, and a file as a
whole. It is compared first where size and time can tell.
"""

from collections.abc import Iterator
from typing import NamedTuple

from replicator.mirror.order import is_below_or_equal
from replicator.ops import NO_IDENTITY, Identity
from replicator.queue.dirty import Dirty, DirtyMap, Scope
from replicator.repset import Filter

_TREES = Scope.TREE | Scope.NAMES | Scope.FILES | Scope.DIRECTORY


class Requirement(NamedTuple):
    """A path to bring, with all below it."""

    path: bytes
    touched: Identity | None = None  # this file's content has changed, whatever size and time say


def requirements(dirty: DirtyMap, rules: Filter) -> list[Requirement]:
    """All that has to be brought of the set, each path once, none inside of another but for touched files."""
    found: dict[bytes, Requirement] = {}
    for entry in dirty:
        for needed in _of_entry(entry, rules):
            above = next((p for p in _at_or_above(needed.path) if p in found), None)
            if needed.touched is not None or above is None:
                found[needed.path] = needed
    return list(found.values())


def _of_entry(entry: Dirty, rules: Filter) -> Iterator[Requirement]:
    path, scope = entry.path, entry.scope
    content = bool(entry.regions) or bool(scope & Scope.WHOLE)
    touched = entry.identity if content and entry.identity != NO_IDENTITY else None
    if scope & Scope.LINKED:  # its other names may be anywhere
        yield from (Requirement(root) for root in rules.roots)
        if rules.includes(path):
            yield Requirement(path, touched)
    elif scope & _TREES:
        roots = [root for root in rules.roots if is_below_or_equal(root, path)]
        if roots:
            yield from (Requirement(root) for root in roots)
        elif rules.may_contain(path):
            yield Requirement(path)
    elif rules.includes(path):
        yield Requirement(path, touched)


def _at_or_above(path: bytes) -> Iterator[bytes]:
    yield path
    while path:
        path = path[: max(path.rfind(b"/"), 0)]
        yield path
