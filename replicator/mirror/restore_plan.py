"""What a restore would do, from what both trees have: the rows of its decision table. Pure."""

import stat
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from replicator.mirror.inventory import Item
from replicator.restores import Existing


class Action(StrEnum):
    """What becomes of one path."""

    CREATE = "create"
    OVERWRITE = "overwrite"
    REPLACE = "replace"  # by an object of another type
    ATTRIBUTES = "attributes"
    KEEP = "keep"  # it differs, and stays
    REMOVE = "remove"  # the copy does not have it


class Change(NamedTuple):
    """`reason` for people; `newer`: what is there is newer than in the copy, and would be lost."""

    action: Action
    path: bytes
    reason: str
    size: int
    is_directory: bool
    newer: bool


def changes(
    copy: Iterable[Item], there: Iterable[Item], existing: Existing, *, removes: bool
) -> Iterator[Change]:
    """In the order of the paths. Both streams ascend by `Item.key`. `removes`: what the copy does not have
    goes; else it is kept.
    """
    for ours, theirs in _pairs(copy, there):
        found = _decide(ours, theirs, existing, removes)
        if found is not None:
            yield found


def _decide(ours: Item | None, theirs: Item | None, existing: Existing, removes: bool) -> Change | None:
    if ours is None:
        assert theirs is not None
        action = Action.REMOVE if removes else Action.KEEP
        return _change(action, theirs, "the copy does not have it")
    if theirs is None:
        return _change(Action.CREATE, ours, "")
    newer = theirs.mtime_ns > ours.mtime_ns and not stat.S_ISDIR(theirs.mode)
    if theirs.type != ours.type:
        return _kept_or(Action.REPLACE, ours, theirs, "it has another type", existing, newer)
    if _content(ours) != _content(theirs):
        why = "it is newer than in the copy" if newer else "it is older than in the copy"
        return _kept_or(Action.OVERWRITE, ours, theirs, why, existing, newer)
    if _dress(ours) != _dress(theirs):
        return _kept_or(Action.ATTRIBUTES, ours, theirs, "attributes differ", existing, False)
    return None


def _kept_or(
    action: Action, ours: Item, theirs: Item, why: str, existing: Existing, newer: bool
) -> Change | None:
    if existing is Existing.MISSING:
        return _change(Action.KEEP, theirs, why)
    regular = stat.S_ISREG(ours.mode) and stat.S_ISREG(theirs.mode)
    if (
        existing is Existing.NEWER
        and action is Action.OVERWRITE
        and regular
        and theirs.mtime_ns >= ours.mtime_ns
    ):
        return _change(Action.KEEP, theirs, why)
    return _change(action, ours, why, newer=newer)


def _change(action: Action, item: Item, reason: str, *, newer: bool = False) -> Change:
    return Change(action, item.path, reason, item.size, stat.S_ISDIR(item.mode), newer)


def _content(item: Item) -> tuple[object, ...]:
    """What of it a mirror that compares no content looks at."""
    if stat.S_ISDIR(item.mode):
        return ()
    return item.size, item.rdev, item.text, item.mtime_ns if stat.S_ISREG(item.mode) else 0


def _dress(item: Item) -> tuple[object, ...]:
    mtime_ns = 0 if stat.S_ISDIR(item.mode) else item.mtime_ns  # of directories: follows from all else
    return item.mode, item.uid, item.gid, item.xattrs, mtime_ns


def _pairs(left: Iterable[Item], right: Iterable[Item]) -> Iterator[tuple[Item | None, Item | None]]:
    """What has the same path together; None for whoever does not have it."""
    lefts, rights = iter(left), iter(right)
    one, other = next(lefts, None), next(rights, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.key < other.key):
            yield one, None
            one = next(lefts, None)
        elif one is None or other.key < one.key:
            yield None, other
            other = next(rights, None)
        else:
            yield one, other
            one, other = next(lefts, None), next(rights, None)


def outermost(paths: Iterable[bytes]) -> Iterator[bytes]:
    """Of ascending paths, those that are not below another."""
    last: bytes | None = None
    for path in paths:
        if last is None or not (last == b"" or path == last or path.startswith(last + b"/")):
            yield path
            last = path
