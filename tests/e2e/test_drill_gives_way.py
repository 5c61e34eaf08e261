"""A dry run and a drill on hosts of their own, and a failover in the middle of the drill."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kit import machine
from kit.dtd import Agent, running
from kit.hosts import Host, lan
from kit.patience import until

from replicator.cli.client import Client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]
ROOT = Path(__file__).parents[2]
OCF_FUNCTIONS = Path("/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs")  # Debian package resource-agents


class Pair(NamedTuple):
    alpha: Agent
    beta: Agent
    source: Path
    copy: Path
    virtual: str


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """alpha protects a directory on beta, and has the address that beta will take."""
    with (
        lan("alpha", "beta") as hosts,
        running(tmp_path, "alpha", "beta", hosts=hosts) as (alpha, beta),
    ):
        source, copy = tmp_path / "source", tmp_path / "copy"
        source.mkdir()
        (source / "file").write_text("of the source")
        alpha.json("protect", source, f"{beta.address}:{copy}", "--wait")
        assert isinstance(alpha.host, Host)
        virtual = f"{alpha.host.address.rpartition('.')[0]}.200"
        alpha.host.ip("address", "add", f"{virtual}/24", "dev", "eth0")
        monitor = ("failover", "add", alpha.address, "--name", "web", "--even-if-silent")
        beta.json(*monitor, "--address", f"{virtual}/24", "--interval", "600")
        until(lambda: alpha.json("failover", "guards"))
        yield Pair(alpha, beta, source, copy, virtual)


def ocf(pair: Pair, agent: Agent, action: str) -> int:
    """What a cluster's resource agent answers on that host."""
    dtctl = pair.source.parent / "dtctl"
    program = "from replicator.cli.main import main; main()"
    dtctl.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c '{program}' \"$@\"\n")
    dtctl.chmod(0o755)
    settings = {"group": "web", "home": str(agent.home), "dtctl": str(dtctl), "force": "true"}
    environment = {
        **os.environ,
        "OCF_ROOT": "/usr/lib/ocf",
        "OCF_RESOURCE_INSTANCE": f"data-{agent.name}",
        "HA_RSCTMP": str(pair.source.parent / "cluster"),
        **{f"OCF_RESKEY_{name}": value for name, value in settings.items()},
    }
    done = subprocess.run(
        [ROOT / "etc" / "ocf" / "replicator", action], env=environment, check=False, timeout=100
    )
    return done.returncode


def switched_by_a_cluster(pair: Pair) -> None:
    """As Pacemaker does it: demoted there, promoted here."""
    for agent in (pair.alpha, pair.beta):
        assert (ocf(pair, agent, "start"), ocf(pair, agent, "monitor")) == (0, 0)
    assert (ocf(pair, pair.alpha, "promote"), ocf(pair, pair.alpha, "monitor")) == (0, 8)
    pair.alpha.kill()  # and fenced
    assert (ocf(pair, pair.beta, "promote"), ocf(pair, pair.beta, "monitor")) == (0, 8)
    pair.alpha.start()
    until(lambda: ocf(pair, pair.alpha, "monitor") == 9)  # it has found itself superseded
    assert (ocf(pair, pair.alpha, "demote"), ocf(pair, pair.alpha, "promote")) == (0, 1)


def by_hand(pair: Pair) -> None:
    done = pair.beta.dtctl("failover", "now", "web", "--force", "--wait")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    "fail_over",
    [
        by_hand,
        pytest.param(
            switched_by_a_cluster,
            marks=[
                pytest.mark.soak,
                pytest.mark.skipif(
                    not OCF_FUNCTIONS.exists(), reason="no OCF here (Debian package resource-agents)"
                ),
            ],
        ),
    ],
)
def test_a_failover_ends_a_drill_and_finds_the_copy_as_it_was(
    pair: Pair, fail_over: Callable[[Pair], None]
) -> None:
    beta = pair.beta
    test = json.loads(beta.dtctl("failover", "test", "web", "--json").out)
    parts = {part["name"]: part for part in test["checks"]}
    assert test["ready"], test
    taken = parts[f"takes {pair.virtual}/24"]  # alpha has it, as it should be
    assert taken["result"] == "ok" and "on eth0; now" in taken["text"] and "is in use" in taken["text"]
    assert parts["permission"]["text"] == "a person may fail over; the epoch would be 1"

    bind = f"import socket; socket.create_server(('{pair.virtual}', 80))"
    check = f'python3 -W ignore -c "{bind}" && echo damage >{pair.source}/file && sleep 1000'
    Client(str(beta.home)).post("failover", "monitors", "web", "drills", body={"check": check})
    damaged = beta.home / "failover" / "drills"
    until(lambda: any(damaged.glob("*/changes/0/file")))  # so it had the address in its room

    (pair.source / "file").write_text("changed while a drill ran")
    until(lambda: any(t["status"]["received"] != t["status"]["applied"] for t in beta.json("target", "list")))
    fail_over(pair)
    (drill,) = until(lambda: (d := beta.json("failover", "drill", "web", "--list"))[0]["ended"] and d)
    assert (drill["state"], drill["reason"]) == ("ended", "a failover began")
    assert (pair.copy / "file").read_text() == "changed while a drill ran"
    refused = beta.dtctl("failover", "drill", "web", "--check", "true")
    assert refused.code == 1 and "failed over" in refused.err
    assert beta.dtctl("failover", "test", "web").code == 1
