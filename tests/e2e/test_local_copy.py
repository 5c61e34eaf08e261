"""Source and copy on one host and one file system: the kernel copies large files, or they share blocks."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import disks
from kit.protected import Protected, protected

from replicator import events

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
FILE_BYTES = 64 * MIB
NOTICED_S = 2.0  # what others change in a copy is told after half a second without more


def used_bytes(directory: Path) -> int:
    state = os.statvfs(directory)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def fill(pair: Protected) -> None:
    pair.source.mkdir()
    disks.write(pair.source / "large", FILE_BYTES)
    with open(pair.source / "sparse", "wb") as file:
        os.pwrite(file.fileno(), b"end", 16 * MIB)
    (pair.source / "small").write_bytes(b"small")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    with disks.xfs(tmp_path / "disk"):
        yield tmp_path / "disk"


def change_both_ways(pair: Protected) -> None:
    """What shares blocks does not share changes."""
    with open(pair.source / "large", "r+b") as file:
        os.pwrite(file.fileno(), b"changed", 5 * MIB)
    pair.assert_equal()
    time.sleep(NOTICED_S)
    assert not [e["text"] for e in pair.beta.json("events") if e["id"] == events.FOREIGN_CHANGES_HERE.id]


@pytest.mark.timeout_s(120)
def test_blocks_are_shared(shared: Path) -> None:
    with protected(shared, connect=False) as pair:
        fill(pair)
        os.sync()
        before = used_bytes(shared)
        pair.connect()
        os.sync()
        assert used_bytes(shared) - before < FILE_BYTES / 4  # but for queues and logs
        assert pair.status["sent_mirror_bytes"] < MIB
        pair.assert_equal()
        change_both_ways(pair)


@pytest.mark.timeout_s(120)
@pytest.mark.parametrize("wanted", [True, False])
def test_the_kernel_copies_where_they_cannot_be_shared(wanted: bool, tmp_path: Path) -> None:
    configuration = "" if wanted else "[mirror]\nlocal_copy = false\n"
    with protected(tmp_path, configuration=configuration, connect=False) as pair:
        fill(pair)
        pair.connect()
        assert (pair.status["sent_mirror_bytes"] < MIB) is wanted
        pair.assert_equal()
        change_both_ways(pair)
