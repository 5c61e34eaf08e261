"""Orphans that were found in a copy, in bounded memory, kept right while the stream goes on.

A run finds orphans directory by directory, and acts when all of them are known: only then it can be said how
many they are. Until then, and while it acts, operations of the source may rename what holds them, or put
something of its own in their place; see `follow`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import msgspec

from replicator.mirror import path_database
from replicator.mirror.order import parent_of
from replicator.ops import RENAME_EXCHANGE, Kind, Record
from replicator.orphans import Orphan, OrphanReport

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orphan (
    journal INTEGER NOT NULL,       -- index in the connection
    path BLOB NOT NULL,             -- relative to the root of the journal
    directory INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,         -- its lower 63 bits: what is there later has to be the same object
    holds INTEGER NOT NULL,         -- a directory in which something is no orphan
    state INTEGER NOT NULL,
    moved_to BLOB NOT NULL,         -- a copy of it is, or is about to be, there
    PRIMARY KEY (journal, path)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS orphan_state ON orphan (state, journal, path);
CREATE TABLE IF NOT EXISTS report (one INTEGER PRIMARY KEY, value BLOB NOT NULL);
"""
FOUND, GOES, DONE, STAYS = range(4)

_INODE = (1 << 63) - 1
_PAGE = 4096
_CREATING = frozenset({Kind.CREATE, Kind.FILE, Kind.MKDIR, Kind.SYMLINK, Kind.MKNOD})


class Row(NamedTuple):
    """An orphan that goes, and what it was when it was found."""

    journal: int
    path: bytes
    directory: bool
    size: int
    mtime_ns: int
    inode: int
    moved_to: bytes


class OrphanTable:
    """Every change (or `transaction`) is safe from a kill of this process, not from a power cut. False while
    it has nothing that `follow` would change. Not thread-safe.
    """

    def __init__(self, file: str | None = None) -> None:
        self._database = path_database.opened(file, _SCHEMA)
        row = self._database.execute("SELECT value FROM report").fetchone()
        self._report = msgspec.msgpack.decode(row[0], type=OrphanReport) if row else OrphanReport()
        self._any = self._count("state < 2") > 0

    def close(self) -> None:
        self._database.close()

    def __bool__(self) -> bool:
        return self._any

    @property
    def report(self) -> OrphanReport:
        return self._report

    def save(self, report: OrphanReport) -> None:
        self._report = report
        value = msgspec.msgpack.encode(report)
        self._database.execute("INSERT OR REPLACE INTO report VALUES (1, ?)", (value,))

    def change(self, **changes: object) -> None:
        """These fields of the report."""
        self.save(msgspec.structs.replace(self._report, **changes))

    def transaction(self) -> AbstractContextManager[None]:
        """See `path_database.transaction`."""
        return path_database.transaction(self._database)

    def commit(self) -> None:
        """Within a transaction: what was changed so far is safe."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def clear(self) -> None:
        self._database.execute("DELETE FROM orphan")
        self._any = False

    # --- finding ---

    def add(self, journal: int, orphan: Orphan, inode: int) -> None:
        row = (journal, orphan.path, orphan.directory, orphan.bytes, orphan.mtime_ns, inode & _INODE)
        self._database.execute(
            "INSERT OR REPLACE INTO orphan VALUES (?, ?, ?, ?, ?, ?, ?, 0, x'')", (*row, orphan.holds)
        )
        self._any = True

    def holds(self, journal: int, directory: bytes) -> None:
        """If that directory is an orphan: something in it is none."""
        self._database.execute(
            "UPDATE orphan SET holds = 1 WHERE journal = ? AND path = ?", (journal, directory)
        )

    # --- the stream goes on ---

    def source_has(self, journal: int, path: bytes) -> None:
        """There is something of the source's at `path`, so also above it."""
        if not self._any:
            return
        paths = [path]
        while path:
            path = parent_of(path)
            paths.append(path)
        self._database.executemany(
            "DELETE FROM orphan WHERE journal = ? AND path = ? AND state < 2", ((journal, p) for p in paths)
        )

    def removed(self, journal: int, path: bytes) -> None:
        """What was at `path` is gone, with all below."""
        if self._any:
            self._database.execute(
                "DELETE FROM orphan WHERE state < 2 AND journal = ?"
                " AND (path = ? OR (path > ? AND path < ?))",
                (journal, path, *_below(path)),
            )

    def follow(self, journal: int, record: Record) -> None:
        """The copy changed as this record says: what was an orphan may be elsewhere, or none any more."""
        if not self._any:
            return
        kind, path, other = record.kind, record.path, record.path2
        with self.transaction():
            if kind in _CREATING or kind in (Kind.UNLINK, Kind.RMDIR):
                self.source_has(journal, path)
            elif kind == Kind.LINK:
                self.source_has(journal, path)
                self.source_has(journal, other)
            elif kind == Kind.REMOVE_TREE:
                self.removed(journal, path)
            elif kind == Kind.RENAME:
                if record.arg0 & RENAME_EXCHANGE:
                    aside = b"\0" + path  # no path holds a NUL
                    self._rename(journal, path, aside)
                    self._rename(journal, other, path)
                    self._rename(journal, aside, other)
                    self.source_has(journal, path)
                else:
                    self.removed(journal, other)
                    self._rename(journal, path, other)
                self.source_has(journal, other)

    def _rename(self, journal: int, old: bytes, new: bytes) -> None:
        self._database.execute(
            "UPDATE OR REPLACE orphan SET path = moved(path, ?, ?)"
            " WHERE journal = ? AND (path = ? OR (path > ? AND path < ?)) AND state < 2",
            (len(old), new, journal, old, *_below(old)),
        )

    # --- deciding and acting ---

    def found(self, journal: int) -> Iterator[Orphan]:
        """All of them; what is in a directory comes before it. They may be settled meanwhile."""
        rows = self._page("1", (journal,))
        while rows:
            for path, directory, size, mtime_ns, holds in rows:
                yield Orphan(path, bool(directory), size, mtime_ns, bool(holds))
            rows = self._page("path < ?", (journal, rows[-1][0]))

    def _page(self, condition: str, values: tuple[object, ...]) -> list[Any]:
        query = (
            "SELECT path, directory, bytes, mtime_ns, holds FROM orphan"
            f" WHERE journal = ? AND {condition} AND state < 2 ORDER BY path DESC LIMIT {_PAGE}"
        )
        return self._database.execute(query, values).fetchall()

    def journals(self) -> list[int]:
        return [row[0] for row in self._database.execute("SELECT DISTINCT journal FROM orphan")]

    def settle(self, journal: int, paths: Iterable[bytes], state: int) -> None:
        self._database.executemany(
            "UPDATE orphan SET state = ? WHERE journal = ? AND path = ?", ((state, journal, p) for p in paths)
        )

    def going(self, count: int) -> list[Row]:
        """The next ones to go; what is in a directory comes before it."""
        rows = self._database.execute(
            "SELECT journal, path, directory, bytes, mtime_ns, inode, moved_to FROM orphan"
            " WHERE state = ? ORDER BY journal DESC, path DESC LIMIT ?",
            (GOES, count),
        )
        return [Row(r[0], r[1], bool(r[2]), *r[3:]) for r in rows.fetchall()]

    def copied(self, row: Row, moved_to: bytes) -> None:
        self._database.execute(
            "UPDATE orphan SET moved_to = ? WHERE journal = ? AND path = ?", (moved_to, row.journal, row.path)
        )

    def names(self, state: int, count: int) -> list[tuple[bytes, bool]]:
        """(path, whether it is a directory), sorted."""
        rows = self._database.execute(
            "SELECT path, directory FROM orphan WHERE state = ? ORDER BY journal, path LIMIT ?",
            (state, count),
        )
        return [(path, bool(directory)) for path, directory in rows.fetchall()]

    def forget_found(self) -> None:
        """Nothing more is going to happen to what is left."""
        self._database.execute("DELETE FROM orphan WHERE state < 2")
        self._any = False

    def _count(self, condition: str) -> int:
        count: int = self._database.execute(f"SELECT count(*) FROM orphan WHERE {condition}").fetchone()[0]
        return count


def same_inode(inode: int, kept: int) -> bool:
    return inode & _INODE == kept


def _below(path: bytes) -> tuple[bytes, bytes]:
    """Between these two, both excluded, lie exactly the paths below `path`."""
    return path + b"/", path + b"0"
