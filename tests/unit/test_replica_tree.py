"""What a target tree syncs: a file whose content changed alone, everything after anything else."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.recording import make_record

from replicator.fs import calls
from replicator.mirror.pieces import Batch
from replicator.net.frames import Connect, JournalInfo, PathMap
from replicator.ops import AttributeMask, Attributes, Flag, Kind, Record
from replicator.receiver.replica_tree import ReplicaTree

WRITE = make_record(Kind.WRITE, b"file", payload=b"new")
MTIME = make_record(
    Kind.SETATTR,
    b"file",
    payload=Attributes(int(AttributeMask.MTIME), 0, 0, 0, 0, 0, 10**18).encode(),
    flags=int(Flag.AFTER_CLOSE),
)


class Target:
    """A tree over a directory with two files, all synced; `synced` says what a sync did."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        copy = directory / "copy"
        copy.mkdir()
        (copy / "file").write_bytes(b"old")
        (copy / "other").write_bytes(b"old")
        connect = Connect(
            "c", "set", 1, "{}", (JournalInfo("j", b"/source"),), (PathMap(0, b"", bytes(copy)),)
        )
        self.synced: list[str] = []
        self.tree = ReplicaTree(connect, str(directory))
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(calls, "syncfs", lambda descriptor: self.synced.append("everything"))
        assert self.sync() == ["everything"]

    def _fsync(self, descriptor: int) -> None:
        self.synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    def apply(self, record: Record, **more: Any) -> None:
        options = {"tolerant": False, "by_identity": False, "in_doubt": False, "intent": b""}
        self.tree.apply(0, record, **(options | more))

    def sync(self) -> list[str]:
        self.synced.clear()
        self.tree.sync()
        return self.synced


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    target = Target(tmp_path, monkeypatch)
    yield target
    target.tree.close()


def test_a_file_that_was_written_is_synced_alone_with_its_mtime(target: Target) -> None:
    target.apply(WRITE)
    target.apply(MTIME)
    target.apply(WRITE)
    assert target.sync() == ["file"]
    assert target.sync() == []


def test_descriptors_forgotten_meanwhile_do_not_matter(target: Target) -> None:
    target.apply(WRITE)
    target.tree.forget_descriptors()
    assert target.sync() == ["file"]


def test_attributes_of_a_file_that_is_not_open(target: Target) -> None:
    target.apply(MTIME)
    assert target.sync() == ["everything"]


@pytest.mark.parametrize(
    "record",
    [
        make_record(Kind.RENAME, b"other", b"name"),
        make_record(Kind.UNLINK, b"other"),
        make_record(Kind.LINK, b"other", b"name"),
    ],
    ids=lambda record: Kind(record.kind).name,
)
def test_names(target: Target, record: Record) -> None:
    target.apply(WRITE)
    target.apply(record)
    target.apply(WRITE)
    assert target.sync() == ["everything"]
    target.apply(WRITE)
    assert target.sync() == ["file"]


@pytest.mark.parametrize("option", ["tolerant", "by_identity"])
def test_a_record_that_may_mean_another_file(target: Target, option: str) -> None:
    target.apply(WRITE, **{option: True})
    assert target.sync() == ["everything"]


def test_a_record_that_failed(target: Target) -> None:
    with pytest.raises(Exception, match="No such file"):
        target.apply(make_record(Kind.WRITE, b"missing", payload=b"x"))
    assert target.sync() == ["everything"]


def test_pieces(target: Target) -> None:
    target.tree.place(Batch(1, 0, ()))
    assert target.sync() == ["everything"]
