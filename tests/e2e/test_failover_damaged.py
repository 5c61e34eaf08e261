"""A file of failover that cannot be read keeps an agent from failover, and from nothing else."""

from pathlib import Path

import pytest
from kit import machine
from kit.dtd import running

pytestmark = pytest.mark.skipif(not machine.is_root(), reason="an agent runs as root")


def test_all_else_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, "alpha") as (alpha,):
        alpha.stop()
        (alpha.home / "witness.json").write_text("{")
        alpha.start()
        assert alpha.json("mount", "list") == []
        told = [event["text"] for event in alpha.json("events") if event["id"] == 9328]
        assert len(told) == 1 and "witness.json: damaged" in told[0]
        refused = alpha.dtctl("failover", "list")
        assert refused.code == 1 and "witness.json" in refused.err and "start the agent again" in refused.err
        alpha.stop()
        (alpha.home / "witness.json").unlink()
        alpha.start()
        assert alpha.json("failover", "list") == []
