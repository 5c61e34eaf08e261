"""RT-01…10 with agents, mounts and dtctl: data comes home, and protection goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.protected import Protected, protected
from kit.trees import snapshot

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


def mirrors(pair: Protected) -> list[str]:
    """Kinds of the mirrors that have begun."""
    story = pair.alpha.json("story", pair.id, "--limit", "1000")
    return [entry["reason"] for entry in story if entry["event"] == "mirror begins" and entry["reason"]]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Protected]:
    with protected(tmp_path, connect=False) as pair:
        (pair.source / "dir" / "deep").mkdir(parents=True)
        for number in range(30):
            (pair.source / "dir" / f"file {number}").write_text(f"content {number}")
        (pair.source / "dir" / "deep" / "leaf").write_text("leaf")
        pair.connect()
        yield pair


def restore(pair: Protected, *options: str) -> dict[str, Any]:
    """Begin one that must succeed, and wait for its end."""
    found: dict[str, Any] = pair.alpha.json("restore", "start", pair.id, *options, "--wait")
    assert found["phase"] == "complete"
    return found


def check_protection_resumed(pair: Protected, begun: int) -> None:
    """Source and copy are equal, later changes arrive, and no mirror was needed."""
    pair.assert_equal()
    assert pair.status["target_data_state"] == "OK"
    (pair.source / "later").write_text("and on")
    pair.assert_equal()
    assert (pair.copy / "later").read_text() == "and on"
    assert set(mirrors(pair)[begun:]) <= {"recovery"}
    assert pair.status["sent_mirror_bytes"] < 1000


def test_an_older_source_comes_home(pair: Protected) -> None:
    begun = len(mirrors(pair))
    refused = pair.alpha.dtctl("restore", "start", pair.id)
    assert refused.code == 1 and "--even-if replicating" in refused.err
    pair.alpha.json("transmit", "stop", pair.id)
    shutil.rmtree(pair.source / "dir")
    (pair.source / "made since").write_text("is lost")
    refused = pair.alpha.dtctl("restore", "start", pair.id)
    assert refused.code == 1 and "--even-if newer" in refused.err
    preview = pair.alpha.json("restore", "start", pair.id, "--dry-run", "--orphans", "delete")
    assert preview["counts"] == {"create": 33, "remove": 1} and "newer" in preview["refused"]
    before = snapshot(pair.copy)
    restore(pair, "--orphans", "delete", "--orphans-over-limit", "--even-if", "newer")
    assert snapshot(pair.copy) == before
    assert (pair.source / "dir" / "deep" / "leaf").read_text() == "leaf"
    assert not (pair.source / "made since").exists()
    check_protection_resumed(pair, begun)
