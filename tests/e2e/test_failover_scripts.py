"""Scripts of a real agent that hang, fail, print megabytes or vanish behave as configured, and say so."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import dtd
from kit.dtd import Agent
from kit.patience import until

pytestmark = [pytest.mark.fs, pytest.mark.e2e]
POST = "post-failover"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """With a monitor of a source that nobody has ever seen."""
    directory = tmp_path_factory.mktemp("scripts")
    (directory / "beta").mkdir()
    defaults = '[failover]\npre_failback = "/bin/true default"\nscript_timeout_s = 7\n'
    (directory / "beta" / "replicator.toml").write_text(defaults)
    with dtd.running(directory, "beta") as (agent,):
        agent.json(
            *("failover", "add", "127.0.0.1:9", "--name", "web", "--even-if-silent"),
            *("--address", "192.0.2.9/32@lo", "--interval", "3600"),
        )
        yield agent


class Scripts:
    def __init__(self, agent: Agent, directory: Path) -> None:
        self.agent = agent
        self.path = directory / "script"

    def choose(self, text: str, *options: str) -> None:
        self.path.write_text(f"#!/bin/sh\n{text}\n")
        self.path.chmod(0o755)
        self.agent.json("failover", "scripts", "set", "web", POST, str(self.path), *options)

    def test(self) -> dict[str, Any]:
        done = self.agent.dtctl("failover", "scripts", "test", "web", POST, "--json")
        found: dict[str, Any] = json.loads(done.out)
        assert done.code == (0 if found["outcome"] == "done" else 1)
        return found

    def events(self) -> str:
        return self.agent.dtctl("events").out


@pytest.fixture
def scripts(agent: Agent, tmp_path: Path) -> Scripts:
    return Scripts(agent, tmp_path)


def test_new_monitors_have_the_scripts_of_the_configuration(agent: Agent) -> None:
    (view,) = (v for v in agent.json("failover", "scripts", "list", "web") if v["kind"] == "pre-failback")
    assert view["script"] == {
        "path": "/bin/true",
        "arguments": ["default"],
        "wait": True,
        "timeout_s": 7.0,
        "on_failure": "go-on",
    }
    shown = agent.dtctl("failover", "scripts", "list").out
    assert "(new ones)" in shown and "/bin/true default" in shown


def test_one_that_does_well(scripts: Scripts) -> None:
    scripts.choose('echo "$REPLICATOR_GROUP $REPLICATOR_TEST"')
    assert scripts.test()["output"] == "web 1\n"
    assert f"web: post-failover script {scripts.path}: done" in scripts.events()
    assert "exit code 0" in scripts.agent.dtctl("failover", "scripts", "test", "web", POST).out


def test_one_that_fails_and_is_to_stop(scripts: Scripts) -> None:
    scripts.choose("echo reason >&2; exit 3", "--stop")
    found = scripts.test()
    assert (found["outcome"], found["exit_code"], found["stop"]) == ("failed", 3, True)
    assert (
        f"{scripts.path} failed: exit code 3" in scripts.events() and "it printed: reason" in scripts.events()
    )


def test_one_that_hangs(scripts: Scripts) -> None:
    scripts.choose("echo waiting; sleep 1000", "--timeout", "1", "--go-on")
    found = scripts.test()
    assert (found["outcome"], found["stop"], found["output"]) == ("timed out", False, "waiting\n")
    assert f"{scripts.path} failed: timed out after 1.0 s" in scripts.events()


def test_one_that_prints_megabytes(scripts: Scripts) -> None:
    scripts.choose("echo first; yes | head -c 20000000; echo last", "--timeout", "60")
    found = scripts.test()
    assert found["output_bytes"] == 20_000_011 and len(found["output"]) < 70_000
    assert found["output"].startswith("first") and found["output"].endswith("last\n")
    assert "characters left out" in scripts.events()


def test_one_that_vanishes(scripts: Scripts) -> None:
    scripts.choose("true")
    os.unlink(scripts.path)
    found = scripts.test()
    assert (found["outcome"], found["reason"]) == (
        "not started",
        f"{scripts.path}: No such file or directory",
    )
    assert "No such file or directory" in scripts.agent.dtctl("failover", "scripts", "list", "web").out


def test_its_agent_is_killed_in_the_middle(scripts: Scripts, tmp_path: Path) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    scripts.choose(f"echo x >>{began}; while ! [ -e {go} ]; do sleep 0.05; done; echo to the end")
    command = [sys.executable, "-c", "from replicator.cli.main import main; main()", "--home"]
    asking = subprocess.Popen(
        [*command, scripts.agent.home, "failover", "scripts", "test", "web", POST],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(began.exists)
    scripts.agent.kill()
    assert asking.wait(30) == 3  # there is no answer
    scripts.agent.start()
    go.touch()
    until(lambda: "it printed: to the end" in scripts.events())
    assert began.read_text() == "x\n"
