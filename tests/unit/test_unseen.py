"""Files that may be changed through a mapping of the storage below."""

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.patience import until

from replicator import limits
from replicator.fs.unseen import Identity, Unseen, mapped, mapped_by_any_process


def test_only_shared_and_writable_mappings_count() -> None:
    lines = [
        "7f00-7f01 rw-s 00000000 fe:00 12                /a\n",
        "7f00-7f01 rw-p 00000000 fe:00 13                /private\n",
        "7f00-7f01 r--s 00000000 fe:00 14                /read only\n",
        "7f00-7f01 rw-s 00000000 fe:01 15                /another disk\n",
        "7f00-7f01 rw-s 00000000 00:29 16                /as a file of the mount\n",
        "7f00-7f01 rw-p 00000000 00:00 0 \n",
        "\n",
    ]
    device = os.makedev(0xFE, 0)
    wanted = frozenset((device, inode) for inode in range(10, 20))
    assert mapped(lines, wanted) == {(device, 12), (device, 16)}
    assert mapped(lines, frozenset()) == set()


def test_a_real_mapping_is_found(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(4096))
    state = path.stat()
    identity = state.st_dev, state.st_ino
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0):
        assert mapped_by_any_process(frozenset({identity})) == {identity}
    assert mapped_by_any_process(frozenset({identity})) == set()


class Scene:
    """A watch whose looks find what is told here."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.doubts: list[int] = []
        self.mapped: set[Identity] = set()
        self.looks = 0
        self.unseen = Unseen(self.lock, self.doubts.append, lambda node_id: (1, node_id), self.look)

    def look(self, wanted: frozenset[Identity]) -> set[Identity]:
        assert not self.lock.locked()
        self.looks += 1
        return self.mapped & wanted

    def opened(self, node_id: int) -> None:
        with self.lock:
            self.unseen.opened(node_id)

    def released(self, node_id: int) -> None:
        with self.lock:
            self.unseen.released(node_id)

    def wait(self, looks: int) -> None:
        until(lambda: self.looks >= looks)

    def wait_for_end(self, node_id: int) -> None:
        until(lambda: not self.unseen.is_watched(node_id))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(limits, "UNSEEN_LOOK_S", 0.01)
    monkeypatch.setattr(limits, "UNSEEN_LOOK_MAX_S", 0.01)
    made = Scene()
    yield made
    made.unseen.close()


def test_the_content_is_in_doubt_when_the_handle_and_the_mapping_are_gone(scene: Scene) -> None:
    scene.opened(7)
    scene.wait(2)
    assert scene.doubts == []
    scene.released(7)
    assert scene.doubts == [7]
    scene.wait_for_end(7)
    assert scene.doubts == [7, 7]
    scene.opened(8)  # it begins again
    scene.released(8)
    scene.wait_for_end(8)
    assert scene.doubts == [7, 7, 8, 8]


def test_a_mapping_that_stays_is_watched_until_it_goes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.mapped = {(1, 7)}
    scene.opened(7)
    scene.released(7)
    scene.wait(5)
    assert scene.unseen.is_watched(7) and scene.doubts == [7]  # no oftener than UNSEEN_DOUBT_S
    monkeypatch.setattr(limits, "UNSEEN_DOUBT_S", 0.0)
    scene.wait(scene.looks + 5)
    assert len(scene.doubts) > 2
    scene.mapped = set()
    scene.wait_for_end(7)


def test_whoever_ends_notes_what_it_watched(scene: Scene) -> None:
    scene.opened(7)
    scene.unseen.close()
    assert scene.doubts == [7]
