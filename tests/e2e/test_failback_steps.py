"""Going home with real agents, step by step: what people see, and what is there."""

from pathlib import Path

import pytest
from kit import machine
from kit.bulk import build_bulk, change_bulk
from kit.failover_lab import MONITOR, VIRTUAL, FailoverLab, failover_lab
from kit.patience import until

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

RATIO_MAX = 1.3


def follows(lab: FailoverLab) -> None:
    """The former source is ready to go home to."""
    until(lambda: lab.target.agent.dtctl("failback", MONITOR, "--dry-run").code == 0, 60, 0.5)


def taken_over(lab: FailoverLab) -> None:
    """By a person, while the source lives: it follows at once."""
    lab.source.root.mkdir(exist_ok=True)
    (lab.source.root / "old").write_bytes(b"before")
    lab.protect()
    lab.monitor(automatic=False, serve=False)
    until(lambda: lab.source.agent.json("failover", "guards"), 20, 0.2)  # the source knows that it is watched
    lab.target.agent.json("failover", "now", MONITOR, "--force")
    lab.phase_becomes(Phase.ACTIVE)
    (lab.target.root / "new").write_bytes(b"of the owner")
    (lab.target.root / "old").write_bytes(b"after")


def check_home(lab: FailoverLab, epoch: int) -> None:
    """The former source owns the group again, and is protected."""
    assert (lab.source.root / "new").read_bytes() == b"of the owner"
    lab.only_holder_becomes("source")
    (lab.source.root / "again").write_bytes(b"at home")
    until(lab.is_exact, 30, 0.2)
    lab.assert_equal()
    assert lab.phase_becomes(Phase.WATCHING)["epoch"] == epoch


@pytest.mark.soak  # what is changed, and an owner at home, are looked at each day by others of these
def test_home_and_back_to_work(tmp_path: Path) -> None:
    with failover_lab(tmp_path) as lab:
        build_bulk(lab.source.root)
        taken_over(lab)
        shown = lab.target.agent.dtctl("failback", MONITOR, "--dry-run")
        assert "bring to source what it lacks, while target serves" in shown.out
        follows(lab)
        sent = lab.target.host.sent_bytes
        changed = change_bulk(lab.target.root)
        report = lab.fail_back("restore-first")
        sent = lab.target.host.sent_bytes - sent
        took = {step["name"]: step["duration_s"] for step in report["steps"]}
        print(f"{sent} bytes for {changed} changed; {took}")
        assert report["outcome"] == "completed", report
        assert sent <= RATIO_MAX * changed
        check_home(lab, 2)


def test_staying(tmp_path: Path) -> None:
    """The owner stays; the former source watches it, and keeps its copy."""
    with failover_lab(tmp_path) as lab:
        taken_over(lab)
        follows(lab)
        report = lab.target.agent.json("failback", MONITOR, "--stay", "--yes")
        assert report["outcome"] == "completed", report
        (monitor,) = lab.source.agent.json("failover", "list")
        assert (monitor["name"], monitor["source_name"], monitor["phase"]) == (MONITOR, "target", "watching")
        assert lab.target.agent.json("failover", "list") == []
        assert lab.source.agent.json("status") == []
        (lab.target.root / "later").write_bytes(b"of the source that it is now")
        (connection,) = lab.target.agent.json("status")
        assert lab.target.agent.dtctl("wait", str(connection["id"]), "--timeout", "30").code == 0
        assert (lab.source.root / "later").read_bytes() == b"of the source that it is now"
        lab.target.agent.kill()
        lab.target.agent.start()
        assert lab.holders() == ["target"]
        lab.target.lose_power()
        lab.target.boot(start=False)
        assert lab.holders() == []
        lab.target.agent.start()
        until(lambda: lab.holders() == ["target"], 20, 0.2)


def test_what_both_sides_wrote(tmp_path: Path) -> None:
    """The source was cut off and wrote on; who asks for the failback decides, and nothing is lost. It was
    known by the very address that the target has taken (FB-03).
    """
    with failover_lab(tmp_path) as lab:
        lab.source.root.mkdir()
        (lab.source.root / "old").write_bytes(b"before")
        lab.protect()
        lab.monitor(automatic=False, serve=False, source=VIRTUAL)
        until(lambda: lab.source.agent.json("failover", "guards"), 20, 0.2)
        lab.cut(lab.source)
        (lab.source.root / "mine").write_bytes(b"of the losing branch")
        lab.target.agent.json("failover", "now", MONITOR, "--force")
        lab.phase_becomes(Phase.ACTIVE)
        (lab.target.root / "new").write_bytes(b"of the owner")
        lab.source.host.mend()
        follows(lab)
        assert "what source wrote is kept there in a bundle" in " ".join(
            lab.target.agent.dtctl("failback", MONITOR, "--dry-run").out.split()
        )
        assert lab.fail_back("restore-first")["outcome"] == "completed"
        check_home(lab, 2)
        assert not (lab.source.root / "mine").exists()
        (bundle,) = lab.source.agent.json("divergence", "list")
        key = bundle["manifest"]["id"]
        assert lab.source.agent.dtctl("divergence", "diff", key).code == 1
        lab.source.agent.json("divergence", "export", key, tmp_path / "kept")
        kept = tmp_path / "kept" / "files" / str(lab.source.root).lstrip("/") / "mine"
        assert kept.read_bytes() == b"of the losing branch"
        assert lab.source.agent.dtctl("divergence", "drop", key, "--yes").code == 0
        assert lab.source.agent.json("divergence", "list") == []
