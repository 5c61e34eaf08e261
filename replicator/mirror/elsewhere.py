"""Files of a copy by size and mtime, to find those that were moved on the source while nobody saw it.

A candidate is no more than that: its content is proven by digests before it is believed (see `moved.py`). So
whatever changes behind the back of the index costs time, and nothing else.
"""

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from replicator import limits
from replicator.fs.beneath import MISSING, Root
from replicator.mirror import path_database

_SCHEMA = "CREATE TABLE file (size INTEGER, mtime INTEGER, root INTEGER, path BLOB)"
_INDEX = "CREATE INDEX found ON file (size, mtime)"
_ROWS = 4096


class Candidate(NamedTuple):
    root: Root
    path: bytes


class FileIndex:
    """Of all regular files of at least `limits.ELSEWHERE_MIN_BYTES`. On disk, but for a little; for one
    thread at a time.
    """

    def __init__(self, roots: Iterable[Root]) -> None:
        """Walks the trees. What cannot be read is left out."""
        self._roots = list(roots)
        self._database = path_database.opened(None, _SCHEMA)
        with path_database.transaction(self._database):
            for number, root in enumerate(self._roots):
                self._walk(number, root)
            self._database.execute(_INDEX)

    def _walk(self, number: int, root: Root) -> None:
        rows: list[tuple[int, int, int, bytes]] = []
        stack = [b""]
        while stack:
            directory = stack.pop()
            try:
                descriptor = root.open_directory(directory)
            except OSError:
                continue
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        path = os.path.join(directory, os.fsencode(entry.name))
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(path)
                        elif entry.is_file(follow_symlinks=False):
                            state = entry.stat(follow_symlinks=False)
                            if state.st_size >= limits.ELSEWHERE_MIN_BYTES:
                                rows.append((state.st_size, state.st_mtime_ns, number, path))
            except OSError:
                continue
            finally:
                os.close(descriptor)
            if len(rows) >= _ROWS:
                self._insert(rows)
        self._insert(rows)

    def _insert(self, rows: list[tuple[int, int, int, bytes]]) -> None:
        self._database.executemany("INSERT INTO file VALUES (?, ?, ?, ?)", rows)
        rows.clear()

    def find(self, size: int, mtime_ns: int) -> Candidate | None:
        """One that was so when it was looked at, and still is there."""
        found = self._database.execute(
            "SELECT root, path FROM file WHERE size = ? AND mtime = ? LIMIT 8", (size, mtime_ns)
        )
        for number, path in found.fetchall():
            candidate = Candidate(self._roots[number], path)
            if (descriptor := open_candidate(candidate, size)) is not None:
                os.close(descriptor)
                return candidate
        return None

    def close(self) -> None:
        self._database.close()


def open_candidate(candidate: Candidate, size: int) -> int | None:
    """A descriptor for reading; None if there is no regular file of this size."""
    try:
        directory, name = candidate.root.parent(candidate.path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return None
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return None
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size == size:
        return descriptor
    os.close(descriptor)
    return None
