"""What a replication set holds, counted when somebody asks."""

import os
import tempfile
from pathlib import Path

import pytest
import trio

from replicator import limits
from replicator.agent.set_size import directories_of, size_of
from replicator.repset import ReplicationSet, Rule


def make(root: Path) -> None:
    for name in ("a", "a/cache", "b", "b/deep/er", "files"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, size in (("a/one", 100), ("a/no.tmp", 7), ("a/cache/big", 10_000), ("b/deep/er/two", 20)):
        (root / name).write_bytes(bytes(size))
    for name in ("first", "second", "not this"):
        (root / "files" / name).write_bytes(bytes(1000))
    os.symlink("one", root / "a/link")
    os.mkfifo(root / "b/fifo")


def counted(root: Path, *rules: Rule) -> tuple[int, int]:
    size = trio.run(size_of, ReplicationSet("web", 1, rules))
    assert size.name == "web" and size.elapsed_s >= 0
    return size.files, size.bytes


@pytest.fixture(autouse=True)
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIZE_ASKED_RESTS", 0.0)


def test_its_rules_are_heeded(tmp_path: Path) -> None:
    make(tmp_path)
    a = Rule(f"{tmp_path}/a")
    assert counted(tmp_path, a) == (4, 10_107)
    assert counted(tmp_path, a, Rule(f"{tmp_path}/a/cache", include=False)) == (3, 107)
    assert counted(tmp_path, a, Rule(f"{tmp_path}/a/*.tmp", include=False)) == (3, 10_100)
    assert counted(tmp_path, a, Rule(f"{tmp_path}/b")) == (6, 10_127)
    assert counted(tmp_path, Rule(str(tmp_path)), a) == (9, 13_127)  # nothing twice


def test_single_files(tmp_path: Path) -> None:
    make(tmp_path)
    first, second = Rule(f"{tmp_path}/files/first"), Rule(f"{tmp_path}/files/second")
    assert directories_of(ReplicationSet("web", 1, (first, second))) == [f"{tmp_path}/files"]
    assert counted(tmp_path, first, second) == (2, 2000)


def test_what_is_not_there(tmp_path: Path) -> None:
    make(tmp_path)
    assert counted(tmp_path) == (0, 0)
    assert counted(tmp_path, Rule(f"{tmp_path}/a"), Rule("/nowhere/at/all")) == (4, 10_107)


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="nothing is mounted there")
def test_what_is_mounted_there_is_not_counted() -> None:
    """No mirror brings it."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="replicator-test-") as file:
        os.truncate(file.name, 2**40)
        assert counted(Path("/dev"), Rule("/dev"))[1] < 2**40 <= counted(Path("/dev"), Rule("/dev/shm"))[1]
