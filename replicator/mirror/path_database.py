"""What a target keeps about paths beside its tree: an SQLite database, in bounded memory.

With a file, every change (or `transaction`) is safe from a kill of this process, not from a power cut: what
needs that begins anew then. Not thread-safe.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


def opened(file: str | None, schema: str) -> sqlite3.Connection:
    """The database, with the tables of `schema`, and the function `moved(path, start, new)`: `new`, and the
    path from byte `start` on. `file` None: for this process only.
    """
    database = sqlite3.connect(file or "", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA synchronous = OFF")
    if file is not None:
        database.execute("PRAGMA journal_mode = WAL")
    database.executescript(schema)
    database.create_function("moved", 3, lambda path, start, new: new + path[start:])
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All changes within, or none, are there after a kill. An error takes nothing back: what was done to the
    tree was done, and the database goes with it. Within another one it is a part of that.
    """
    if database.in_transaction:
        yield
        return
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("COMMIT")
