"""Hosts that are lost for good, with real agents: how whoever is left goes on, by the documented commands."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from kit import machine
from kit.dtd import Agent
from kit.failover_lab import MONITOR, VIRTUAL, FailoverLab, failover_lab
from kit.patience import until

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.soak,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]


def protect(lab: FailoverLab) -> None:
    lab.source.root.mkdir(exist_ok=True)
    (lab.source.root / "old").write_bytes(b"before")
    lab.protect()


def taken_over(lab: FailoverLab) -> None:
    """By a person, while the source lives."""
    protect(lab)
    lab.monitor(automatic=False, serve=False)
    until(lambda: lab.source.agent.json("failover", "guards"), 20, 0.2)
    lab.target.agent.json("failover", "now", MONITOR, "--force")
    lab.phase_becomes(Phase.ACTIVE)
    (lab.target.root / "new").write_bytes(b"of the owner")


def part(lab: FailoverLab, name: str) -> dict[str, str]:
    """What a dry run says of it."""
    found = json.loads(lab.target.agent.dtctl("failover", "test", MONITOR, "--json").out)
    (one,) = (check for check in found["checks"] if check["name"] == name)
    assert isinstance(one, dict)
    return one


def refused(lab_agent: object, *words: str) -> str:
    """The one line that says what to do."""
    done = lab_agent.dtctl(*words)  # type: ignore[attr-defined]
    assert done.code == 1, done.out
    (line,) = done.err.splitlines()
    assert isinstance(line, str)
    return line


@pytest.mark.timeout_s(900)
def test_an_owner_that_is_lost_and_comes_back_all_the_same(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        taken_over(lab)
        source = lab.source.agent
        until(lambda: (lab.source.root / "new").exists(), 60, 0.2)
        until(lambda: lab.target.agent.dtctl("failback", MONITOR, "--dry-run").code == 0, 60, 0.5)
        assert "lost for good" in refused(source, "failover", "now", MONITOR)
        lab.target.lose_power()
        line = refused(source, "failover", "open", MONITOR, "--even-if-two-masters")
        assert f"dtctl failover now {MONITOR} --source-is-off" in line
        found = source.json("failover", "now", MONITOR, "--source-is-off")
        assert (found["phase"], found["epoch"]) == (Phase.ACTIVE, 2)
        assert lab.source.has(VIRTUAL)
        (lab.source.root / "after").write_bytes(b"of whoever is left")
        assert (lab.source.root / "new").read_bytes() == b"of the owner"
        assert source.json("failover", "guards") == []
        source.kill_all()
        source.start()
        until(lambda: source.json("mount", "list")[0]["state"] == "serving", 60, 0.5)
        (lab.source.root / "later").write_bytes(b"captured still")

        lab.target.boot()
        target = lab.target.agent
        until(lambda: target.json("failover", "list") == [], 60, 0.5)
        assert lab.holders() == ["source"]
        with pytest.raises(OSError):
            (lab.target.root / "more").write_bytes(b"of nobody")
        report = source.json("failback", MONITOR, "--stay", "--yes")
        assert report["outcome"] == "completed", report
        until(lambda: (lab.target.root / "later").exists(), 60, 0.2)
        assert (lab.target.root / "after").read_bytes() == b"of whoever is left"
        (watching,) = target.json("failover", "list")
        assert watching["phase"] == Phase.WATCHING and lab.holders() == ["source"]


@pytest.mark.timeout_s(900)
def test_a_source_whose_target_and_witness_are_lost(tmp_path: Path) -> None:
    with failover_lab(tmp_path, witness=True) as lab:
        protect(lab)
        lab.monitor(automatic=False, serve=False)
        source = lab.source.agent
        assert "has a lease" in refused(source, "failover", "release", MONITOR, "--even-if-two-masters")
        assert lab.witness is not None
        assert part(lab, "witness")["result"] == "ok"
        lab.cut(lab.witness)
        assert part(lab, "witness")["result"] == "failed"
        lab.cut(lab.target)
        until(lambda: not source.json("failover", "guards")[0]["is_open"], 30, 0.2)
        assert "--even-if-two-masters" in refused(source, "failover", "release", MONITOR)
        found = source.json("failover", "release", MONITOR, "--even-if-two-masters")
        assert found["connections"] and not found["problems"]
        (lab.source.root / "after").write_bytes(b"nobody is asked")
        source.kill_all()
        source.start()
        (lab.source.root / "again").write_bytes(b"nor after a restart")
        assert source.json("failover", "guards") == [] and lab.holders() == ["source"]
        assert source.dtctl("disconnect", str(found["connections"][0])).code == 0


@pytest.mark.timeout_s(900)
def test_a_source_that_is_lost(tmp_path: Path) -> None:
    """Its target is the source from then on, and is protected by a third host."""
    with failover_lab(tmp_path, witness=True) as lab:
        protect(lab)
        lab.monitor(automatic=False, serve=False)
        target, third = lab.target.agent, lab.witness
        assert third is not None
        lab.source.lose_power()
        lab.phase_becomes(Phase.ASKING)
        target.json("failover", "answer", MONITOR, "yes")
        lab.phase_becomes(Phase.ACTIVE)
        assert "--even-if-owner" in refused(target, "failover", "remove", MONITOR)
        done = target.dtctl("failover", "remove", MONITOR, "--even-if-owner")
        assert done.code == 0 and "network configuration" in done.out
        (returning,) = target.json("status")
        assert target.dtctl("disconnect", str(returning["id"])).code == 0
        target.kill_all()
        target.start()
        assert lab.target.has(VIRTUAL)
        (lab.target.root / "after").write_bytes(b"of the only one")
        copy = third.disk.path / "data"
        destination = f"{third.agent.address}:{copy}"
        target.json("protect", lab.target.root, destination, "--wait")
        assert (copy / "after").read_bytes() == b"of the only one"


def stands_still(agent: Agent) -> bool:
    assert agent.process is not None
    return Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.timeout_s(900)
@pytest.mark.parametrize(
    ("moment", "witness", "order"),
    [
        ("home_stands_still_before_it_is_promoted", True, "restore-first"),
        ("home_stands_still_when_it_is_promoted", False, "failback-first"),
        ("home_stands_still_when_it_is_promoted", True, "restore-first"),
        ("home_stands_still_before_it_opens", False, "restore-first"),
        ("home_stands_still_before_it_sends", True, "restore-first"),
    ],
)
def test_home_is_lost_while_the_group_is_handed_back(
    tmp_path: Path, moment: str, witness: bool, order: str
) -> None:
    """Nobody can say whether it owns the group. The target takes over from it; home comes back after all."""
    with failover_lab(tmp_path, witness=witness, planted=moment) as lab:
        taken_over(lab)
        target = lab.target.agent
        until(lambda: target.dtctl("failback", MONITOR, "--dry-run").code == 0, 60, 0.5)
        command = ("failback", MONITOR, "--order", order, "--yes")
        failback = Thread(target=lambda: suppress_timeout(target, *command), daemon=True)
        failback.start()
        until(lambda: stands_still(lab.source.agent), 60, 0.05)
        lab.source.lose_power()
        lab.source.agent.planted = ""
        assert "certainly off" in refused(target, "failover", "now", MONITOR)
        target.dtctl("failback", MONITOR, "--abandon")  # as somebody would try first
        assert lab.group["phase"] == Phase.HANDING_BACK
        found = target.json("failover", "now", MONITOR, "--source-is-off")
        assert (found["phase"], found["epoch"]) == (Phase.ACTIVE, 3), found
        assert lab.target.has(VIRTUAL)
        assert (lab.target.root / "new").read_bytes() == b"of the owner"
        (lab.target.root / "after").write_bytes(b"of whoever is left")
        target.kill_all()
        target.start()
        until(lambda: target.json("mount", "list")[0]["state"] == "serving", 60, 0.5)
        (lab.target.root / "later").write_bytes(b"captured still")
        failback.join(60)

        lab.source.boot()
        until(lambda: lab.source.agent.json("failover", "guards")[0]["superseded"]["epoch"] == 3, 60, 0.2)
        with pytest.raises(OSError):
            (lab.source.root / "more").write_bytes(b"of nobody")
        lab.only_holder_becomes("target")
        until(lambda: target.dtctl("failback", MONITOR, "--dry-run").code == 0, 120, 0.5)
        report = target.json("failback", MONITOR, "--yes")
        assert report["outcome"] == "completed", report
        assert (lab.source.root / "after").read_bytes() == b"of whoever is left"
        assert (lab.source.root / "later").read_bytes() == b"captured still"
        lab.only_holder_becomes("source")
        assert lab.phase_becomes(Phase.WATCHING)["epoch"] == 4


def suppress_timeout(agent: Agent, *words: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        agent.dtctl(*words)


@pytest.mark.timeout_s(900)
def test_a_source_whose_copies_are_gone(tmp_path: Path) -> None:
    """It is watched still: addresses move, and nothing holds its programs up; the way home is the same."""
    with failover_lab(tmp_path) as lab:
        protect(lab)
        lab.monitor(automatic=False, serve=False)
        source, target = lab.source.agent, lab.target.agent
        until(lambda: source.json("failover", "guards"), 20, 0.2)
        assert source.dtctl("disconnect", "1").code == 0
        target.json("failover", "now", MONITOR, "--force")
        lab.phase_becomes(Phase.ACTIVE)
        lab.only_holder_becomes("target")
        (guard,) = source.json("failover", "guards")
        assert guard["superseded"] is not None and guard["is_open"]
        (lab.source.root / "after").write_bytes(b"nobody else has a copy")
        report = target.json("failback", MONITOR, "--yes")
        assert report["outcome"] == "completed", report
        lab.only_holder_becomes("source")
        assert lab.phase_becomes(Phase.WATCHING)["epoch"] == 2
        (guard,) = source.json("failover", "guards")
        assert guard["superseded"] is None or guard["epoch"] >= guard["superseded"]["epoch"]
