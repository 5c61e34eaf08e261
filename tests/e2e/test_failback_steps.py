"""Going home with real agents, step by step: what people see, what is there, and agents killed in the middle."""

from pathlib import Path

import pytest
from kit import machine
from kit.failover_lab import MONITOR, FailoverLab, failover_lab
from kit.protected import until

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]


def taken_over(lab: FailoverLab) -> None:
    """By a person, while the source lives: it follows at once."""
    lab.source.root.mkdir()
    (lab.source.root / "old").write_bytes(b"before")
    lab.protect()
    lab.monitor(automatic=False, serve=False)
    until(lambda: lab.source.agent.json("failover", "guards"), 20, 0.2)  # the source knows that it is watched
    lab.target.agent.json("failover", "now", MONITOR, "--force")
    lab.phase_becomes(Phase.ACTIVE)
    (lab.target.root / "new").write_bytes(b"of the owner")
    (lab.target.root / "old").write_bytes(b"after")


def test_home_and_back_to_work(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        taken_over(lab)
        until(lambda: lab.target.agent.dtctl("failback", MONITOR, "--dry-run").code == 0, 30, 0.5)
        shown = lab.target.agent.dtctl("failback", MONITOR, "--dry-run")
        print(shown.out)
        report = lab.fail_back("restore-first")
        for step in report["steps"]:
            print(step["name"], step["outcome"], step["duration_s"])
        assert report["outcome"] == "completed", report
        assert (lab.source.root / "new").read_bytes() == b"of the owner"
        assert lab.holders() == ["source"]
        (lab.source.root / "again").write_bytes(b"at home")
        until(lab.is_exact, 30, 0.2)
        lab.assert_equal()
        assert lab.phase_becomes(Phase.WATCHING)["epoch"] == 2
