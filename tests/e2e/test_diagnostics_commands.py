"""Throughput diagnostics with a real agent: a directory is measured, and no second agent is there."""

import os
import time
from pathlib import Path

import pytest
from kit import dtd
from kit.patience import until

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


def test_a_directory_is_measured(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(3_000_000))
    with dtd.running(tmp_path, "alpha") as (alpha,):
        connection = str(alpha.json("protect", source, "Diagnostics", "--wait")["id"])
        found = until(
            lambda: f if (f := alpha.json("diagnostics", "report", connection))["mirror_complete"] else None
        )
        assert 3_000_000 < found["mirror_bytes"] < 3_100_000 and found["mirror_ratio"] > 0.95
        (source / "log").write_text("a line of a log\n" * 20_000)
        assert alpha.dtctl("wait", connection, "--timeout", "60").code == 0
        (status,) = alpha.json("status")
        assert status["target"] == "Diagnostics" and status["target_data_state"] == "OK"
        found = alpha.json("diagnostics", "report", connection)
        assert 320_000 < found["change_bytes"] < 400_000 and found["change_ratio"] < 0.2
        mine = alpha.json("diagnostics", "report", connection, "--line", "50  Mbit/s")["links"][0]
        assert (mine["link"], mine["bytes_per_s"]) == ("50 Mbit/s", 6_250_000)
        assert mine["mirror_s"] == pytest.approx(found["mirror_bytes"] / 6_250_000)
        for wrong in ("50 Mb/s", "unlimited", "fast"):
            refused = alpha.dtctl("diagnostics", "report", connection, "--line", wrong)
            assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        text = alpha.dtctl("diagnostics", "report", connection).out
        assert "absence of one hour" in text and "T1" in text
        assert alpha.json("diagnostics", "reset", connection)["change_bytes"] == 0
        for words in (("verify", connection), ("orphans", "start", connection)):
            refused = alpha.dtctl(*words)
            assert refused.code == 2 and "it measures, and there is no copy" in refused.err, words
        assert alpha.dtctl("mount", "set", str(source), "sync=fsync,sync_timeout=1").code == 0
        with open(source / "log", "a") as log:
            log.write("a commit")
            os.fsync(log.fileno())
        time.sleep(2)  # so long a target that cannot be waited for would have been given up
        assert alpha.json("status")[0]["synchrony"] == ""
        assert not [event for event in alpha.json("events") if event["id"] in (9140, 9141, 9142)]
        for words in ((), (connection,)):  # nobody is to take it for protection
            assert "there is no copy" in alpha.dtctl("status", *words).out
        alpha.json("disconnect", connection)
        refused = alpha.dtctl("connect", status["repset"], "Diagnostics", "--route", "127.0.0.1:1500")
        assert refused.code == 2 and refused.err.count("\n") == 1 and "leaves this host" in refused.err
        assert alpha.json("status") == []
        assert not list((alpha.home / "source").glob("*.diagnostics"))
