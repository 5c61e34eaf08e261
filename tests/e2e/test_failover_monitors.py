"""Monitors of real agents on hosts of their own: what is asked, of whom, and what survives."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit import machine
from kit.dtd import Agent, running
from kit.hosts import Host, lan

pytestmark = pytest.mark.skipif(not machine.is_root(), reason="network namespaces need root")

FAST = ("--interval", "0.3", "--misses", "2")
_SERVER = (
    "import http.server as h; h.HTTPServer(('0.0.0.0', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
)


class Pair:
    """A source, and the agent that watches it."""

    def __init__(self, alpha: Agent, beta: Agent) -> None:
        assert alpha.host is not None
        self.alpha, self.beta = alpha, beta
        self.source: Host = alpha.host

    @property
    def address(self) -> str:
        return f"{self.source.address}/24"

    def add(self, *options: str, name: str = "web", address: str = "") -> Any:
        where = ("--address", address or self.address)
        return self.beta.json("failover", "add", self.alpha.address, "--name", name, *where, *options)

    def show(self, name: str = "web") -> Any:
        return self.beta.json("failover", "show", name)

    def until(self, condition: Callable[[Any], bool], name: str = "web", timeout_s: float = 20.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while not condition(view := self.show(name)):
            assert time.monotonic() < deadline_s, view
            time.sleep(0.05)
        return view

    def until_phase(self, phase: str, name: str = "web") -> Any:
        return self.until(lambda view: bool(view["phase"] == phase), name)

    def event_ids(self) -> list[int]:
        return [event["id"] for event in self.beta.json("events")]

    def history(self, name: str = "web") -> list[str]:
        return [entry["what"] for entry in self.beta.json("failover", "history", name)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        lan("alpha", "beta") as hosts,
        running(tmp_path_factory.mktemp("agents"), "alpha", "beta", hosts=hosts) as (alpha, beta),
    ):
        yield Pair(alpha, beta)


@pytest.fixture
def two(started: Pair) -> Iterator[Pair]:
    """Without monitors, before and afterwards."""
    yield started
    started.source.mend()
    for monitor in started.beta.json("failover", "list"):
        started.beta.json("failover", "remove", monitor["name"])


@contextmanager
def web_server(host: Host, port: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*host.command, sys.executable, "-c", _SERVER.format(port=port)]
    server = subprocess.Popen(
        command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield server
    finally:
        server.kill()
        server.wait(20)


def test_a_source_that_is_cut_off_is_asked_about_and_one_that_is_back_is_not(two: Pair) -> None:
    """FO-09, FO-12, FO-13, FO-16."""
    view = two.add(*FAST)
    assert view["phase"] == "watching" and view["doing"] == "monitoring" and not view["question"]
    view = two.until(lambda v: bool(v["source_name"]))
    assert (view["source_name"], view["source_uuid"]) == ("alpha", two.alpha.uuid)
    assert view["addresses"][0]["colour"] == "green" and view["addresses"][0]["timeout_s"] == 0.6
    two.source.cut()
    view = two.until_phase("asking")
    assert two.source.address in view["question"] and "shall this host take over?" in view["question"]
    assert view["failed"] and view["addresses"][0]["colour"] == "red"
    for shown in (("failover", "list"), ("failover", "show", "web"), ("status",)):
        assert "dtctl failover answer web yes" in two.beta.dtctl(*shown).out
    two.source.mend()
    view = two.until_phase("watching")
    assert not view["question"] and "answer web" not in two.beta.dtctl("status").out
    ids = two.event_ids()
    assert [i for i in ids if i in (700000, 100, 9303, 9309)][-4:] == [700000, 100, 9303, 9309]
    what = two.history()
    assert what[0] == "added" and [w for w in what if w in ("silent", "failed", "asked", "alive")] == [
        "silent", "failed", "asked", "alive"
    ]  # fmt: skip


def test_a_question_outlives_its_agent_and_its_clients(two: Pair) -> None:
    """FO-09: asked, declined, and begun later all the same; FO-14."""
    two.add(*FAST)
    two.source.cut()
    two.until_phase("asking")
    two.beta.kill()
    two.beta.start()
    time.sleep(1.0)
    assert two.show()["phase"] == "asking"
    declined = two.beta.json("failover", "answer", "web", "no")
    assert declined["phase"] == "declined" and not declined["question"]
    two.beta.stop()
    two.beta.start()
    time.sleep(1.0)
    assert two.show()["phase"] == "declined"
    assert two.beta.dtctl("failover", "answer", "web", "no").code == 0
    two.source.mend()
    two.until_phase("watching")
    refused = two.beta.dtctl("failover", "answer", "web", "yes")
    assert refused.code == 1 and "asks nothing" in refused.err
    assert two.history()[-2:] == ["answers", "alive"]


def test_an_agent_that_is_down_is_not_a_host_that_is_down(two: Pair) -> None:
    two.add(*FAST, "--check", "agent", "--check", "ping")
    two.alpha.kill()
    try:
        two.until(lambda v: bool(v["addresses"][0]["checks"][0]["failed"]))
        time.sleep(1.0)
        view = two.show()
        assert view["phase"] == "watching" and view["addresses"][0]["colour"] == "green"
        assert not view["addresses"][0]["checks"][1]["failed"]
        two.beta.json("failover", "edit", "web", "--check", "agent", "--even-if-silent")
        two.until_phase("asking")
    finally:
        two.alpha.start()
    two.until_phase("watching")


def test_a_web_server_without_agent(two: Pair, tmp_path: Path) -> None:
    """CF-03; TCP, HTTP and command checks; FO-11: edited while it runs."""
    (tmp_path / "health").write_text("well\n")
    port = 8080
    checks = ("--check", f"tcp:{port}", "--check", f"http:http://www.example.org:{port}/health")
    with web_server(two.source, port, tmp_path) as server:
        deadline_s = time.monotonic() + 20
        while "no answer from" in (tried := two.beta.dtctl("failover", "add", f"{two.source.address}:9",
            "--name", "web", "--address", two.address, *FAST, *checks)).err:  # fmt: skip
            assert time.monotonic() < deadline_s
        assert tried.code == 0, tried.err
        time.sleep(1.0)
        view = two.show()
        assert view["phase"] == "watching" and view["source_name"] == ""
        (tmp_path / "health").rename(tmp_path / "ill")
        view = two.until_phase("asking")
        assert "status 404" in view["question"]
        (tmp_path / "ill").rename(tmp_path / "health")
        two.until_phase("watching")
        os.kill(server.pid, signal.SIGSTOP)  # its port accepts, nobody answers
        view = two.until_phase("asking")
        assert "/health: no answer" in view["question"] and "tcp" not in view["question"]
        os.kill(server.pid, signal.SIGCONT)
        two.until_phase("watching")
    two.until_phase("asking")
    flag = tmp_path / "flag"
    flag.touch()
    line = f'command:test -e {flag} -a "$REPLICATOR_ADDRESS" = {two.source.address}'
    two.beta.json("failover", "edit", "web", "--check", line, "--interval", "0.5")
    view = two.until_phase("watching")
    assert view["addresses"][0]["timeout_s"] == 1.0
    flag.unlink()
    assert "ended with 1" in two.until_phase("asking")["question"]


def test_ipv6(two: Pair) -> None:
    for host, number in ((two.source, 1), (two.beta.host, 2)):
        assert host is not None
        host.ip("address", "add", f"fd00:77::{number}/64", "dev", "eth0", "nodad")
    two.add(*FAST, "--check", "ping", address="fd00:77::1/64@eth0")
    time.sleep(1.5)
    view = two.show()
    assert view["phase"] == "watching" and view["addresses"][0]["interface"] == "eth0"
    two.source.cut()
    two.until_phase("asking")


def test_all_addresses_or_any(two: Pair) -> None:
    """FO-20: and addresses that are not monitored."""
    second = "10.77.0.77"
    two.source.ip("address", "add", f"{second}/24", "dev", "eth0")
    watch = ("--check", "ping", "--address", f"{second}/24", "--also", "10.77.0.78/24")
    view = two.add(*FAST, *watch)
    assert view["settings"]["take"] == "all" and len(view["addresses"]) == 3
    two.source.ip("address", "del", f"{second}/24", "dev", "eth0")
    view = two.until(lambda v: bool(v["addresses"][1]["failed"]))
    assert view["phase"] == "watching" and not view["failed"]
    two.beta.json("failover", "edit", "web", "--fail-when", "any")
    view = two.until_phase("asking")
    assert second in view["question"] and two.address not in view["question"]


def test_what_cannot_be_is_refused_with_a_reason(two: Pair) -> None:
    def refused(*options: str, code: int = 2, source: str = "") -> str:
        found = two.beta.dtctl("failover", "add", source or two.alpha.address, *options)
        assert found.code == code, found
        assert len(found.err.splitlines()) == 1
        return found.err

    where = ("--address", two.address)
    text = refused(*where, "--automatic")
    assert all(word in text for word in ("--witness", "--fence-command", "--even-if-partitioned", "both"))
    assert "no interface 'eth7'; it has: eth0" in refused("--address", f"{two.address}@eth7")
    assert "there twice" in refused(*where, *where)
    text = refused("--address", "10.77.0.200/24", *FAST, code=1)
    assert "no answer from 10.77.0.200/24" in text and "--even-if-silent" in text
    assert two.beta.json("failover", "list") == []
    two.add(*FAST)
    assert "watches" in refused(*where, "--name", "other")
    assert "no monitor 'b'; monitors: web" in two.beta.dtctl("failover", "show", "b").err
    assert two.beta.dtctl("failover", "answer", "web", "yes").code == 1


def test_watching_can_be_stopped_for_a_while(two: Pair) -> None:
    two.add(*FAST)
    assert two.beta.json("failover", "stop", "web")["phase"] == "not watching"
    two.source.cut()
    time.sleep(1.5)
    assert two.show()["phase"] == "not watching"
    two.source.mend()
    assert two.beta.json("failover", "start", "web")["phase"] == "watching"
    time.sleep(1.0)
    assert two.show()["phase"] == "watching"
    assert two.history()[-3:] == ["added", "stopped", "started"]


def test_a_monitor_is_removed_without_a_question(two: Pair) -> None:
    """FO-11; what happened stays."""
    two.add(*FAST)
    assert two.beta.dtctl("failover", "remove", "web").out == "monitor web is removed\n"
    assert two.beta.json("failover", "list") == []
    assert two.history()[-2:] == ["added", "removed"]


def test_the_monitors_host_that_was_paused_sees_no_failure(two: Pair) -> None:
    """What nobody looked at is no miss: here for 20 times the whole countdown."""
    two.add(*FAST)
    two.until(lambda v: bool(v["source_name"]))
    before = len(two.history())
    assert two.beta.process is not None
    for _ in range(2):
        two.beta.process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        two.beta.process.send_signal(signal.SIGCONT)
        time.sleep(0.7)
    assert two.show()["phase"] == "watching" and len(two.history()) == before


def test_the_live_view(two: Pair) -> None:
    """FO-13, FO-21."""
    two.add(*FAST)
    command = [sys.executable, "-c", "from replicator.cli.main import main; main()"]
    command += ["--home", str(two.beta.home), "monitor", "--failover", "--interval", "0.2"]
    own, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    shown = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""

    def until_seen(*texts: bytes) -> None:
        nonlocal seen
        deadline_s = time.monotonic() + 20
        while not all(text in seen for text in texts):
            assert time.monotonic() < deadline_s, seen[-3000:]
            if select.select([own], [], [], 0.2)[0]:
                seen += os.read(own, 65536)

    try:
        until_seen(b"web", b"monitoring", "●".encode(), b" of 0.6 s", b"added")
        two.source.cut()
        until_seen(b"shall this host take over?", b"dtctl failover answer web yes", b"asked")
        os.write(own, b"q")
        assert shown.wait(20) == 0
    finally:
        shown.kill()
        shown.wait(20)
        os.close(own)


@pytest.mark.parametrize("how", ["--manual", "--automatic"])
def test_the_address_of_a_host_without_copies_is_taken_over(how: str, tmp_path: Path) -> None:
    """CF-03: asked, with a script that hears of the question, and by itself."""
    virtual, told = "10.77.0.50/24", tmp_path / "told"
    script = tmp_path / "page"
    script.write_text(f'#!/bin/sh\necho "$REPLICATOR_SCRIPT $REPLICATOR_GROUP $REPLICATOR_REASON" >>{told}\n')
    script.chmod(0o755)
    with (
        lan("alpha", "beta") as (alpha, host),
        running(tmp_path, "beta", hosts=(host,)) as (beta,),
    ):
        alpha.ip("address", "add", virtual, "dev", "eth0")
        watch = ("--address", virtual, "--check", "ping", *FAST, how, "--script", f"question={script}")
        if how == "--automatic":
            watch += ("--even-if-partitioned",)
        beta.json("failover", "add", alpha.address, "--name", "web", *watch)
        alpha.cut()
        two = Pair(Agent(tmp_path / "none", "alpha", alpha), beta)
        if how == "--manual":
            two.until_phase("asking")
            assert beta.dtctl("failover", "answer", "web", "yes").out == "monitor web: failed over\n"
        two.until_phase("failed over")
        shown = subprocess.run([*host.command, "ip", "address"], capture_output=True, text=True, check=True)
        assert f"inet {virtual} " in shown.stdout
        ids = two.event_ids()
        assert [i for i in (700000, 100, 101) if i in ids] == [700000, 100, 101]
        assert (told.read_text().split()[:2] if told.exists() else []) == (
            ["question", "web"] if how == "--manual" else []
        )
        beta.kill()
        beta.start()
        assert two.show()["phase"] == "failed over"
