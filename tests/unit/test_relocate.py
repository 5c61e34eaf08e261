"""Objects are taken out of a tree exactly, also to another file system."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.trees import differences, snapshot

from replicator.fs.beneath import Root
from replicator.fs.relocate import ChangedMeanwhile, Store, remove

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@pytest.fixture(params=["the same", "another"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the same file system, or on another one."""
    if request.param == "the same":
        yield tmp_path / "store"
        return
    directory = Path(tempfile.mkdtemp(prefix="replicator-test-store-", dir="/dev/shm"))
    if directory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("temporary files lie in shared memory")
    yield directory / "store"
    shutil.rmtree(directory)


def some_objects(root: Path) -> list[bytes]:
    """Their names."""
    root.mkdir()
    (root / "file").write_bytes(b"content" * 1000)
    os.chown(root / "file", 12, 34)
    (root / "file").chmod(0o4750)
    os.setxattr(root / "file", "user.colour", b"blue")
    os.utime(root / "file", ns=(1_000_000_001, -5_000_000_007))
    with open(root / "holes", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 18)
        file.write(b"x" * 4096)
    os.symlink("nowhere", root / "link")
    os.lchown(root / "link", 5, 6)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    (root / "directory").mkdir(mode=0o2710)
    os.chown(root / "directory", 3, 4)
    os.utime(root / "directory", ns=(7, 9))
    (root / ("n" * 255)).write_text("long")
    (root / os.fsdecode(b"\xff")).write_text("bytes")
    return sorted(os.listdir(os.fsencode(root)))


def move_all(store: Store, root: Root, names: list[bytes], below: bytes) -> list[bytes]:
    told: list[bytes] = []
    for name in names:
        for _ in store.move(root, name, below + b"/" + name, told.append):
            pass
    return told


def test_what_is_moved_is_the_same_there(place: Path, tmp_path: Path) -> None:
    names = some_objects(tmp_path / "copy")
    before = snapshot(tmp_path / "copy")
    mtime_ns = (tmp_path / "copy").stat().st_mtime_ns
    store = Store(str(place))
    with Root(tmp_path / "copy") as root:
        move_all(store, root, names, b"a/b")
    store.close()
    after = snapshot(place / "a" / "b")
    for path in set(before) & {b"", b"."}:
        del before[path], after[path]
    assert not differences(before, after)
    assert os.listdir(tmp_path / "copy") == []
    assert (tmp_path / "copy").stat().st_mtime_ns == mtime_ns


def test_a_name_that_is_taken_gets_a_number(place: Path, tmp_path: Path) -> None:
    store = Store(str(place))
    (tmp_path / "copy").mkdir()
    with Root(tmp_path / "copy") as root:
        for number in range(3):
            (tmp_path / "copy" / "file").write_text(f"{number}")
            move_all(store, root, [b"file"], b"a")
        (tmp_path / "copy" / "inner").write_text("3")
        for _ in store.move(root, b"inner", b"a/file/inner", lambda path: None):  # a file is in the way
            pass
    store.close()
    found = {name: (place / "a" / name).read_text() for name in ("file", "file.1", "file.2")}
    assert found == {"file": "0", "file.1": "1", "file.2": "2"}
    assert (place / "a" / "file.3" / "inner").read_text() == "3"


def test_what_changes_meanwhile_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "file").write_bytes(b"x" * 100)
    store = Store(str(place))
    with Root(tmp_path / "copy") as root:
        move = store.move(root, b"file", b"file", lambda path: None)
        try:
            next(move)
        except StopIteration:  # it was a rename
            assert (place / "file").read_bytes() == b"x" * 100
        else:
            (tmp_path / "copy" / "file").write_bytes(b"y" * 100)
            with pytest.raises(ChangedMeanwhile):
                next(move)
            assert (tmp_path / "copy" / "file").read_bytes() == b"y" * 100
            assert os.listdir(place) == []
    store.close()


def test_a_directory_that_is_not_empty_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "copy" / "d").mkdir(parents=True)
    (tmp_path / "copy" / "d" / "file").write_text("x")
    store = Store(str(place))
    with Root(tmp_path / "copy") as root:
        with pytest.raises(OSError, match="not empty"):
            move_all(store, root, [b"d"], b"")
        with pytest.raises(OSError, match="not empty"):
            remove(root, b"d")
    store.close()
    assert (tmp_path / "copy" / "d" / "file").exists()
