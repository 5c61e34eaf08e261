"""A bank in SQLite: money moves between accounts, so that a copy of the database says whether it is whole.

    python -m kit.bank DATABASE JOURNAL_MODE SEED    # a writer, until SIGTERM; commits on standard output

The sum over all accounts never changes, and every transfer leaves a row of its own. A writer prints
"<transfer> <wall-clock time>" after each commit has returned: what a user was told is done.
"""

import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import NamedTuple

ACCOUNTS = 100
BALANCE = 1000
BUSY_TIMEOUT_S = 60.0
PAUSE_MAX_S = 0.004  # without one a writer hardly ever lets the other in


def create(database: Path, journal_mode: str) -> None:
    connection = _open(database, journal_mode)
    connection.execute("create table account (id integer primary key, balance integer not null)")
    connection.execute("create table transfer (id text primary key, amount integer not null)")
    connection.execute("begin")
    connection.executemany("insert into account values (?, ?)", ((n, BALANCE) for n in range(ACCOUNTS)))
    connection.execute("commit")
    connection.close()


def _open(database: Path, journal_mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    (mode,) = connection.execute(f"pragma journal_mode = {journal_mode}").fetchone()
    assert mode == journal_mode, mode
    connection.execute("pragma synchronous = full")
    return connection


class Look(NamedTuple):
    """What a copy of the database holds. `transfers` are those it has."""

    problems: list[str]
    transfers: set[str]


def examine(files: Path, name: str, scratch: Path) -> Look:
    """Copy a database with its journals to `scratch` and open it there, as after a power cut."""
    scratch.mkdir()
    for file in files.glob(name + "*"):
        shutil.copyfile(file, scratch / file.name)
    return open_copy(scratch / name)


def open_copy(database: Path) -> Look:
    connection = sqlite3.connect(database)
    try:
        problems = [row[0] for row in connection.execute("pragma integrity_check") if row[0] != "ok"]
        (total,) = connection.execute("select sum(balance) from account").fetchone()
        if total != ACCOUNTS * BALANCE:
            problems.append(f"the accounts hold {total}, not {ACCOUNTS * BALANCE}")
        return Look(problems, {row[0] for row in connection.execute("select id from transfer")})
    except sqlite3.DatabaseError as error:
        return Look([str(error)], set())
    finally:
        connection.close()


def main() -> None:
    database, journal_mode, seed = sys.argv[1:]
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    chance = random.Random(int(seed))
    connection = _open(Path(database), journal_mode)
    number = 0
    while not stopping:
        number += 1
        transfer = f"{seed}-{number}"
        one, other = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randint(1, 100)
        connection.execute("begin immediate")
        connection.execute("update account set balance = balance - ? where id = ?", (amount, one))
        connection.execute("update account set balance = balance + ? where id = ?", (amount, other))
        connection.execute("insert into transfer values (?, ?)", (transfer, amount))
        connection.execute("commit")
        os.write(1, f"{transfer} {time.time():.6f}\n".encode())
        time.sleep(chance.uniform(0, PAUSE_MAX_S))
    connection.close()


if __name__ == "__main__":
    main()
