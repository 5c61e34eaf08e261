"""What the kernel tells of changes that other processes make, and of which it is silent: our own."""

import ctypes
import errno
import os
import subprocess
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
from kit.leftovers import mounts_below

from replicator.fs import foreign, target_lock
from replicator.fs.foreign import ForeignChange, ForeignChanges, UnwatchableError
from replicator.status import TargetLock

pytestmark = pytest.mark.fs

libc = foreign._libc


class Watched:
    def __init__(self, *directories: Path, own: Container[int] = frozenset({os.getpid()})) -> None:
        descriptors = target_lock.open_beneath(directories)
        try:
            self.changes = ForeignChanges(descriptors, own)
        except UnwatchableError as error:
            pytest.skip(str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def seen(self) -> dict[tuple[int, str], ForeignChange]:
        """All that was told since the last call."""
        found = {}
        while (seen := self.changes.read()) is not None:
            assert not seen.overflow
            for change in seen.changes:
                found[change.root, change.path.decode()] = change
        return found

    def after(self, script: str) -> dict[str, ForeignChange]:
        """What is told of a shell script, below the first directory."""
        subprocess.run(["sh", "-ec", script], check=True, timeout=10)
        return {path: change for (root, path), change in self.seen().items() if root == 0}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    (path / "deep" / "er").mkdir(parents=True)
    (path / "file").write_text("copied")
    (path / "deep" / "er" / "file").write_text("copied")
    return path


@pytest.fixture
def watched(copy: Path) -> Iterator[Watched]:
    watched = Watched(copy)
    yield watched
    watched.changes.close()


@pytest.mark.parametrize(
    ("script", "names", "others"),
    [
        ("echo more >> file", set(), {"file"}),
        ("echo other > deep/er/file", set(), {"deep/er/file"}),
        ("truncate -s 1 file", set(), {"file"}),
        ("rm file", {"file"}, set()),
        ("mv file deep/moved", {"file", "deep/moved"}, set()),
        ("mv deep shallow", {"deep", "shallow"}, set()),
        ("mkdir new; touch new/in", {"new", "new/in"}, set()),
        ("ln file alias", {"alias"}, {"file"}),
        ("ln -s file link", {"link"}, set()),
        ("mkfifo fifo", {"fifo"}, set()),
    ],
)
def test_each_kind_of_change(
    copy: Path, watched: Watched, script: str, names: set[str], others: set[str]
) -> None:
    found = watched.after(f"cd {copy}; {script}")
    assert {path for path, change in found.items() if change.of_name} == names
    # A link changes the attributes of the file as well; whether that is told is the kernel's affair.
    assert {path for path, change in found.items() if not change.of_name} - {"file"} == others - {"file"}
    if "file" in others and not names:
        assert not found["file"].only_attributes


def test_attributes_alone(copy: Path, watched: Watched) -> None:
    found = watched.after(f"chmod 600 {copy}/file; touch -d 2001-01-01 {copy}/deep/er; chmod 711 {copy}")
    assert set(found) == {"file", "deep/er", ""}
    assert all(change.only_attributes for change in found.values())
    assert {path for path, change in found.items() if change.of_directory} == {"deep/er", ""}


def test_a_tree_that_is_removed_is_told_by_its_top(copy: Path, watched: Watched) -> None:
    found = watched.after(f"rm -r {copy}/deep")
    assert found["deep"].of_name and found["deep"].of_directory


def test_reading_and_access_times_are_no_changes(copy: Path, watched: Watched) -> None:
    assert watched.after(f"cat {copy}/file; ls -lR {copy}; find {copy} -type f -exec md5sum {{}} +") == {}


def test_our_own_changes_are_not_told(copy: Path, watched: Watched) -> None:
    for number in range(100):
        (copy / f"own{number}").write_text("own")
    os.rename(copy / "file", copy / "moved")
    os.chmod(copy / "moved", 0o600)
    assert watched.seen() == {}
    assert set(watched.after(f"echo foreign >> {copy}/own7")) == {"own7"}


def test_changes_beside_it_are_not_told(copy: Path, watched: Watched) -> None:
    beside = copy.parent / "beside"
    beside.mkdir()
    assert watched.after(f"cp -r {copy} {beside}; echo >> {beside}/copy/file; rm -r {beside}/copy/deep") == {}
    assert "moved-in" in watched.after(f"mv {beside}/copy {copy}/moved-in")


# Asks to be one of ours, and fills a file without a name; says when it has.
FILLER = """
import os, sys
sys.stdin.readline()
file = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(file, b"content")
os.close(file)
"""


def test_whoever_fills_files_for_us_is_none_of_the_others(copy: Path) -> None:
    """A sender on this host (`mirror/local_copy.py`)."""
    own = {os.getpid()}
    watched = Watched(copy, own=own)
    try:
        for trusted in (True, False):
            command = [sys.executable, "-c", FILLER, copy]
            with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as filler:
                if trusted:
                    own.add(filler.pid)
                filler.communicate("\n", timeout=10)
            assert bool(watched.seen()) is not trusted
    finally:
        watched.changes.close()


def test_several_directories_are_told_apart(copy: Path) -> None:
    other = copy.parent / "other"
    other.mkdir()
    watched = Watched(copy, other)
    try:
        subprocess.run(["sh", "-c", f"echo > {other}/a; echo > {copy}/b"], check=True, timeout=10)
        assert set(watched.seen()) == {(1, "a"), (0, "b")}
    finally:
        watched.changes.close()


@pytest.mark.parametrize("kind", [TargetLock.READ_ONLY, TargetLock.LOCKED])
def test_beneath_a_lock_a_program_that_was_there_before_is_noticed(copy: Path, kind: TargetLock) -> None:
    """It has the file open, or stands in the directory."""
    writer = subprocess.Popen(
        ["sh", "-ec", "exec 3>> file; read go; echo more >&3; echo more > new"],
        cwd=copy,
        stdin=subprocess.PIPE,
    )
    time.sleep(0.2)  # until it has; a test that comes too early fails below
    try:
        target_lock.hold(kind, [copy])
        watched = Watched(copy)
        try:
            writer.communicate(b"\n", timeout=10)
            assert {path for _, path in watched.seen()} == {"file", "new"}
        finally:
            watched.changes.close()
    finally:
        writer.kill()
        writer.wait()
        for point in mounts_below(copy.parent):
            subprocess.run(["umount", "-l", point], check=True, timeout=10)


def test_a_copy_that_is_a_mount_of_its_own_or_of_a_part(copy: Path) -> None:
    """What lies outside of the part that is mounted has paths too, which must not be taken for its own."""
    part = copy.parent / "part"
    part.mkdir()
    (copy.parent / "deep" / "er").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(copy), str(part)], check=True, timeout=10)
    try:
        watched = Watched(part)
        try:
            found = watched.after(f"echo > {copy}/deep/er/in; echo > {copy.parent}/deep/er/out")
            assert set(found) == {"deep/er/in"}
        finally:
            watched.changes.close()
    finally:
        subprocess.run(["umount", "-l", str(part)], check=True, timeout=10)


class Refusing:
    """Opens handles, but refuses the first of them."""

    def __init__(self, reason: int, times: int) -> None:
        self._reason, self.times = reason, times

    def open_by_handle_at(self, root: int, handle: object, flags: int) -> int:
        if self.times:
            self.times -= 1
            ctypes.set_errno(self._reason)
            return -1
        return int(libc.open_by_handle_at(root, handle, flags))


def test_a_handle_that_the_kernel_cannot_look_up_just_now(
    copy: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Refusing(errno.ENOMEM, 3)
    monkeypatch.setattr(foreign, "_libc", kernel)
    assert set(watched.after(f"echo changed > {copy}/file")) == {"file"}
    assert kernel.times == 0


@pytest.mark.parametrize("reason", [errno.ENOMEM, errno.EACCES], ids=errno.errorcode.get)
def test_a_change_that_cannot_be_placed_is_told_as_one_anywhere(
    reason: int, copy: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_libc", Refusing(reason, 1_000_000))
    subprocess.run(["sh", "-ec", f"echo changed > {copy}/file"], check=True, timeout=10)
    seen = watched.changes.read()
    assert seen is not None and seen.anything and not seen.changes
