"""What is known to be wrong with one path on a target: dirty, or given up. Pure.

Part of the answer to "why" (`why.py`); paths are relative to the captured directory.
"""

from collections.abc import Iterable

from replicator.mirror.order import Order, is_below_or_equal, parent_of
from replicator.ops import Record
from replicator.queue.dirty import CorruptDirtyMap, Dirty, DirtyMap, Scope
from replicator.status import Problem

_ALL = "all of it is brought by the recovery"
_NAMES = "its list of names is brought by the recovery"


def covers(entry: Dirty, path: bytes) -> bool:
    """Whether an entry of a dirty map says that something of `path`, of what is below it, or of its name may
    differ on the target.
    """
    if entry.scope == Scope.LINKED and not entry.regions:
        return False  # nothing differs: a file has got another name
    if is_below_or_equal(entry.path, path):
        return True
    if entry.scope & Scope.TREE:
        return is_below_or_equal(path, entry.path)
    return bool(entry.scope & (Scope.NAMES | Scope.FILES)) and parent_of(path) == entry.path


def lost(hole: Record, path: bytes) -> bool:
    """Whether a HOLE says, or leaves open, that an operation on `path` was lost."""
    try:
        return not len(hole.payload) or any(covers(e, path) for e in DirtyMap.decode(hole.payload))
    except CorruptDirtyMap:
        return True


def dirty_text(order: Order, holes: Iterable[Record], path: bytes, *, losing: bool) -> str:
    """Why the target's `path` may differ, whatever is queued; "" if nothing is known of it. `holes`: those
    that the stream has not reached. `losing`: there will be another.
    """
    if order.active:
        if order.is_pending(path):
            return _ALL
        if order.patches_path(path):
            return "regions of it are brought by the recovery"
        if order.lists_names_of(path):
            return _NAMES
        if path and order.lists_names_of(parent_of(path)):
            return "the list of names it is in is brought by the recovery"
    if any(lost(hole, path) for hole in holes):
        return "a full queue lost operations on it: it is brought when what is queued before is sent"
    return "the queue is full: what happens to it now is not kept, and brought later" if losing else ""


def quarantine_text(problems: Iterable[Problem], path: str) -> str:
    """Why the last mirror or recovery left `path`, or something below or above it, as it was."""
    for problem in problems:
        name, asked = problem.path.strip("/"), path.strip("/")
        if name == asked:
            return problem.reason
        if not name or asked.startswith(f"{name}/") or name.startswith(f"{asked}/") or not asked:
            return f"{problem.path or '/'}: {problem.reason}"
    return ""
