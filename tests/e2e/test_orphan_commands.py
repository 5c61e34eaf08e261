"""OR-01…10 with agents, mounts and dtctl: what --dry-run prints is what happens."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.patience import until
from kit.protected import Protected, protected

pytestmark = [pytest.mark.fs, pytest.mark.e2e]

ORPHANS = ("old", "dir/old", "tree/1", "tree/deep/2")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    with protected(tmp_path, connect=False) as pair:
        (pair.source / "dir").mkdir(parents=True)
        for number in range(20):
            (pair.source / "dir" / f"file {number}").write_text(f"content {number}")
        pair.connect()
        for name in (*ORPHANS, "dir/young"):
            (pair.copy / name).parent.mkdir(parents=True, exist_ok=True)
            (pair.copy / name).write_text(f"orphan {name}")
        for path in (*map(pair.copy.joinpath, ORPHANS), pair.copy / "tree/deep", pair.copy / "tree"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        pair.drained()
        yield pair


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_preview_says_what_happens(pair: Protected, tmp_path: Path) -> None:
    away = tmp_path / "away"
    refused = pair.beta.dtctl("target", "orphans", "--action", "move", "--directory", str(pair.copy / "o"))
    assert refused.code == 2 and "overlap" in refused.err
    refused = pair.beta.dtctl("target", "orphans", "--action", "move", "--directory", "/proc/orphans")
    assert refused.code == 2 and "no storage" in refused.err
    kept = pair.alpha.dtctl("orphans", "start", pair.id, "--wait")
    assert kept.code == 1 and "keeps orphans" in kept.err
    options = ("--action", "move", "--directory", str(away), "--older-than", "1", "--limit-percent", "15")
    pair.beta.json("target", "orphans", *options)

    before = names(pair.copy)
    preview = pair.alpha.json("orphans", "start", pair.id, "--dry-run")
    assert names(pair.copy) == before and not away.exists()
    assert preview["names"] == ["dir/old", "old", "tree/", "tree/1", "tree/deep/", "tree/deep/2"]

    halted = pair.alpha.dtctl("orphans", "start", pair.id, "--wait")
    assert halted.code == 1 and "limit of 15 %" in halted.err
    assert names(pair.copy) == before
    until(lambda: any(event["id"] == 9095 for event in pair.alpha.json("events")))

    report = pair.alpha.json("orphans", "start", pair.id, "--wait", "--over-limit")
    gone = before - names(pair.copy)
    assert gone == {name.rstrip("/") for name in preview["names"]}
    assert gone == names(Path(report["directory"]) / "copy") - {"dir"}
    assert [preview[k] for k in ("files", "directories", "bytes")] == [
        report[k] for k in ("done_files", "done_directories", "done_bytes")
    ]
    until(lambda: any(e["id"] == 4052 and "moved 4" in e["text"] for e in pair.alpha.json("events")))
    assert pair.alpha.json("status")[0]["target_data_state"] == "OK"
    *_, told = pair.alpha.json("runs", pair.id)
    assert (told["kind"], told["result"], told["options"]) == ("orphans", "complete", "move")
    assert told["files"] == report["done_files"] and "moved 4" in told["text"]
    (pair.copy / "dir" / "young").unlink()
    log = next((pair.beta.home / "log").glob("receiver-*.log")).read_text()
    assert "orphan moved to" in log and "dir/old" in log


def test_settings_outlive_a_restart_and_mirrors_heed_them(pair: Protected) -> None:
    pair.beta.json("target", "orphans", "--action", "delete", "--limit-percent", "50")
    pair.beta.stop()
    pair.beta.start()
    assert pair.beta.json("target", "orphans")["action"] == "delete"
    pair.drained()
    pair.alpha.json("mirror", "start", pair.id)
    pair.drained()
    until(lambda: pair.alpha.json("orphans", "status", pair.id)["phase"] == "complete")
    pair.assert_equal()
