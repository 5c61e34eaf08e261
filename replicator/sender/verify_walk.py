"""What a verification has still to look at, in bounded memory: a walk through the trees of the set, and what
is to be looked at again. Pure.
"""

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator import limits
from replicator.ops import RENAME_EXCHANGE, Kind, Record
from replicator.queue.dirty_tree import parent_of


@dataclass(frozen=True)
class LookDirectory:
    """A directory and its names; what is in it follows, unless `alone`. Others: see `LookFile`."""

    path: bytes
    alone: bool = False
    tries: int = 0
    ctime_ns: int = 0
    since_s: float = 0.0


@dataclass
class LookFiles:
    """Names of one directory, sorted, from `index` on."""

    directory: bytes
    names: list[bytes]
    index: int = 0


@dataclass(frozen=True)
class LookFile:
    """One object that is no directory. Content from `start` on, up to `end` (None: all of it).

    `counts`: it is counted as a file when that is done. `ctime_ns`: it had this one when it was looked at
    before, at `since_s`. `apart`: a name that the target has as the same object.
    """

    path: bytes
    inode: int = 0  # 0: whatever is there
    start: int = 0
    end: int | None = None
    tries: int = 0
    ctime_ns: int = 0
    since_s: float = 0.0
    apart: bytes = b""
    counts: bool = True


Look = LookDirectory | LookFiles | LookFile


@dataclass(order=True)
class _Due:
    due_s: float
    number: int
    look: Look = field(compare=False)


class Walk:
    """Of one journal. Memory: as deep as the tree, and the names of one directory on each level."""

    def __init__(self) -> None:
        self._stack: list[Look] = []
        self._again: list[_Due] = []
        self._number = 0
        self._trees: Counter[bytes] = Counter()  # directories of which everything is still to be looked at
        self._names: dict[bytes, list[LookFiles]] = {}  # by directory
        self._single: Counter[bytes] = Counter()

    def __bool__(self) -> bool:
        return bool(self._stack or self._again)

    def push(self, look: Look) -> None:
        """Look at it next."""
        self._stack.append(look)
        self._holds(look)

    def again(self, look: Look, due_s: float) -> bool:
        """Look at it later. False: there is too much of this kind."""
        if len(self._again) >= limits.CHECK_AGAIN_KEPT:
            return False
        self._number += 1
        heapq.heappush(self._again, _Due(due_s, self._number, look))
        self._holds(look)
        return True

    def next(self, now_s: float) -> Look | None:
        """What to look at now."""
        if self._again and self._again[0].due_s <= now_s:
            look = heapq.heappop(self._again).look
        elif self._stack:
            look = self._stack.pop()
        else:
            return None
        self._gives(look)
        return look

    @property
    def due_s(self) -> float | None:
        """When there is something to look at; None: there is nothing."""
        if self._stack:
            return 0.0
        return self._again[0].due_s if self._again else None

    def clear(self) -> None:
        self._stack.clear()
        self._again.clear()
        self._trees.clear()
        self._names.clear()
        self._single.clear()

    # --- by path ---

    def reaches(self, path: bytes) -> bool:
        """Whether what is at this path, and no directory, will be looked at."""
        directory = parent_of(path)
        if path in self._single or directory in self._trees:
            return True
        if any(_has_name(look, path) for look in self._names.get(directory, ())):
            return True
        while directory:
            directory = parent_of(directory)
            if directory in self._trees:
                return True
        return False

    def _holds(self, look: Look) -> None:
        if isinstance(look, LookFiles):
            self._names.setdefault(look.directory, []).append(look)
        elif isinstance(look, LookFile):
            self._single[look.path] += 1
        elif not look.alone:
            self._trees[look.path] += 1

    def _gives(self, look: Look) -> None:
        if isinstance(look, LookFiles):
            looks = self._names[look.directory]
            looks.remove(look)
            if not looks:
                del self._names[look.directory]
        elif isinstance(look, LookFile):
            _take(self._single, look.path)
        elif not look.alone:
            _take(self._trees, look.path)


def _has_name(look: LookFiles, path: bytes) -> bool:
    name = path.rpartition(b"/")[2]
    index = bisect_left(look.names, name, look.index)
    return index < len(look.names) and look.names[index] == name


def _take(counts: Counter[bytes], path: bytes) -> None:
    counts[path] -= 1
    if not counts[path]:
        del counts[path]


@dataclass
class _Recent:
    path: bytes
    ended_s: float | None = None  # None: it is being read
    settled: int | None = None  # the journal's end when all that came before the read was in it


class Recently:
    """What was looked at a moment ago: an operation that is told only now may have come before.

    Directories that were listed or whose files were looked at, and single paths.
    """

    def __init__(self) -> None:
        self._looks: deque[_Recent] = deque()
        self._paths: Counter[bytes] = Counter()

    def begin(self, look: Look) -> None:
        """It is read next. One at a time."""
        path = look.directory if isinstance(look, LookFiles) else look.path
        self._looks.append(_Recent(path))
        self._paths[path] += 1

    def end(self, now_s: float) -> None:
        """It was read."""
        self._looks[-1].ended_s = now_s

    def forget(self, now_s: float, head: int, passed: int) -> None:
        """The journal ends at `head` now, and the stream has come to `passed`."""
        for recent in self._looks:
            if recent.ended_s is None or now_s - recent.ended_s < limits.CHECK_SETTLE_S:
                break
            if recent.settled is None:
                recent.settled = head
        while self._looks and self._looks[0].settled is not None and self._looks[0].settled <= passed:
            _take(self._paths, self._looks.popleft().path)

    def __contains__(self, path: bytes) -> bool:
        return path in self._paths or parent_of(path) in self._paths


def moves_of(record: Record) -> Iterator[tuple[bytes, bytes]]:
    """From where to where a change of names brings something: a new name counts, as the old one may go."""
    if record.kind in (Kind.RENAME, Kind.LINK):
        yield record.path, record.path2
        if record.kind == Kind.RENAME and record.arg0 & RENAME_EXCHANGE:
            yield record.path2, record.path
