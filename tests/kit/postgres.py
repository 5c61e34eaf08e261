"""PostgreSQL as an application: the tables of pgbench, whose rows say whether anything is missing.

    python -m kit.postgres SOCKET_DIRECTORY    # runs pgbench until SIGTERM; prints the transactions so far

It does not run as root, and its user gets nowhere near the temporary directory of a test. So each of its
programs has a mount namespace of its own, where the cluster is at `_SEEN_AT`.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CLIENTS = 4
TRANSACTIONS = 50  # of each client in one run of pgbench
COMMAND_TIMEOUT_S = 100.0
_USER = "postgres"
_SEEN_AT = "/mnt"
_AS_USER = f"setpriv --reuid {_USER} --regid {_USER} --clear-groups"
_ENTER = f'mount --bind "$1" {_SEEN_AT} && shift && exec {_AS_USER} "$@"'
_SETTINGS = {  # small, and so that much of what it does to its files happens often
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "min_wal_size": "2MB",
    "max_wal_size": "8MB",
    "checkpoint_timeout": "30s",
    "log_min_messages": "error",
}


def why_not() -> str:
    """Why it cannot run here; empty if it can."""
    if _programs() is None or shutil.which("pgbench") is None:
        return "no PostgreSQL server here (Debian package postgresql)"
    return ""


def _programs() -> Path | None:
    """Where the programs of the newest server are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _inside(cluster: Path, program: str, *arguments: str) -> list[str | Path]:
    programs = _programs()
    assert programs is not None
    entry = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh", cluster)
    return [*entry, programs / program, "-D", _SEEN_AT, *arguments]


def _run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        command, capture_output=True, text=True, check=False, cwd="/", timeout=COMMAND_TIMEOUT_S, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def create(cluster: Path) -> None:
    """A cluster with small tables in the new directory `cluster`."""
    cluster.mkdir(mode=0o700)
    shutil.chown(cluster, _USER, _USER)
    _run(_inside(cluster, "initdb", "-N", "-A", "trust", "--wal-segsize", "1"))
    with serving(cluster) as socket:
        _run(["pgbench", "-h", socket, "-U", _USER, "-i", "-q", "postgres"])


@contextmanager
def serving(cluster: Path) -> Iterator[str]:
    """A server of that cluster, or of a copy of one that was never stopped. Gives its socket's directory.

    AssertionError if it complained about anything.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as socket:
        shutil.chown(socket, _USER, _USER)
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        with open(Path(socket, "log"), "w+") as log:
            server = subprocess.Popen(
                _inside(cluster, "postgres", "-k", socket, *settings), stdout=log, stderr=log, cwd="/"
            )
            try:
                _wait_until_it_answers(server, socket, Path(socket, "log"))
                yield socket
                server.send_signal(signal.SIGINT)
                assert server.wait(COMMAND_TIMEOUT_S) == 0
            finally:
                if server.poll() is None:
                    server.send_signal(signal.SIGQUIT)
                    server.wait(COMMAND_TIMEOUT_S)
            log.seek(0)
            complaints = [line for line in log if any(word in line for word in ("ERROR", "PANIC", "WARNING"))]
            assert not complaints, complaints


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", socket: str, log: Path) -> None:
    deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
    while True:
        try:
            query(socket, "select 1")
            return
        except AssertionError:
            assert server.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)


def query(socket: str, statement: str) -> str:
    return _run(["psql", "-h", socket, "-U", _USER, "-A", "-t", "-c", statement, "postgres"]).strip()


class Look(NamedTuple):
    """What a server's tables hold."""

    problems: list[str]
    transactions: int


def look(socket: str) -> Look:
    """Each transaction of pgbench adds one amount to three balances, and leaves a row that has it."""
    tables = {"accounts": "abalance", "tellers": "tbalance", "branches": "bbalance"}
    sums = {
        name: query(socket, f"select sum({column}) from pgbench_{name}") for name, column in tables.items()
    }
    sums["history"] = query(socket, "select coalesce(sum(delta), 0) from pgbench_history")
    problems = [f"the sums differ: {sums}"] if len(set(sums.values())) > 1 else []
    for table in ("pgbench_accounts", "pgbench_branches", "pgbench_tellers"):
        query(socket, f"set enable_seqscan = off; select count(*) from {table}")
    return Look(problems, int(query(socket, "select count(*) from pgbench_history")))


def look_at_copy(cluster: Path) -> Look:
    """Start a server on a copy, as after a power cut."""
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    with serving(cluster) as socket:
        return look(socket)


@contextmanager
def committing(socket: str, output: Path) -> Iterator[None]:
    """A client inserts rows, one a transaction; `output` has the numbers of those it was told are done."""
    query(socket, "create table if not exists told (id serial primary key)")
    with open(output, "xb") as told:
        insert = "insert into told default values returning id;"
        client = f"yes '{insert}' | psql -h {socket} -U {_USER} -A -t -q postgres"
        process = subprocess.Popen(
            ["sh", "-c", client], stdout=told, stderr=told, cwd="/", start_new_session=True
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(COMMAND_TIMEOUT_S)


def told(output: Path) -> set[int]:
    """What a client of `committing` was told. AssertionError if it saw an error."""
    lines = output.read_text().split("\n")[:-1]
    assert all(line.isdecimal() for line in lines), lines[-3:]
    return set(map(int, lines))


def rows_of_copy(cluster: Path) -> set[int]:
    """What a server that is started on a copy has of `committing`, as after a power cut."""
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    with serving(cluster) as socket:
        return set(map(int, query(socket, "select id from told").split()))


def main() -> None:
    (socket,) = sys.argv[1:]
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    command: list[str | Path] = ["pgbench", "-h", socket, "-U", _USER, "-n", "-c", str(CLIENTS), "-j", "2"]
    expected = CLIENTS * TRANSACTIONS
    done = 0
    while not stopping:
        said = _run([*command, "-t", str(TRANSACTIONS), "postgres"], process_group=0)
        assert f"transactions actually processed: {expected}/{expected}" in said, said
        done += expected
        os.write(1, b"%d\n" % done)


if __name__ == "__main__":
    main()
