"""Directories of targets: what is made is there for good."""

import os
from pathlib import Path

import pytest
from kit.scripted_source import connect_frame

from replicator.errors import ReplicatorError
from replicator.receiver.replica_paths import make_targets


def test_a_directory_that_was_made_survives_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be missed as one that was there before, and wait for a person."""
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    target = tmp_path / "all" / "copies" / "one"
    make_targets(connect_frame(str(target)), None)
    assert target.is_dir()
    assert synced == [str(tmp_path), str(tmp_path / "all"), str(tmp_path / "all" / "copies")]


def test_one_that_has_disappeared_is_not_made_again(tmp_path: Path) -> None:
    connect = connect_frame(str(tmp_path / "copy"))
    make_targets(connect, connect_frame(str(tmp_path / "another")))
    (tmp_path / "copy").rmdir()
    with pytest.raises(ReplicatorError, match="disappeared"):
        make_targets(connect, connect)
