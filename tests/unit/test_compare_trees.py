"""The program that judges copies must itself be able to fail: each kind of difference, planted once."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "scripts" / "compare_trees.py"
TIME_NS = 1_700_000_000_123_456_789


def make_tree(root: Path) -> None:
    """One of everything that a program without privileges can make."""
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"content")
    (root / "dir" / "file").chmod(0o640)
    (root / "dir" / "empty").touch()
    with open(root / "dir" / "sparse", "wb") as file:
        file.truncate(1 << 20)
    (root / "link").symlink_to("dir/file")
    (root / "one").write_bytes(b"linked")
    (root / "two").hardlink_to(root / "one")
    (root / "three").write_bytes(b"linked")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "dir" / "file", "user.color", b"blue")
    (root / os.fsdecode(b"not utf-8 \xff")).touch()
    for directory, _, names in os.walk(root, topdown=False):
        for name in (*names, "."):
            os.utime(os.path.join(directory, name), ns=(TIME_NS, TIME_NS), follow_symlinks=False)


def compare(a: Path, b: Path, *options: str) -> tuple[int, dict[str, set[str]]]:
    """Exit code, and what differs by path."""
    result = subprocess.run(
        [sys.executable, PROGRAM, a, b, "--json", *options], capture_output=True, timeout=60, check=False
    )
    found: dict[str, set[str]] = {}
    for difference in json.loads(result.stdout)["differences"]:
        found.setdefault(difference["path"], set()).add(difference["what"])
    return result.returncode, found


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        make_tree(tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """Make a change that times do not betray."""
    change()
    for touched in (path, path.parent):
        if os.path.lexists(touched):
            os.utime(touched, ns=(TIME_NS, TIME_NS), follow_symlinks=False)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_equal(trees: tuple[Path, Path]) -> None:
    assert compare(*trees) == (0, {})


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ("dir/file", lambda p: p.write_bytes(b"cOntent"), "content at byte 1"),
        ("dir/file", lambda p: p.write_bytes(b"content "), "size"),
        ("dir/file", lambda p: p.chmod(0o641), "mode"),
        ("dir/file", lambda p: os.setxattr(p, "user.color", b"red"), "xattr user.color"),
        ("dir/file", lambda p: os.removexattr(p, "user.color"), "xattr user.color"),
        ("dir/empty", lambda p: p.unlink(), "name"),
        ("dir/new", lambda p: p.touch(), "name"),
        ("dir/sparse", lambda p: p.write_bytes(bytes(1 << 20)), "bytes that are not holes"),
        ("link", lambda p: replace(p, lambda q: q.symlink_to("dir/File")), "link text"),
        ("fifo", lambda p: replace(p, bind), "type"),
        ("dir/sub", lambda p: p.chmod(0o700), "mode"),
        ("two", lambda p: replace(p, lambda q: q.write_bytes(b"linked")), "hard link"),
        ("three", lambda p: replace(p, lambda q: q.hardlink_to(q.with_name("one"))), "hard link"),
    ],
)
def test_difference(trees: tuple[Path, Path], path: str, change: Callable[[Path], object], what: str) -> None:
    a, b = trees
    keep_times(b / path, lambda: change(b / path))
    code, found = compare(a, b)
    assert code == 1
    assert what in set().union(*found.values())
    assert compare(b, a)[0] == 1


@pytest.mark.parametrize("path", [".", "dir", "dir/file", "link", "fifo"])
def test_one_nanosecond(trees: tuple[Path, Path], path: str) -> None:
    a, b = trees
    os.utime(b / path, ns=(TIME_NS, TIME_NS + 1), follow_symlinks=False)
    assert compare(a, b) == (1, {path: {"mtime (ns)"}})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away and makes devices")
def test_owner_and_device(trees: tuple[Path, Path]) -> None:
    a, b = trees
    os.chown(b / "link", 1, 2, follow_symlinks=False)
    for root, minor in ((a, 3), (b, 5)):
        os.mknod(root / "dir" / "sub" / "null", 0o20600, os.makedev(1, minor))
        for path in (root / "dir" / "sub" / "null", root / "dir" / "sub"):
            os.utime(path, ns=(TIME_NS, TIME_NS))
    assert compare(a, b) == (1, {"link": {"uid", "gid"}, "dir/sub/null": {"device number"}})


def test_without_content(trees: tuple[Path, Path]) -> None:
    a, b = trees
    keep_times(b / "dir" / "file", lambda: (b / "dir" / "file").write_bytes(b"cOntent"))
    assert compare(a, b, "--no-content") == (0, {})


def test_cannot_compare(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, PROGRAM, tmp_path, tmp_path / "no"], capture_output=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert b"is not a directory" in result.stderr
