"""What of the operations is journaled: those below a connected replication set, while there is a reader.

Around every operation that changes something: `begin` (the flight slot, so that a successor of a killed
process knows the one place to look at), the operation, then `append`, or `abandon` if it failed.
"""

import logging
from collections.abc import Iterable
from typing import Protocol

from replicator import limits
from replicator.ops import Kind, Position

logger = logging.getLogger(__name__)


class Journal(Protocol):
    """What a recorder needs of `replicator.queue.journal.JournalWriter`."""

    @property
    def has_readers(self) -> bool: ...
    @property
    def position(self) -> Position: ...
    def flight(self, kind: int, path: bytes, path2: bytes = b"") -> None: ...
    def clear_flight(self) -> None: ...
    def append(
        self,
        kind: int,
        path: bytes,
        *,
        path2: bytes = b"",
        payload: bytes | memoryview = b"",
        flags: int = 0,
        inode: int = 0,
        generation: int = 0,
        arg0: int = 0,
        arg1: int = 0,
    ) -> int: ...


class Recorder:
    """Filters by path and appends to the journal. Used by one thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._prefixes: tuple[bytes, ...] = ()
        self._inner: tuple[bytes, ...] = ()  # the prefixes with a slash behind: what lies strictly below
        self._everything = False
        self.muted = False
        """Record nothing: what is being done once more is in the journal already."""
        self._skipped_ops = 0
        self._skipped_path = b""
        self._doubtful: bytes | None = (
            None  # what the operation begun last puts in doubt, in place of its record
        )

    # --- which paths ---

    @property
    def active(self) -> tuple[bytes, ...]:
        """Mount-relative roots of connected replication sets, none inside another."""
        return self._prefixes

    @property
    def skipped_ops(self) -> int:
        """Operations not journaled because a path was longer than `limits.PATH_BYTES`."""
        return self._skipped_ops

    @property
    def skipped_path(self) -> bytes:
        """The path skipped last."""
        return self._skipped_path

    def set_active(self, prefixes: Iterable[bytes]) -> None:
        """Journal what happens at or below these paths from now on; b"" is everything, no prefix nothing."""
        kept: list[bytes] = []
        for prefix in sorted(set(prefixes)):
            if not any(_contains(outer, prefix) for outer in kept):
                kept.append(prefix)
        self._prefixes = tuple(kept)
        self._inner = tuple(prefix + b"/" for prefix in kept)
        self._everything = kept == [b""]

    def is_active(self, path: bytes) -> bool:
        return self._everything or path in self._prefixes or path.startswith(self._inner)

    def touches_active(self, path: bytes) -> bool:
        """Whether the path or something below is active: a rename of a root's parent moves the root."""
        return self.is_active(path) or any(_contains(path, prefix) for prefix in self._prefixes)

    @property
    def head_sequence(self) -> int:
        """Of the journal's last record."""
        return self._journal.position.sequence

    # --- recording ---

    def begin(self, kind: Kind, path: bytes | None, path2: bytes | None = None) -> bool:
        """Before an operation. False: it is not recorded, so neither `append` nor `abandon` is due.

        `path` None: the object has no name. `path2` is given for renames and links only.
        """
        if not self._prefixes or path is None or self.muted:
            return False
        if path2 is None:
            if not (self._everything or self.is_active(path)):
                return False
        elif not (self._everything or self.touches_active(path) or self.touches_active(path2)):
            return False
        if len(path) > limits.PATH_BYTES or (path2 is not None and len(path2) > limits.PATH_BYTES):
            return self._begin_too_long(kind, path, path2)
        self._journal.flight(kind, path, path2 or b"")
        return True

    def _begin_too_long(self, kind: Kind, path: bytes, path2: bytes | None) -> bool:
        """An object comes from, or goes to, where it cannot be replicated: its other name is in doubt."""
        names = (path,) if path2 is None else (path, path2)
        self._skip(max(names, key=len))
        self._doubtful = next((name for name in names if len(name) <= limits.PATH_BYTES), None)
        if self._doubtful is None:
            return False
        self._journal.flight(kind, self._doubtful)
        return True

    def abandon(self) -> None:
        """The operation begun last failed."""
        self._doubtful = None
        self._journal.clear_flight()

    def append(
        self,
        kind: Kind,
        path: bytes,
        *,
        path2: bytes = b"",
        payload: bytes | memoryview = b"",
        flags: int = 0,
        inode: int = 0,
        arg0: int = 0,
        arg1: int = 0,
    ) -> None:
        """The operation begun last succeeded."""
        journal = self._journal
        # Asked after the operation: a reader that registers before it reads a tree without its effect.
        if self._doubtful is not None:
            self.doubt(self._doubtful)
            self._doubtful = None
        elif journal.has_readers:
            journal.append(
                kind, path, path2=path2, payload=payload, flags=flags, inode=inode, arg0=arg0, arg1=arg1
            )
        journal.clear_flight()

    def append_more(
        self,
        kind: Kind,
        path: bytes,
        *,
        path2: bytes = b"",
        payload: bytes = b"",
        flags: int = 0,
        inode: int = 0,
        arg0: int = 0,
        arg1: int = 0,
    ) -> None:
        """A record beside the one that ends an operation: a consequence of it, or a late mtime."""
        if not self.is_active(path):
            return
        if len(path) > limits.PATH_BYTES:
            self._skip(path)
        elif self._journal.has_readers:
            self._journal.append(
                kind, path, path2=path2, payload=payload, flags=flags, inode=inode, arg0=arg0, arg1=arg1
            )

    def doubt(self, path: bytes) -> None:
        """What is at `path` and below may have changed in a way that no record tells."""
        if self._prefixes and self._journal.has_readers:
            self._journal.append(Kind.DOUBT, path)

    def _skip(self, path: bytes) -> None:
        self._skipped_ops += 1
        self._skipped_path = path
        if self._skipped_ops == 1:
            logger.warning(
                "not replicated: a path of %d bytes (the limit is %d): %.100r",
                len(path),
                limits.PATH_BYTES,
                path,
            )


def _contains(outer: bytes, inner: bytes) -> bool:
    return not outer or inner == outer or inner.startswith(outer + b"/")
