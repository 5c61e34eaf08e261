"""Bundles as a person has them: listed, shown, dropped; complete or not there; never more than fits."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import branches

from replicator import limits
from replicator.errors import JournalError, UsageError
from replicator.failover import bundle_compare, bundle_export
from replicator.failover.bundle_compare import What
from replicator.failover.bundle_format import BundleError, Manifest
from replicator.failover.divergence import Bundles, NoBundleError, Tail
from replicator.fs.beneath import Root
from replicator.ops import Flag, Kind
from replicator.queue.cursor import Run
from replicator.queue.dirty import DirtyMap
from replicator.queue.dirty_entry import Scope


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "text").write_bytes(b"losing\n" * 2000)
    (place / "new").write_bytes(b"written after the fork")
    return place


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    return Bundles(str(tmp_path / "bundles"))


def keys(*paths: bytes) -> DirtyMap:
    found = DirtyMap()
    for path in paths:
        found.add(path, int(Scope.WHOLE))
    return found


def saved(bundles: Bundles, tree: Path, found: DirtyMap) -> Manifest:
    assert branches.saved(bundles, tree, found) is not None
    return bundles.all()[-1]


def test_a_bundle_says_whose_it_is(bundles: Bundles, tree: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new", b"gone"))
    assert (manifest.group_name, manifest.agent_name, manifest.epoch) == ("web", "alpha", 1)
    assert (manifest.winner, manifest.winner_epoch) == ("beta", 2)
    (root,) = manifest.roots
    assert (root.path, root.fork, root.head) == (str(tree), (1, 1), (2, 2))
    assert (root.objects, root.absent, root.records) == (1, 1, 0)
    assert manifest.bytes >= len(b"written after the fork")
    assert bundles.find(manifest.id[:3]) == manifest


def test_nothing_lost_makes_no_bundle(bundles: Bundles, tree: Path) -> None:
    assert branches.saved(bundles, tree, DirtyMap()) is None
    assert bundles.all() == []
    assert not os.path.exists(bundles.directory)


def test_the_same_tail_is_saved_once(bundles: Bundles, tree: Path) -> None:
    first = saved(bundles, tree, keys(b"new"))
    (tree / "new").write_bytes(b"overwritten by the surviving branch")
    assert saved(bundles, tree, keys(b"new")) == first
    assert len(bundles.all()) == 1
    saved(bundles, tree, keys(b"text"))
    assert len(bundles.all()) == 2


def test_unknown_and_unclear_names(bundles: Bundles, tree: Path) -> None:
    with pytest.raises(NoBundleError, match="there is no divergence bundle 'x'"):
        bundles.find("x")
    with pytest.raises(NoBundleError):
        bundles.find("")


def test_dropping(bundles: Bundles, tree: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new"))
    bundles.drop(manifest.id)
    assert bundles.all() == []
    assert os.listdir(bundles.directory) == []


def test_a_tree_that_is_held_open_and_mounted_read_only(bundles: Bundles, tree: Path) -> None:
    with open(tree / "text", "rb") as held:
        held.read(10)
        manifest = saved(bundles, tree, keys(b"text"))
    assert manifest.roots[0].data_bytes == 14_000


# --- complete or not there ---


class Killed(BaseException):
    """In place of SIGKILL: no `except Exception` runs after it."""


def calls_made(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Kill at the so-manieth call that changes the disk. Returns the calls that were made."""
    made: list[str] = []

    def counted(name: str) -> None:
        right = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            made.append(name)
            if len(made) == stop_at:
                raise Killed
            return right(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("mkdir", "fsync", "rename", "open"):
        counted(name)
    return made


def test_killed_anywhere_it_is_complete_or_not_there(bundles: Bundles, tree: Path, tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls_made(monkeypatch, step)
            try:
                branches.saved(bundles, tree, keys(b"new", b"text"))
                killed = False
            except Killed:
                killed = True
        for manifest in bundles.all():
            assert not list(bundle_compare.differences(bundles.path(manifest), manifest))
            assert manifest.objects == 2
        if not killed:
            break
        manifest = saved(bundles, tree, keys(b"new", b"text"))  # again, with what was left
        assert os.listdir(bundles.directory) == [manifest.id]
        bundles.drop(manifest.id)
    assert step > 15


def test_killed_while_dropping(bundles: Bundles, tree: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("shutil.rmtree", _killed)
        with pytest.raises(Killed):
            bundles.drop(manifest.id)
    assert bundles.all() == []
    saved(bundles, tree, keys(b"text"))
    assert len(os.listdir(bundles.directory)) == 1


def _killed(*_: object, **__: object) -> None:
    raise Killed


# --- room ---


def test_a_full_disk_stops_it_and_leaves_nothing(
    bundles: Bundles, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BUNDLE_FREE_BYTES", 1 << 60)
    with pytest.raises(BundleError, match="does not fit into its disk; nothing was overwritten") as caught:
        branches.saved(bundles, tree, keys(b"new"))
    assert "\n" not in str(caught.value)
    assert os.listdir(bundles.directory) == []


def test_a_disk_that_fills_up_meanwhile(
    bundles: Bundles, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="does not fit"):
        branches.saved(bundles, tree, keys(b"new"))
    monkeypatch.undo()
    assert os.listdir(bundles.directory) == []


def test_a_limit_stops_and_never_removes(tmp_path: Path, tree: Path) -> None:
    bundles = Bundles(str(tmp_path / "bundles"), limit_bytes=16_000)
    first = saved(bundles, tree, keys(b"text"))
    with pytest.raises(BundleError, match="the room that bundles may take"):
        branches.saved(bundles, tree, keys(b"text", b"new"))
    assert bundles.all() == [first]


# --- what cannot be read ---


def test_damage_is_found(bundles: Bundles, tree: Path, tmp_path: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new", b"text"))
    for name in ("0.data", "0.entries"):
        path = os.path.join(bundles.path(manifest), name)
        with open(path, "r+b") as file:
            right = file.read()
            file.seek(20)
            file.write(bytes([right[20] ^ 1]))
        with pytest.raises(BundleError, match="the bundle is damaged"):
            bundle_export.export(bundles.path(manifest), manifest, str(tmp_path / f"of {name}"))
        with open(path, "wb") as file:
            file.write(right)
    bundle_export.export(bundles.path(manifest), manifest, str(tmp_path / "whole"))


def test_a_damaged_manifest_is_shown_and_hides_no_other(bundles: Bundles, tree: Path) -> None:
    damaged = saved(bundles, tree, keys(b"new"))
    other = saved(bundles, tree, keys(b"text"))
    Path(bundles.path(damaged), "manifest.json").write_text("{")
    found = {manifest.id: manifest for manifest in bundles.all()}
    assert found[other.id] == other
    assert "cannot be read" in found[damaged.id].reason


def test_a_journal_that_lost_the_tail(bundles: Bundles, tree: Path) -> None:
    def records() -> Iterator[Run]:
        yield branches.run_of([branches.record(Kind.UNLINK, b"a")])
        raise JournalError("no longer in the journal")

    with Root(str(tree)) as root:
        manifest = bundles.save(branches.BRANCH, [Tail("j", root, keys(b"new"), records=records())])
    assert manifest is not None
    assert (manifest.roots[0].records, manifest.roots[0].absent) == (1, 1)


def test_what_cannot_be_read_stops_it(bundles: Bundles, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(
        BundleError, match="text cannot be saved: Input/output error; nothing was overwritten"
    ):
        branches.saved(bundles, tree, keys(b"text"))
    assert os.listdir(bundles.directory) == []


# --- what it is for ---


def test_only_regions_of_a_large_file(bundles: Bundles, tree: Path, tmp_path: Path) -> None:
    with open(tree / "image", "wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"x" * 5000)
    found = DirtyMap()
    payload = b"x" * 5000
    found.fold(branches.record(Kind.WRITE, b"image", arg0=1 << 33, payload=payload))
    manifest = saved(bundles, tree, found)
    assert manifest.roots[0].data_bytes == 8192
    exported = bundle_export.export(bundles.path(manifest), manifest, str(tmp_path / "out"))
    made = Path(f"{exported.directory}/files{tree}/image")
    assert made.stat().st_size == 1 << 34
    assert made.stat().st_blocks * 512 < 1 << 20
    (line,) = (tmp_path / "out" / "partial").read_text().splitlines()
    assert line == f"{tree}/image\t{1 << 33}-{(1 << 33) + 8192}"


def test_what_the_surviving_branch_has_otherwise(bundles: Bundles, tree: Path) -> None:
    (tree / "old").write_text("")
    found = keys(b"new", b"text")
    found.fold(branches.record(Kind.UNLINK, b"old"))
    (tree / "old").unlink()
    manifest = saved(bundles, tree, found)
    data = bytearray((tree / "text").read_bytes())
    data[5] = 0
    (tree / "text").write_bytes(data)
    (tree / "new").unlink()
    (tree / "old").write_text("")
    told = {d.path: d for d in bundle_compare.differences(bundles.path(manifest), manifest)}
    assert told[f"{tree}/text"].what is What.CONTENT
    assert told[f"{tree}/text"].regions == ((0, 14_000),)
    assert told[f"{tree}/new"].what is What.ONLY_BUNDLE
    assert told[f"{tree}/old"].what is What.ONLY_HERE
    one = bundle_compare.differences(bundles.path(manifest), manifest, f"{tree}/new")
    assert [d.path for d in one] == [f"{tree}/new"]


def test_a_surviving_branch_that_is_gone(bundles: Bundles, tree: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new"))
    tree.rename(tree.with_name("away"))
    (found,) = bundle_compare.differences(bundles.path(manifest), manifest)
    assert (found.path, found.what) == (str(tree), What.ONLY_BUNDLE)


def test_nothing_is_exported_over_other_files(bundles: Bundles, tree: Path, tmp_path: Path) -> None:
    manifest = saved(bundles, tree, keys(b"new"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        bundle_export.export(bundles.path(manifest), manifest, str(tmp_path / "used"))
    assert os.listdir(tmp_path / "used") == ["file"]


def test_directories_that_were_made(bundles: Bundles, tree: Path, tmp_path: Path) -> None:
    (tree / "made" / "below").mkdir(parents=True)
    (tree / "made" / "below" / "file").write_text("deep")
    os.utime(tree / "made", ns=(5, 5))
    found = DirtyMap()
    found.fold(branches.record(Kind.MKDIR, b"made", flags=int(Flag.DIRECTORY)))
    manifest = saved(bundles, tree, found)
    exported = bundle_export.export(bundles.path(manifest), manifest, str(tmp_path / "out"))
    made = Path(f"{exported.directory}/files{tree}/made")
    assert (made / "below" / "file").read_text() == "deep"
    assert made.stat().st_mtime_ns == 5
