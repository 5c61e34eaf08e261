"""dtctl with a real agent: every command, and what is refused."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import dtd
from kit.dtd import Agent
from kit.patience import until

pytestmark = pytest.mark.e2e

COMPARE = Path(__file__).parents[2] / "scripts" / "compare_trees.py"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Agent, Agent]]:
    """Source and target."""
    with dtd.running(tmp_path, "alpha", "beta") as (alpha, beta):
        yield alpha, beta


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Agent]:
    with dtd.running(tmp_path, "alpha") as (alpha,):
        yield alpha


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree to protect."""
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / "file").write_bytes(b"content" * 1000)
    (source / "link").symlink_to("dir/file")
    (source / "name").hardlink_to(source / "dir" / "file")
    return source


def assert_equal(a: Path, b: Path) -> None:
    result = subprocess.run(
        [sys.executable, COMPARE, a, b], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_protect_wait_change_and_take_down(pair: tuple[Agent, Agent], source: Path, tmp_path: Path) -> None:
    alpha, beta = pair
    copy = tmp_path / "copy"
    status = alpha.json("protect", source, f"{beta.address}:{copy}", "--wait")
    assert os.path.ismount(source)
    assert (copy / "dir" / "file").read_bytes() == b"content" * 1000

    (source / "new").write_text("new")
    (source / "dir").rename(source / "moved")
    time.sleep(1.5)  # times of files are journaled after a quiet second
    assert alpha.dtctl("wait", str(status["id"]), "--timeout", "30").code == 0
    assert_equal(source, copy)

    (listed,) = alpha.json("status")
    assert listed["uuid"] == status["uuid"]
    assert listed["target_data_state"] == "OK"
    assert "OK" in alpha.dtctl("status").out
    assert [target["uuid"] for target in beta.json("target", "list")] == [status["uuid"]]

    assert alpha.dtctl("mount", "remove", source).code == 1  # a connection needs it
    assert alpha.dtctl("disconnect", status["uuid"]).code == 0
    assert alpha.json("status") == []
    assert alpha.dtctl("mount", "remove", source).code == 0
    assert not os.path.ismount(source)
    assert (source / "new").read_text() == "new"


def test_steps_one_by_one(pair: tuple[Agent, Agent], source: Path, tmp_path: Path) -> None:
    alpha, beta = pair
    copy = tmp_path / "copy"
    (source / "skip.tmp").touch()
    assert alpha.dtctl("repset", "create", "data").code == 0
    assert alpha.dtctl("repset", "rule", "data", "add", source).code == 0
    assert alpha.dtctl("repset", "rule", "data", "add", source / "*.tmp", "--exclude").code == 0
    refused = alpha.dtctl("connect", "data", beta.address)
    assert refused.code == 1
    assert "dtctl mount add" in refused.err

    mount = alpha.json("mount", "add", source)
    assert mount["mountpoint"] == str(source)
    assert {"path", "mountpoint", "binding", "pid", "state"} <= set(alpha.json("mount", "list")[0])
    con = str(alpha.json("connect", "data", beta.address, "--map", f"{source}={copy}")["id"])
    assert alpha.dtctl("wait", con, "--timeout", "30").code == 0
    assert (copy / "name").exists()
    assert not (copy / "skip.tmp").exists()
    refused = alpha.dtctl("repset", "delete", "data")
    assert refused.code == 1
    assert "connected" in refused.err

    assert alpha.dtctl("transmit", "pause", "data").code == 0
    (source / "held").touch()
    assert alpha.dtctl("wait", con, "--timeout", "0.5").code == 1
    assert not (copy / "held").exists()
    assert alpha.dtctl("transmit", "resume", con).code == 0
    assert alpha.dtctl("wait", con, "--timeout", "30").code == 0
    assert (copy / "held").exists()

    refused = alpha.dtctl("target", "pause", con)
    assert (refused.code, refused.err.count("another agent")) == (1, 1)
    (uuid,) = (target["uuid"] for target in beta.json("target", "list"))
    assert beta.dtctl("target", "pause", uuid).code == 0
    (source / "later").touch()
    time.sleep(0.3)
    assert not (copy / "later").exists()
    assert beta.dtctl("target", "resume", uuid).code == 0
    until((copy / "later").exists)

    (copy / "dir" / "file").write_bytes(b"tampered")
    assert alpha.dtctl("mirror", "start", con, "--mirror", "full").code == 0
    assert alpha.dtctl("wait", con, "--timeout", "30").code == 0
    assert (copy / "dir" / "file").read_bytes() == b"content" * 1000


def test_survives_a_restart_of_the_agent(pair: tuple[Agent, Agent], source: Path, tmp_path: Path) -> None:
    alpha, beta = pair
    copy = tmp_path / "copy"
    con = str(alpha.json("protect", source, f"{beta.address}:{copy}", "--wait")["id"])
    for end in (alpha.stop, alpha.kill):
        end()
        assert os.path.ismount(source)
        (source / f"while-{end.__name__}").touch()  # the mount serves and queues
        alpha.start()
        assert alpha.dtctl("wait", con, "--timeout", "30").code == 0
        assert (copy / f"while-{end.__name__}").exists()
    (status,) = alpha.json("status")
    assert status["target_data_state"] == "OK"


def test_protect_undoes_what_it_began(alone: Agent, source: Path, tmp_path: Path) -> None:
    refused = alone.dtctl("protect", source, f"127.0.0.1:{dtd.free_port()}:{tmp_path}/copy")
    assert refused.code == 1
    assert "cannot connect" in refused.err
    assert alone.json("mount", "list") == []
    assert alone.json("repset", "list") == []
    assert not os.path.ismount(source)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("mount", "add", "/"), 2),
        (("mount", "add", "/proc"), 2),
        (("mount", "add", "/no/such/directory"), 2),
        (("mount", "remove", "/srv"), 2),
        (("repset", "create", "a/b"), 2),
        (("repset", "show", "nothing"), 2),
        (("status", "77"), 2),
        (("wait", "77"), 2),
        (("mirror", "start", "77", "quick"), 2),
        (("connect", "nothing", "localhost:1"), 2),
    ],
)
def test_refusals_are_one_line(alone: Agent, arguments: tuple[str, ...], code: int) -> None:
    refused = alone.dtctl(*arguments)
    assert (refused.code, refused.out) == (code, "")
    assert refused.err.startswith("dtctl: ")
    assert refused.err.count("\n") == 1


def test_second_agent_on_one_home(alone: Agent) -> None:
    second = alone.dtd("--listen", f"127.0.0.1:{dtd.free_port()}")
    assert second.code == 1
    assert second.err.count("\n") == 1
    assert str(alone.home) in second.err


def test_console_and_events(alone: Agent) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from replicator.cli.main import main; main()",
            "--home",
            alone.home,
            "console",
        ],
        input="repset create web\nrepset list\nrepset show web --json\nevents --limit 1000\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert '"generation": 1' in result.stdout
    assert "replication set web modified" in result.stdout
    assert json.loads(alone.dtctl("events", "--json").out)[0]["sequence"] == 1


def test_story_lag_and_why(pair: tuple[Agent, Agent], source: Path, tmp_path: Path) -> None:
    alpha, beta = pair
    con = str(alpha.json("protect", source, f"{beta.address}:{tmp_path / 'copy'}", "--wait")["id"])
    (source / "skip").touch()
    assert alpha.dtctl("transmit", "pause", con).code == 0
    (source / "dir" / "file").write_bytes(b"changed")
    (source / "dir").rename(source / "other")

    report = alpha.json("why", source / "other" / "file")
    assert report["mount"] == str(source)
    (connection,) = report["connections"]
    assert (connection["included"], connection["rule"]) == (True, f"{source} inc, rec")
    rename = connection["operations"][-1]
    assert (rename["operation"], rename["path"], rename["path2"]) == ("rename", "dir", "other")
    assert (rename["stage"], rename["waits_for"]) == ("journaled", "transmission is paused")
    assert "transmission is paused" in alpha.dtctl("why", source / "other" / "file").out
    assert "not captured" in alpha.dtctl("why", tmp_path / "elsewhere").out

    time.sleep(1.2)
    lag = alpha.json("lag", con)
    assert [stage["stage"] for stage in lag["stages"]] == [
        "journaled",
        "sent",
        "received",
        "applied",
        "durable",
    ]
    assert lag["recovery_point_seconds"] > 1 and lag["recovery_point_bytes"] > 0
    assert lag["stages"][1]["seconds"] > 1 and lag["last_minute"]
    assert "journaled → sent" in alpha.dtctl("lag", con).out
    assert alpha.json("status", con)[0]["lag"]["recovery_point_seconds"] > 1

    assert alpha.dtctl("transmit", "resume", con).code == 0
    assert alpha.dtctl("wait", con, "--timeout", "30").code == 0
    # What the sender publishes now and then may be of just before.
    until(lambda: alpha.json("lag", con)["recovery_point_seconds"] == 0)

    beta.kill()
    told = [(step["event"], step["after"]) for step in alpha.json("story", con)]
    steps = [("transmission paused", "Paused"), ("transmission resumed", "Started")]
    places = [told.index(step) for step in steps]
    assert places == sorted(places) and ("the copy is complete", "OK") in told
    pid = alpha.json("status", con)[0]["sender_pid"]
    os.kill(pid, 9)
    until(lambda: alpha.json("status", con)[0]["sender_pid"] not in (None, pid))
    again = [(step["event"], step["after"]) for step in alpha.json("story", con)]
    assert again[: len(told)] == told and ("sender started", "Stopped") in again[len(told) :]
    assert "transmission resumed  (connection Paused → Started" in alpha.dtctl("story", con).out
