"""The bank of `kit.bank` in LMDB: a database that its programs map, and whose locks lie in another mapping.

    python -m kit.lmdb_bank DIRECTORY read-write|mapped SEED    # a writer, until SIGTERM; prints commits

"mapped": the writer stores into the mapping itself (writemap), and syncs that. Before each transfer it looks
whether all accounts are what they should be, without keeping others from writing.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import lmdb

from kit.bank import ACCOUNTS, BALANCE, PAUSE_MAX_S, Look

MAP_BYTES = 16 << 20
_TRANSFER = b"transfer "  # the key of a transfer, and its name; other keys are accounts


def create(directory: Path, how: str) -> None:
    with _open(directory, how) as database, database.begin(write=True) as transaction:
        for number in range(ACCOUNTS):
            transaction.put(b"%d" % number, b"%d" % BALANCE)


def _open(directory: Path, how: str) -> lmdb.Environment:
    return lmdb.open(str(directory), map_size=MAP_BYTES, writemap={"read-write": False, "mapped": True}[how])


def look(database: lmdb.Environment) -> Look:
    total, count, transfers = 0, 0, set()
    with database.begin() as transaction:
        for key, value in transaction.cursor():
            if key.startswith(_TRANSFER):
                transfers.add(key.removeprefix(_TRANSFER).decode())
            else:
                total, count = total + int(value), count + 1
        entries = transaction.stat()["entries"]
    problems = []
    if (total, count) != (ACCOUNTS * BALANCE, ACCOUNTS):
        problems.append(f"{count} accounts hold {total}, not {ACCOUNTS * BALANCE}")
    if entries != count + len(transfers):
        problems.append(f"{entries} entries, but {count + len(transfers)} were found")
    return Look(problems, transfers)


def examine(files: Path, scratch: Path) -> Look:
    """Copy a database to `scratch` without its locks, as after a power cut, and open it there."""
    scratch.mkdir()
    shutil.copyfile(files / "data.mdb", scratch / "data.mdb")
    try:
        with _open(scratch, "read-write") as database:
            return look(database)
    except lmdb.Error as error:
        return Look([str(error)], set())


def main() -> None:
    directory, how, seed = sys.argv[1:]
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    chance = random.Random(int(seed))
    number = 0
    with _open(Path(directory), how) as database:
        while not stopping:
            number += 1
            assert look(database).problems == []
            one, other = (b"%d" % account for account in chance.sample(range(ACCOUNTS), 2))
            amount = chance.randint(1, 100)
            with database.begin(write=True) as transaction:
                transaction.put(one, b"%d" % (int(transaction.get(one)) - amount))
                transaction.put(other, b"%d" % (int(transaction.get(other)) + amount))
                transaction.put(_TRANSFER + b"%s-%d" % (seed.encode(), number), b"%d" % amount)
            os.write(1, f"{seed}-{number} {time.time():.6f}\n".encode())
            time.sleep(chance.uniform(0, PAUSE_MAX_S))


if __name__ == "__main__":
    main()
