"""Drills with real agents: the services start on the copy, changes flow on, and nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import postgres
from kit.leftovers import mounts_below
from kit.patience import until
from kit.protected import Protected, protected
from kit.trees import assert_same_tree

from replicator import limits
from replicator.cli.client import Client

pytestmark = [pytest.mark.fs, pytest.mark.e2e]

_WAITS = f"100.{os.getpid()}"  # seconds: a number by which nobody else sleeps
_COUNT = """
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], timeout=30)
base.execute("pragma journal_mode = wal")
base.execute("create table if not exists t (x integer)")
while True:
    base.execute("insert into t select coalesce(max(x), 0) + 1 from t")
    base.commit()
    time.sleep(0.005)
"""
_LOOK = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
count, largest = base.execute("select count(*), max(x) from t").fetchone()
assert count == largest, (count, largest)
print(count)
base.execute("delete from t")
base.execute("insert into t values (-1)")
base.commit()
"""


class Drilled:
    """A protected pair with a monitor on its target, and a program that writes to the source."""

    def __init__(self, pair: Protected, directory: Path) -> None:
        self.pair = pair
        self.beta = pair.beta
        self.directory = directory
        (directory / "count.py").write_text(_COUNT)
        (directory / "look.py").write_text(_LOOK)
        self.waits = f"{{ sleep {_WAITS}; true; }}"
        self.look = f"{sys.executable} {directory}/look.py {pair.source}/base"

    def monitor(self, **settings: object) -> None:
        """The address is one that nobody has: its monitor waits for an answer of a person, and no more."""
        address = {"address": "192.0.2.9/32", "interface": "lo", "interval_s": 3600.0}
        body = {
            "name": "web",
            "even_if_silent": True,
            "settings": {
                "source_host": "127.0.0.1",
                "source_port": self.pair.alpha.port,
                "addresses": [address],
                "copies": [self.pair.status["uuid"]],
                **settings,
            },
        }
        Client(str(self.beta.home)).post("failover", "monitors", body=body)

    def drill(self, *options: str) -> dict[str, Any]:
        found = self.beta.dtctl("failover", "drill", "web", *options, "--json")
        drill: dict[str, Any] = json.loads(found.out)
        assert found.code == (0 if drill["state"] in ("passed", "kept") else 1)
        return drill

    def until_it_waits(self) -> None:
        """The check has come to `waits`."""
        until(waiting)

    def let_it_go_on(self) -> None:
        for process in waiting():
            os.kill(process, signal.SIGPIPE)  # of which a shell says nothing

    def begin(self, check: str) -> None:
        """Without waiting for it: returns once it is in its room."""
        client = Client(str(self.beta.home))
        client.post("failover", "monitors", "web", "drills", body={"check": check})
        until(lambda: self.last["pid"])

    @property
    def last(self) -> dict[str, Any]:
        (first, *_) = self.beta.json("failover", "drill", "web", "--list")
        assert isinstance(first, dict)
        return first

    def over(self) -> dict[str, Any]:
        """The last one, when everything is as it was before."""
        return until(lambda: self.last if self.last["ended"] else None)

    @property
    def receiver(self) -> dict[str, Any]:
        (target,) = self.beta.json("target", "list")
        status = target["status"]
        assert isinstance(status, dict)
        return status


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drilled]:
    """One for all of them: each leaves it as it was."""
    directory = tmp_path_factory.mktemp("drills")
    with protected(directory) as pair:
        drilled = Drilled(pair, directory)
        drilled.monitor()
        yield drilled


@pytest.fixture
def counting(drilled: Drilled) -> Iterator[None]:
    """SQLite on the source, which commits all the time."""
    command = [sys.executable, drilled.directory / "count.py", drilled.pair.source / "base"]
    with subprocess.Popen(command) as process:
        try:
            until((drilled.pair.copy / "base").exists)
            time.sleep(0.5)
            yield
        finally:
            assert process.poll() is None, "the source's program has ended"
            process.terminate()


def image(copy: Path) -> dict[str, tuple[object, ...]]:
    """What its files are now."""
    found = {}
    for path in sorted(path for path in copy.iterdir() if path.is_file()):
        state = path.lstat()
        times = (state.st_mtime_ns, state.st_ctime_ns)
        found[path.name] = (path.read_bytes(), *times, state.st_ino, state.st_mode)
    return found


def waiting() -> list[int]:
    """Processes of this host that wait for `let_it_go_on`."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if Path("/proc", name, "cmdline").read_bytes() == f"sleep\0{_WAITS}\0".encode():
                found.append(int(name))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            continue
    return found


@pytest.mark.usefixtures("counting")
def test_a_database_starts_on_the_view_while_changes_flow(drilled: Drilled) -> None:
    pair = drilled.pair
    drilled.begin(f"{drilled.look} && {drilled.waits}")
    drilled.until_it_waits()
    assert drilled.receiver["target_status"] == "Paused"
    received = drilled.receiver["received"]
    before = image(pair.copy)
    until(lambda: drilled.receiver["received"] != received)  # protection goes on
    assert image(pair.copy) == before  # whatever the drill has written
    drilled.let_it_go_on()
    drill = drilled.over()
    assert drill["state"] == "passed", drill
    assert int(drill["commands"][0]["output"]) > 0
    assert drill["changed_files"] >= 1 and drill["changed_bytes"] > 0
    (point,) = drill["points"]
    assert point["time"] is not None and drill["began"] - 30 < point["time"] < drill["ended"]
    events = pair.beta.dtctl("events").out
    assert "web: drill passed (check: exit code 0" in events
    assert "drill passed" in pair.beta.dtctl("failover", "history", "web").out


def test_the_copy_is_untouched_and_catches_up(drilled: Drilled) -> None:
    pair = drilled.pair
    for number in range(50):
        (pair.source / f"file-{number}").write_bytes(os.urandom(5000))
    pair.drained()
    before = image(pair.copy)
    rm = f"cd {pair.source} && rm file-1 && echo x >>file-2 && mv file-3 file-4 && mkdir d && touch d/e"
    drilled.begin(f"{rm}; {drilled.waits}; exit 7")
    drilled.until_it_waits()
    (pair.source / "file-5").write_text("written while a drill ran")
    until(lambda: drilled.receiver["received"] != drilled.receiver["applied"])
    assert image(pair.copy) == before
    drilled.let_it_go_on()
    drill = drilled.over()
    assert drill["state"] == "failed" and drill["commands"][0]["exit_code"] == 7, drill
    assert drill["removed"] == 2 and drill["still_s"] > 0
    pair.assert_equal()
    assert (pair.copy / "file-5").read_text() == "written while a drill ran"


def test_an_agent_that_is_killed_in_the_middle_cleans_up_when_it_is_back(drilled: Drilled) -> None:
    pair = drilled.pair
    (pair.source / "file").write_text("one")
    pair.drained()
    drilled.begin(f"echo damage >{pair.source}/file; trap '' TERM; sleep 1000 & wait")
    pid = drilled.last["pid"]
    uuid = drilled.last["uuid"]
    pair.beta.kill()
    (pair.source / "file").write_text("two")
    assert (pair.copy / "file").read_text() == "one"
    pair.beta.start()
    assert drilled.over()["state"] == "interrupted" and drilled.last["uuid"] == uuid
    assert not os.path.exists(f"/proc/{pid}")
    assert not (pair.beta.home / "failover" / "drills" / uuid).exists()
    pair.assert_equal()
    assert (pair.copy / "file").read_text() == "two"


@pytest.mark.soak
def test_the_copies_go_on_while_the_agent_stays_dead(drilled: Drilled) -> None:
    pair = drilled.pair
    (pair.source / "file").write_text("one")
    pair.drained()
    drilled.begin("sleep 1000")
    pair.beta.kill()
    (pair.source / "file").write_text("two")
    until(lambda: (pair.copy / "file").read_text() == "two", limits.DRILL_HOLD_S + 60)
    pair.beta.start()
    assert drilled.over()["state"] == "interrupted"
    pair.assert_equal()


def test_a_person_can_keep_it_look_around_and_end_it(drilled: Drilled) -> None:
    pair = drilled.pair
    (pair.source / "file").write_text("one")
    pair.drained()
    drill = drilled.drill("--keep")
    assert drill["state"] == "kept"
    refused = pair.beta.dtctl("target", "resume", pair.status["uuid"])
    assert refused.code == 1 and "a drill reads the copy" in refused.err
    again = pair.beta.dtctl("failover", "drill", "web", "--check", "true")
    assert again.code == 1 and "--end" in again.err
    enter = ["nsenter", "--all", f"--target={drill['pid']}", "cat", pair.source / "file"]
    assert subprocess.check_output(enter) == b"one"
    assert pair.beta.dtctl("failover", "drill", "web", "--end").code == 0
    assert drilled.last["state"] == "passed"
    pair.assert_equal()


def test_with_a_copy_of_the_copies_applying_goes_on_meanwhile(drilled: Drilled) -> None:
    pair = drilled.pair
    (pair.source / "file").write_text("one")
    pair.drained()
    client = Client(str(pair.beta.home))
    body = {"check": f"{drilled.waits}; cat {pair.source}/file", "duplicate": True}
    client.post("failover", "monitors", "web", "drills", body=body)
    drilled.until_it_waits()
    (pair.source / "file").write_text("two")
    pair.assert_equal()
    assert drilled.last["state"] == "running"
    drilled.let_it_go_on()
    drill = drilled.over()
    assert (drill["state"], drill["commands"][0]["output"]) == ("passed", "one")


def test_what_cannot_be_tried_says_why(drilled: Drilled) -> None:
    beta = drilled.beta
    found = beta.dtctl("failover", "drill", "web")
    assert found.code == 2 and "say what to run" in found.err
    settings = beta.json("failover", "show", "web")["settings"]
    Client(str(beta.home)).put(
        "failover",
        "monitors",
        "web",
        body={
            "settings": {**settings, "copies": ["6f1c7b1e-0f3e-4e0a-b1d1-1d9d7c1b2a11"]},
            "even_if_silent": True,
        },
    )
    drill = drilled.drill("--check", "true")
    assert drill["state"] == "impossible" and "nothing of it is kept here" in drill["reason"]
    Client(str(beta.home)).put(
        "failover", "monitors", "web", body={"settings": settings, "even_if_silent": True}
    )


def test_a_dry_run_says_what_a_failover_would_find_and_do(drilled: Drilled) -> None:
    beta = drilled.beta
    gone = drilled.directory / "gone"
    beta.json("failover", "scripts", "set", "web", "pre-failover", str(gone), "--stop")
    before = image(drilled.pair.copy)
    found = beta.dtctl("failover", "test", "web", "--json")
    test = json.loads(found.out)
    parts = {part["name"]: part for part in test["checks"]}
    assert found.code == 1 and not test["ready"]
    assert parts["pre-failover script"]["result"] == "failed"
    assert "No such file" in parts["pre-failover script"]["text"]
    assert parts["monitors 192.0.2.9/32"]["result"] == "warning"  # nobody has it
    (copy,) = (part for name, part in parts.items() if name.startswith("copy of"))
    assert copy["result"] == "ok" and str(drilled.pair.copy) in copy["text"]
    steps = {step["name"]: step["text"] for step in test["steps"]}
    assert steps["pre-failover script"] == str(gone)
    assert list(steps).index("drain") < list(steps).index("promote") < list(steps).index("addresses")
    beta.json("failover", "scripts", "remove", "web", "pre-failover")
    shown = beta.dtctl("failover", "test", "web")
    assert "what it would do" in shown.out
    assert image(drilled.pair.copy) == before


def test_the_post_failover_script_runs_there_and_knows_where(drilled: Drilled) -> None:
    script = drilled.directory / "post.sh"
    script.write_text(
        '#!/bin/sh\necho "$REPLICATOR_DRILL $REPLICATOR_TEST $REPLICATOR_ROOT_1 $REPLICATOR_ADDRESS_1"\n'
    )
    script.chmod(0o755)
    drilled.beta.json("failover", "scripts", "set", "web", "post-failover", str(script))
    drill = drilled.drill("--check", "hostname -I 2>/dev/null; true")
    assert [c["name"] for c in drill["commands"]] == ["post-failover script", "check"]
    assert drill["commands"][0]["output"] == f"1 1 {drilled.pair.source} 192.0.2.9/32\n"
    drilled.beta.json("failover", "scripts", "remove", "web", "post-failover")


@pytest.mark.skipif(bool(postgres.why_not()), reason=postgres.why_not())
@pytest.mark.timeout_s(240)
def test_postgresql_starts_on_the_view(drilled: Drilled) -> None:
    """By the sample script, as at a failover."""
    pair = drilled.pair
    cluster = pair.source / "cluster"
    postgres.create(cluster)
    sample = Path(__file__).parents[2] / "etc" / "scripts" / "postgresql"
    script = drilled.directory / "start"
    # Its user gets nowhere near the directories of a test: but there it may, and only there.
    opened = " ".join(str(directory) for directory in drilled.directory.parents)
    script.write_text(f"#!/bin/sh\nchmod a+x {drilled.directory} {opened} && exec {sample}\n")
    script.chmod(0o755)
    with postgres.serving(cluster) as socket, postgres.committing(socket, drilled.directory / "told"):
        pair.drained()
        drilled.beta.json(
            *("failover", "scripts", "set", "web", "post-failover"),
            f"/usr/bin/env PGDATA={cluster} PG_SOCKET=/run/drill PG_PORT=5433 {script}",
        )
        query = "select 'rows', count(*) from told; insert into told default values"
        psql = f'setpriv --reuid postgres --clear-groups psql -h /run/drill -p 5433 -Atqc "{query}" postgres'
        time.sleep(1)
        drill = drilled.drill("--check", f"cd /; {psql}")
    assert drill["state"] == "passed", json.dumps(drill, indent=1)
    assert drill["commands"][1]["output"].startswith("rows|") and "|0" not in drill["commands"][1]["output"]
    pair.assert_equal()
    drilled.beta.json("failover", "scripts", "remove", "web", "post-failover")


def test_nothing_is_left_on_the_host(drilled: Drilled) -> None:
    before = len(mounts_below(str(drilled.directory)))
    drilled.drill("--check", "true")
    assert len(mounts_below(str(drilled.directory))) == before
    assert not list((drilled.beta.home / "failover" / "drills").glob("*/"))
    assert_same_tree(drilled.pair.source, drilled.pair.copy)
