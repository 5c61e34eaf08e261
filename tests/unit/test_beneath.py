"""Nothing leads out of a root: neither hostile paths nor symlinks, and lent descriptors follow names."""

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.fs.beneath import MISSING, Root, UnsafePathError, check_name

_HOSTILE = [
    b"",
    b"..",
    b".",
    b"/",
    b"/etc",
    b"../x",
    b"a/..",
    b"a/../b",
    b"a/./b",
    b"a//b",
    b"a/",
    b"//a",
    b"a\0b",
    b"a\0/b",
    b"a/" * 2048 + b"b",
]


@pytest.fixture(params=["openat2", "by component"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    with Root(tmp_path / "root") as opened:
        if request.param == "by component":
            opened._openat2 = False
        yield opened


def _at(root: Root, path: str) -> Path:
    return Path(os.fsdecode(root.path)) / path


@pytest.mark.parametrize("path", _HOSTILE)
def test_hostile_paths_are_refused(root: Root, path: bytes) -> None:
    _at(root, "a").mkdir()
    with pytest.raises(UnsafePathError):
        root.parent(path)
    with pytest.raises((UnsafePathError, OSError)):
        root.file(path)
    if path:
        with pytest.raises((UnsafePathError, OSError)):
            root.directory(path)
        with pytest.raises(UnsafePathError):
            root.open_directory(path)
        with pytest.raises(UnsafePathError):
            root.make_directories(path)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0"])
def test_hostile_names_are_refused(name: bytes) -> None:
    with pytest.raises(UnsafePathError):
        check_name(name)


def test_no_symlink_is_followed(root: Root) -> None:
    _at(root, "out").symlink_to("../outside")
    _at(root, "secret").symlink_to("../outside/secret")
    (_at(root, "..") / "outside" / "sub").mkdir()
    _at(root, "in/sub").mkdir(parents=True)
    _at(root, "alias").symlink_to("in")
    for call, path in (
        (root.parent, b"out/secret"),
        (root.parent, b"alias/x"),
        (root.parent, b"alias/sub/x"),
        (root.parent, b"out/sub/x"),
        (root.open_directory, b"alias/sub"),
        (root.open_directory, b"out/sub"),
        (root.directory, b"out"),
        (root.directory, b"alias"),
        (root.file, b"secret"),
        (root.file, b"out/secret"),
    ):
        with pytest.raises(OSError) as caught:
            call(path)
        assert caught.value.errno in MISSING


def test_a_parent_swapped_for_a_symlink_is_noticed_once_forgotten(root: Root) -> None:
    _at(root, "d").mkdir()
    assert root.parent(b"d/x")[1] == b"x"
    _at(root, "d").rename(_at(root, "gone"))
    _at(root, "d").symlink_to("../outside")
    # The descriptor lent before still leads to the old directory: never to where the symlink points.
    assert os.fstat(root.parent(b"d/x")[0]).st_ino == _at(root, "gone").stat().st_ino
    root.forget_all()
    with pytest.raises(OSError):
        root.parent(b"d/x")


def test_only_regular_files_are_opened_and_nothing_blocks(root: Root) -> None:
    os.mkfifo(_at(root, "fifo"))
    os.mknod(_at(root, "socket"), stat.S_IFSOCK | 0o600)
    _at(root, "directory").mkdir()
    for path in (b"fifo", b"socket", b"directory", b"none"):
        with pytest.raises(OSError) as caught:
            root.file(path)
        assert caught.value.errno in MISSING


def test_files_are_lent_again_until_forgotten(root: Root) -> None:
    _at(root, "f").write_bytes(b"x")
    first = root.file(b"f")
    assert root.file(b"f") == first
    assert root.opened(b"f") == first
    _at(root, "f").unlink()
    _at(root, "f").write_bytes(b"new")
    root.forget(b"f")
    assert os.pread(root.file(b"f"), 10, 0) == b"new"


def test_forgetting_a_directory_forgets_all_below_and_nothing_beside(root: Root) -> None:
    for name in ("d", "d/e", "dx"):
        _at(root, name).mkdir()
    for name in ("d/f", "d/e/f", "dx/f"):
        _at(root, name).write_bytes(b"")
    descriptors = {path: root.file(path) for path in (b"d/f", b"d/e/f", b"dx/f")}
    root.forget_below(b"d")
    assert [path for path in descriptors if root.opened(path) is not None] == [b"dx/f"]
    assert root.opened(b"d") is None
    assert root.opened(b"dx") is not None


def test_descriptors_are_bounded_and_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Root(tmp_path, directories_max=3, files_max=2) as root:
        for number in range(20):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "f").write_bytes(b"")
            root.file(b"%d/f" % number)
        assert len(os.listdir("/proc/self/fd")) <= before + 1 + 3 + 2
        assert os.pread(root.file(b"0/f"), 1, 0) == b""
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_takes_trees_but_never_what_symlinks_point_to(root: Root) -> None:
    _at(root, "d/e/f").mkdir(parents=True)
    for number in range(30):
        _at(root, f"d/e/{number}").mkdir()
        _at(root, f"d/e/{number}/x").write_bytes(b"")
    _at(root, "d/out").symlink_to("../../outside")
    os.mkfifo(_at(root, "d/e/fifo"))
    assert root.remove(b"d")
    assert not _at(root, "d").exists()
    assert not root.remove(b"d")
    assert not root.remove(b"d/e/f")
    assert (_at(root, "..") / "outside" / "secret").read_bytes() == b"secret"


def test_remove_many_directories_in_steps(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.limits.REMOVE_DIRECTORIES", 2)
    for number in range(9):
        _at(root, f"d/{number}/x").mkdir(parents=True)
    assert root.remove(b"d")
    assert os.listdir(root.path) == []


def test_make_directories_replaces_what_is_in_the_way(root: Root) -> None:
    _at(root, "a").mkdir()
    _at(root, "a/b").symlink_to("../../outside")
    root.make_directories(b"a/b/c")
    assert _at(root, "a/b").is_dir() and not _at(root, "a/b").is_symlink()
    assert _at(root, "a/b/c").is_dir()
    assert (_at(root, "..") / "outside" / "secret").exists()


def test_a_removed_file_is_not_lent_again(root: Root) -> None:
    _at(root, "f").write_bytes(b"old")
    root.file(b"f")
    root.remove(b"f")
    _at(root, "f").write_bytes(b"new")
    assert os.pread(root.file(b"f"), 10, 0) == b"new"


def test_removed_below_and_made_again_is_not_the_old_one(root: Root) -> None:
    _at(root, "d/e").mkdir(parents=True)
    root.directory(b"d/e")
    root.remove(b"d")
    root.make_directories(b"d/e")
    assert os.fstat(root.directory(b"d/e")).st_ino == _at(root, "d/e").stat().st_ino


@pytest.mark.fs
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_mounted_below_is_not_entered(root: Root) -> None:
    _at(root, "d/m").mkdir(parents=True)
    mountpoint = str(_at(root, "d/m"))
    subprocess.run(["mount", "-t", "tmpfs", "none", mountpoint], check=True, timeout=10)
    try:
        _at(root, "d/m/precious").write_bytes(b"")
        for call, path in (
            (root.directory, b"d/m"),
            (root.file, b"d/m/precious"),
            (root.remove, b"d"),
            (root.remove, b"d/m/precious"),
        ):
            with pytest.raises(OSError) as caught:
                call(path)
            assert caught.value.errno == errno.EXDEV
        assert _at(root, "d/m/precious").exists()
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True, timeout=10)
