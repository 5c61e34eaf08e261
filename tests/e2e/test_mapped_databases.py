"""Databases whose programs share memory by mapping a file of the mount: they work, and so does the copy."""

import random
import sqlite3
import time
from pathlib import Path

import pytest
from kit import bank, lmdb_bank
from kit.patience import until
from kit.protected import protected
from kit.snapshots import frozen
from kit.writers import Writer, writing

pytestmark = pytest.mark.e2e

LOOKS = 15


@pytest.mark.parametrize("how", ["read-write", "mapped"])
def test_lmdb(how: str, tmp_path: Path) -> None:
    """Programs share it through a mapping; copies at random moments hold whole transactions, in order."""
    chance = random.Random(1)
    with protected(tmp_path) as pair:
        database, copy = pair.source / "bank", pair.copy / "bank"
        lmdb_bank.create(database, how)
        commands = [("kit.lmdb_bank", database, how, str(seed)) for seed in (1, 2)]
        before: set[str] = set()
        with writing(tmp_path / "out", *commands) as writers:
            until(lambda: all(writer.output.count("\n") > 3 for writer in writers))
            for writer in writers:
                assert_mapped(writer, database / "lock.mdb", writable=True)
                assert_mapped(writer, database / "data.mdb", writable=how == "mapped")
            pair.drained()
            receiver = pair.status["receiver_pid"]
            for number in range(LOOKS):
                time.sleep(chance.uniform(0, 0.15))
                with frozen(receiver):
                    look = lmdb_bank.examine(copy, tmp_path / f"look-{number}")
                assert look.problems == []
                assert look.transfers >= before
                before = look.transfers
            committed = {line.split()[0] for writer in writers for line in writer.stop().splitlines()}
        pair.assert_equal()
        assert lmdb_bank.examine(copy, tmp_path / "end") == bank.Look([], committed)
        assert len(before) > LOOKS


def assert_mapped(writer: Writer, path: Path, *, writable: bool) -> None:
    """One of its shared mappings is of that file."""
    maps = Path(f"/proc/{writer.pid}/maps").read_text().splitlines()
    found = {line.split()[1] for line in maps if line.endswith(str(path))}
    assert found == {"rw-s" if writable else "r--s"}, (path, found)


def test_the_index_of_a_write_ahead_log_is_shared(tmp_path: Path) -> None:
    """SQLite's -shm: each program finds by it what the others have committed."""
    with protected(tmp_path) as pair:
        database = pair.source / "bank"
        bank.create(database, "wal")
        commands = [("kit.bank", database, "wal", str(seed)) for seed in (1, 2)]
        with writing(tmp_path / "out", *commands) as writers:
            until(lambda: all(writer.output.count("\n") > 3 for writer in writers))
            for writer in writers:
                assert_mapped(writer, pair.source / "bank-shm", writable=True)
            reader = sqlite3.connect(database)
            try:
                for _ in range(30):
                    told = {line.split()[0] for writer in writers for line in writer.output.splitlines()}
                    there = {row[0] for row in reader.execute("select id from transfer")}
                    assert told <= there
                    (total,) = reader.execute("select sum(balance) from account").fetchone()
                    assert total == bank.ACCOUNTS * bank.BALANCE
                    time.sleep(0.02)
            finally:
                reader.close()
            committed = {line.split()[0] for writer in writers for line in writer.stop().splitlines()}
        pair.assert_equal()
        assert bank.examine(pair.copy, "bank", tmp_path / "end") == bank.Look([], committed)
