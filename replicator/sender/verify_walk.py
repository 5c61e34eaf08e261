"""What a verification has still to look at, in bounded memory: a walk through the trees of the set, and what
is to be looked at again. Pure.
"""

import heapq
from dataclasses import dataclass, field

from replicator import limits


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
    """Names of one directory, from `index` on."""

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

    def __bool__(self) -> bool:
        return bool(self._stack or self._again)

    def push(self, look: Look) -> None:
        """Look at it next."""
        self._stack.append(look)

    def again(self, look: Look, due_s: float) -> bool:
        """Look at it later. False: there is too much of this kind."""
        if len(self._again) >= limits.CHECK_AGAIN_KEPT:
            return False
        self._number += 1
        heapq.heappush(self._again, _Due(due_s, self._number, look))
        return True

    def next(self, now_s: float) -> Look | None:
        """What to look at now."""
        if self._again and self._again[0].due_s <= now_s:
            return heapq.heappop(self._again).look
        return self._stack.pop() if self._stack else None

    @property
    def due_s(self) -> float | None:
        """When there is something to look at; None: there is nothing."""
        if self._stack:
            return 0.0
        return self._again[0].due_s if self._again else None

    def clear(self) -> None:
        self._stack.clear()
        self._again.clear()
