"""Deletions that are applied, and whose files are kept elsewhere (RP-04)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.recording import Source, make_record
from kit.trees import assert_same_tree

from replicator.fs.apply import Applier
from replicator.fs.apply_outcome import ApplyError, Outcome
from replicator.fs.beneath import Root
from replicator.fs.credentials import prepare_process
from replicator.fs.deleted import Deleted
from replicator.ops import Kind


class Scene:
    """A source whose records are applied to a copy."""

    def __init__(self, directory: Path) -> None:
        self.kept = directory / "kept"
        self.copy = directory / "copy"
        for path in (directory / "source", self.copy):
            path.mkdir()
        self.source = Source(directory / "source")
        self.root = Root(str(self.copy))
        self.root.keeper = self.deleted = Deleted(str(self.kept))
        self.applier = Applier([(b"", self.root)])

    def apply(self, **options: bool) -> None:
        for record in self.source.records:
            self.applier.apply(record, **{"tolerant": False, **options})
        self.source.records.clear()

    def kept_files(self) -> dict[str, bytes]:
        found = self.kept.rglob("*") if self.kept.exists() else ()
        return {str(path.relative_to(self.kept)): path.read_bytes() for path in found if path.is_file()}

    def close(self) -> None:
        self.deleted.close()
        self.root.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    former = os.umask(0)
    prepare_process()
    found = Scene(tmp_path)
    yield found
    found.close()
    os.umask(former)


def made(scene: Scene, path: bytes, data: bytes) -> None:
    scene.source.create(path)
    scene.source.write(path, 0, data)


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_copy_loses_what_its_source_loses_and_it_is_kept(scene: Scene, tolerant: bool) -> None:
    scene.source.mkdir(b"d")
    made(scene, b"d/a", b"first")
    made(scene, b"d/b", b"stays")
    scene.apply()
    scene.source.unlink(b"d/a")
    made(scene, b"d/a", b"second")
    scene.source.unlink(b"d/a")
    scene.source.settle()
    scene.apply(tolerant=tolerant)
    assert_same_tree(scene.source.root.decode(), scene.copy, frozenset({"mtime"}))
    assert scene.kept_files() == {"d/a": b"first", "d/a.1": b"second"}
    assert scene.kept.stat().st_mode & 0o777 == 0o700


def test_what_is_replaced_or_has_another_name_is_no_deletion(scene: Scene) -> None:
    made(scene, b"a", b"new")
    made(scene, b"b", b"old")
    made(scene, b"c", b"linked")
    scene.source.link(b"c", b"d")
    scene.source.rename(b"a", b"b")
    scene.source.unlink(b"c")
    scene.apply()
    assert scene.kept_files() == {} and (scene.copy / "d").read_bytes() == b"linked"
    scene.source.unlink(b"d")
    scene.apply()
    assert scene.kept_files() == {"d": b"linked"}


def test_of_a_tree_that_leaves_the_set_all_files_are_kept(scene: Scene) -> None:
    scene.source.mkdir(b"top")
    scene.source.mkdir(b"top/below")
    made(scene, b"top/one", b"1")
    made(scene, b"top/below/two", b"2")
    scene.apply()
    outcome = scene.applier.apply(make_record(Kind.REMOVE_TREE, b"top"), tolerant=False)
    assert outcome is Outcome.APPLIED and os.listdir(scene.copy) == []
    assert scene.kept_files() == {"top/one": b"1", "top/below/two": b"2"}
    assert scene.applier.apply(make_record(Kind.REMOVE_TREE, b"top"), tolerant=False) is Outcome.IGNORED


def test_a_removal_in_doubt_is_recognised(scene: Scene) -> None:
    made(scene, b"a", b"x")
    scene.apply()
    record = make_record(Kind.UNLINK, b"a")
    assert scene.applier.apply(record, tolerant=False) is Outcome.APPLIED
    assert scene.applier.apply(record, tolerant=False, in_doubt=True) is Outcome.ALREADY
    with pytest.raises(ApplyError):
        scene.applier.apply(record, tolerant=False)


def test_what_cannot_be_kept_is_not_removed(scene: Scene) -> None:
    scene.kept.write_text("no directory")
    made(scene, b"a", b"x")
    scene.apply()
    with pytest.raises(ApplyError):
        scene.applier.apply(make_record(Kind.UNLINK, b"a"), tolerant=False)
    assert (scene.copy / "a").read_bytes() == b"x"
