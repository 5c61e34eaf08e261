"""Which paths of the target hold files that have several names on the source, in bounded memory.

A file is known by its identity on the source. Paths are those of the source, relative to the root of one
journal. Nothing here is verified: whoever gets a path looks at what is there.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from replicator.mirror import path_database
from replicator.ops import NO_IDENTITY, Identity

_SCHEMA = """
CREATE TABLE IF NOT EXISTS name (
    path BLOB PRIMARY KEY,          -- relative to the root of the journal
    inode BLOB NOT NULL,            -- 8 bytes: SQLite's integers are signed
    generation BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS name_of ON name (inode, generation);
"""


_NO_GENERATION = bytes(8)
_VARIABLES = 256  # of one statement


class LinkTable:
    """Identity → names. False while it is empty, so that trees without hard links cost nothing.

    With a `file`, every change (or `transaction`) is safe from a kill of this process, not from a power cut:
    a mirror that was interrupted by one starts anew. Not thread-safe.
    """

    def __init__(self, file: str | None = None) -> None:
        self._database = path_database.opened(file, _SCHEMA)
        self._any = self._count() > 0

    def close(self) -> None:
        self._database.close()

    def __bool__(self) -> bool:
        return self._any

    def __len__(self) -> int:
        return self._count()

    def _count(self) -> int:
        count: int = self._database.execute("SELECT count(*) FROM name").fetchone()[0]
        return count

    def transaction(self) -> AbstractContextManager[None]:
        """See `path_database.transaction`."""
        return path_database.transaction(self._database)

    def add(self, identity: Identity, path: bytes) -> None:
        """`path` holds the file `identity`. NO_IDENTITY is nobody's and is not kept."""
        if identity == NO_IDENTITY:
            return
        self._database.execute("INSERT OR REPLACE INTO name VALUES (?, ?, ?)", (path, *_key(identity)))
        self._any = True

    def add_many(self, names: Iterable[tuple[bytes, int]]) -> None:
        """The same for (path, inode) of files of generation 0."""
        rows = [(path, *_key(Identity(inode, 0))) for path, inode in names]
        if rows:
            self._database.executemany("INSERT OR REPLACE INTO name VALUES (?, ?, ?)", rows)
            self._any = True

    def names_of(self, inodes: Sequence[int]) -> dict[int, bytes]:
        """One path of each of these files, of generation 0, that is known."""
        found: dict[int, bytes] = {}
        if not self._any:
            return found
        for start in range(0, len(inodes), _VARIABLES):
            keys = [inode.to_bytes(8, "big") for inode in inodes[start : start + _VARIABLES]]
            marks = ",".join("?" * len(keys))
            query = f"SELECT inode, path FROM name WHERE generation = ? AND inode IN ({marks})"
            rows = self._database.execute(query, (_NO_GENERATION, *keys))
            found.update((int.from_bytes(inode, "big"), path) for inode, path in rows)
        return found

    def find(self, identity: Identity) -> bytes | None:
        """One path that holds this file."""
        if not self._any:
            return None
        row = self._database.execute(
            "SELECT path FROM name WHERE inode = ? AND generation = ? LIMIT 1", _key(identity)
        ).fetchone()
        return row[0] if row else None

    def names(self, identity: Identity) -> list[bytes]:
        """All paths known to hold this file."""
        if not self._any:
            return []
        rows = self._database.execute(
            "SELECT path FROM name WHERE inode = ? AND generation = ? ORDER BY path", _key(identity)
        )
        return [row[0] for row in rows]

    def names_in(self, directory: bytes) -> set[bytes]:
        """The names in that directory itself that hold a known file."""
        if not self._any:
            return set()
        if directory:
            below = _below(directory)
            rows = self._database.execute("SELECT path FROM name WHERE path > ? AND path < ?", below)
        else:
            rows = self._database.execute("SELECT path FROM name")
        cut = len(directory) + 1 if directory else 0
        return {path[cut:] for (path,) in rows if b"/" not in path[cut:]}

    def holds_another(self, path: bytes, identity: Identity) -> bool:
        """Whether `path` is known to hold another file than this one."""
        if not self._any:
            return False
        row = self._database.execute("SELECT inode, generation FROM name WHERE path = ?", (path,)).fetchone()
        return row is not None and row != _key(identity)

    def forget(self, path: bytes) -> None:
        """`path` and all below it hold nothing known any more."""
        if self._any:
            self._database.execute(
                "DELETE FROM name WHERE path = ? OR (path > ? AND path < ?)", (path, *_below(path))
            )

    def rename(self, old: bytes, new: bytes) -> None:
        """What was at `old` and below is now at `new` and below. `forget(new)` comes first."""
        if self._any:
            self._database.execute(
                "UPDATE name SET path = moved(path, ?, ?) WHERE path = ? OR (path > ? AND path < ?)",
                (len(old), new, old, *_below(old)),
            )

    def exchange(self, one: bytes, other: bytes) -> None:
        """Both paths, with all below, change places."""
        if self._any:
            with self.transaction():
                aside = b"\0" + one  # no path holds a NUL
                self.rename(one, aside)
                self.rename(other, one)
                self.rename(aside, other)

    def clear(self) -> None:
        """Forget everything: the mirror is over."""
        self._database.execute("DELETE FROM name")
        self._any = False


def _key(identity: Identity) -> tuple[bytes, bytes]:
    return identity.inode.to_bytes(8, "big"), identity.generation.to_bytes(8, "big")


def _below(path: bytes) -> tuple[bytes, bytes]:
    """Between these two, both excluded, lie exactly the paths below `path`."""
    return path + b"/", path + b"0"  # "0" follows "/"
