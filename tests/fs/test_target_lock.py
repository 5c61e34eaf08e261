"""The lock of a copy, as others meet it and as whoever applies changes gets beneath it."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.leftovers import mounts_below

from replicator.errors import UsageError
from replicator.fs import mounts, target_lock
from replicator.status import TargetLock

pytestmark = pytest.mark.fs

NONE, READ_ONLY, LOCKED = TargetLock


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "copy"
    (path / "below").mkdir(parents=True)
    (path / "file").write_text("copied")
    yield path
    for point in mounts_below(tmp_path):
        subprocess.run(["umount", "-l", point], check=True, timeout=10)


def writing(path: Path) -> int:
    """The error number of an attempt to write, 0 if there was none."""
    try:
        path.write_text("changed")
    except OSError as error:
        return error.errno or -1
    return 0


def test_read_only_lets_read_and_nothing_else(copy: Path) -> None:
    target_lock.hold(READ_ONLY, [copy])
    assert target_lock.held([copy]) is READ_ONLY
    assert (copy / "file").read_text() == "copied"
    assert writing(copy / "file") == errno.EROFS
    assert writing(copy / "new") == errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        os.rename(copy / "file", copy / "moved")
    assert writing(copy.parent / "beside") == 0
    target_lock.release([copy])
    assert target_lock.held([copy]) is NONE
    assert writing(copy / "new") == 0


def test_locked_shows_an_empty_directory(copy: Path) -> None:
    target_lock.hold(LOCKED, [copy])
    assert target_lock.held([copy]) is LOCKED
    assert os.listdir(copy) == []
    assert writing(copy / "new") == errno.EROFS
    listing = subprocess.run(
        ["ls", str(copy)], capture_output=True, timeout=10, check=False, user=65534, group=65534
    )
    assert listing.returncode != 0  # the directory itself, not only what it lacks
    target_lock.release([copy])
    assert (copy / "file").read_text() == "copied"


@pytest.mark.parametrize("kind", [READ_ONLY, LOCKED])
def test_held_twice_it_is_there_once(copy: Path, kind: TargetLock) -> None:
    target_lock.hold(kind, [copy])
    target_lock.hold(kind, [bytes(copy)])
    assert mounts_below(copy.parent) == [str(copy)]


def test_another_kind_takes_its_place(copy: Path) -> None:
    for kind in (READ_ONLY, LOCKED, READ_ONLY):
        target_lock.hold(kind, [copy])
        assert target_lock.held([copy]) is kind
        assert len(mounts_below(copy.parent)) == 1
    target_lock.hold(NONE, [copy])
    assert mounts_below(copy.parent) == []


@pytest.mark.parametrize("kind", TargetLock)
def test_beneath_it_everything_can_be_done(copy: Path, kind: TargetLock) -> None:
    """Also a rename between two directories that were opened: they are on one mount."""
    other = copy.parent / "other"
    other.mkdir()
    target_lock.hold(kind, [copy, other])
    descriptors = target_lock.open_beneath([copy, other])
    try:
        assert sorted(os.listdir(descriptors[0])) == ["below", "file"]
        os.rename("file", "moved", src_dir_fd=descriptors[0], dst_dir_fd=descriptors[1])
        os.mkdir("made", dir_fd=descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert target_lock.held([copy, other]) is kind  # elsewhere it is as before
    target_lock.release([copy, other])
    assert (other / "moved").read_text() == "copied"
    assert (copy / "made").is_dir()


def test_descriptors_opened_before_go_on(copy: Path) -> None:
    (descriptor,) = target_lock.open_beneath([copy])
    try:
        target_lock.hold(LOCKED, [copy])
        os.mkdir("made", dir_fd=descriptor)
    finally:
        os.close(descriptor)
    target_lock.release([copy])
    assert (copy / "made").is_dir()


def test_a_file_system_inside_stays_usable_and_mounted(copy: Path) -> None:
    """DK-03: what is not the copy is not touched."""
    inside = copy / "below"
    subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], check=True, timeout=10)
    target_lock.hold(READ_ONLY, [copy])
    assert writing(inside / "mine") == 0
    assert writing(copy / "file") == errno.EROFS
    target_lock.release([copy])
    assert (inside / "mine").read_text() == "changed"
    assert os.path.ismount(inside)


def test_one_lock_is_enough_for_what_lies_inside(copy: Path) -> None:
    target_lock.hold(READ_ONLY, [copy / "below", copy])
    assert mounts_below(copy.parent) == [str(copy)]
    assert writing(copy / "below" / "new") == errno.EROFS


def test_mounts_of_others_are_not_taken_away(copy: Path) -> None:
    """Neither a read-only mount of something else, nor one that may be written."""
    other = copy.parent / "other"
    other.mkdir()
    for command in (
        ["mount", "--bind", str(other), str(copy)],
        ["mount", "-o", "remount,bind,ro", str(copy)],
        ["mount", "--bind", str(other), str(other)],
        ["mount", "-t", "tmpfs", "-o", "ro", "others", str(copy / "..") + "/beside"],
    ):
        (copy.parent / "beside").mkdir(exist_ok=True)
        subprocess.run(command, check=True, timeout=10)
    there = mounts_below(copy.parent)
    target_lock.release([copy, other, copy.parent / "beside"])
    assert mounts_below(copy.parent) == there


def test_a_locked_copy_cannot_be_captured(copy: Path) -> None:
    target_lock.hold(READ_ONLY, [copy])
    for path in (copy, copy / "below"):
        with pytest.raises(UsageError, match="is locked"):
            mounts.check_mount(str(path), str(path), mounts.read_mountinfo())


def test_what_is_captured_cannot_be_locked() -> None:
    entries = [
        mounts.MountEntry("/", "ext4", "/dev/sda1", "8:1", 22, 1),
        mounts.MountEntry("/srv/data", mounts.FSTYPE, "/srv/data", "0:40", 23, 22),
    ]
    for target in ("/srv", "/srv/data", "/srv/data/below"):
        with pytest.raises(target_lock.LockError, match="captured"):
            target_lock.check([target], entries)
    target_lock.check(["/srv/database"], entries)
