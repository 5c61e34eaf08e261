"""A bundle has exactly what the losing branch had: put over the state at the fork it is that branch again."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import branches
from kit.random_changes import RandomChanges
from kit.recording import Source
from kit.trees import build_random_tree, differences, snapshot

from replicator.failover import bundle_compare, bundle_export, bundle_save
from replicator.failover.bundle_compare import What
from replicator.failover.bundle_format import Part, Saved
from replicator.failover.bundle_save import RootSaver
from replicator.failover.divergence import Bundles
from replicator.ops import Record
from replicator.queue.dirty import Dirty, DirtyMap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

RUNS = int(os.environ.get("BUNDLE_RUNS", "4"))
_LARGE_BYTES = 100_000
_LIMITS = (1500, 4000, 1_000_000)
_IGNORED = frozenset({"holes"})  # of a region that is written as zeros over data


def check(place: Path, seed: int) -> None:
    """One losing branch: saved, exported, and put over a copy of what it was at the fork."""
    chance = random.Random(seed)
    tree, base = place / "tree", place / "base"
    tree.mkdir()
    build_random_tree(tree, seed, chance.randrange(40))
    source = Source(tree)
    changes = RandomChanges(source, chance)
    changes.steps(chance.randrange(80))
    source.create(b"large")
    source.write(b"large", 0, chance.randbytes(_LARGE_BYTES))
    source.create(b"one name")
    source.link(b"one name", b"another")
    source.settle()
    inodes = branches.copied(tree, base)
    source.records.clear()
    changes.steps(chance.randrange(chance.choice((6, 100))))
    for _ in range(chance.randrange(4)):
        source.write(b"large", chance.randrange(_LARGE_BYTES), chance.randbytes(chance.choice((1, 5000))))
    if chance.random() < 0.6:  # a file whose known name goes
        source.write(b"one name", 0, chance.randbytes(5000))
        source.unlink(b"one name")
    source.settle()
    keys = DirtyMap(chance.choice(_LIMITS))
    for record in source.records:
        keys.fold(record)
    bundles = Bundles(str(place / "bundles"))
    told: list[Record] = source.records if chance.random() < 0.5 else []
    before = snapshot(tree)
    directory = branches.saved(bundles, tree, keys, told)
    assert (directory is None) == keys.is_empty
    assert not differences(before, snapshot(tree))  # nothing is changed by saving
    if directory is None:
        assert not differences(snapshot(tree), snapshot(base))
        return
    (manifest,) = bundles.all()
    exported = bundle_export.export(directory, manifest, str(place / "exported"))
    assert exported.problem_count == 0
    assert not list(bundle_compare.differences(directory, manifest))
    check_links(exported.directory, manifest.roots[0].path, tree)
    check_compared(directory, manifest, tree, base)
    branches.overlay(bundles, place / "exported", base, inodes)
    found = differences(snapshot(tree), snapshot(base), _IGNORED)
    assert not found, found[:20]


def check_links(exported: str, root: str, tree: Path) -> None:
    """Names of one file are names of one file in what is exported, and no others."""
    inodes: dict[int, set[int]] = {}
    files = exported + "/files" + root
    for directory, _, names in os.walk(files):
        for name in names:
            there = os.path.join(str(tree), os.path.relpath(os.path.join(directory, name), files))
            made = os.lstat(os.path.join(directory, name)).st_ino
            inodes.setdefault(os.lstat(there).st_ino, set()).add(made)
    assert all(len(made) == 1 for made in inodes.values())
    assert len(inodes) == len(set.union(set(), *inodes.values()))


def check_compared(directory: str, manifest: object, tree: Path, base: Path) -> None:
    """The state at the fork stands for a surviving branch that did nothing: all that differs is told."""
    one, other = snapshot(tree), snapshot(base)
    aside = tree.with_name("aside")
    tree.rename(aside)
    base.rename(tree)
    try:
        told = {found.path: found for found in bundle_compare.differences(directory, manifest)}  # type: ignore[arg-type]
    finally:
        tree.rename(base)
        aside.rename(tree)
    changed = {
        path
        for path in one.keys() & other.keys()
        if one[path]._replace(mtime_ns=0, holes=(), links=())
        != other[path]._replace(mtime_ns=0, holes=(), links=())
        and not one[path].links  # of several names one is told
    }
    paths = {found.path for found in told.values()}
    for path in changed:
        assert f"{tree}/{os.fsdecode(path)}".rstrip("/") in paths or any(b > 127 for b in path), path
    for path in other.keys() - one.keys():
        above = [path[:end] for end in range(len(path)) if path[end : end + 1] == b"/"]
        if all(p in one and one[p].type == "directory" for p in above) and not any(
            b > 127 or b < 33 for b in path
        ):
            assert told[f"{tree}/{os.fsdecode(path)}"].what is What.ONLY_HERE


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_bundle_over_the_fork_is_the_losing_branch(tmp_path: Path, seed: int) -> None:
    for number in range(4):
        place = tmp_path / str(number)
        place.mkdir()
        check(place, seed * 1000 + number)
        shutil.rmtree(place)


# --- planted mistakes ---

right_file, right_directory = RootSaver._save_file, RootSaver._save_directory
right_regions, right_put = RootSaver._save_regions, RootSaver._put_object
right_data_in, right_linked = bundle_save._data_in, RootSaver._save_linked


def _no_last_region(self: RootSaver, found: Saved, wanted: tuple[tuple[int, int], ...]) -> None:
    right_regions(self, found, wanted[:-1] or wanted)


def _no_names(self: RootSaver, directory: bytes) -> None:
    pass


def _absent_unsaid(self: RootSaver, path: bytes) -> None:
    pass


def _xattrs_forgotten(self: RootSaver, found: Saved, part: Part, **more: object) -> None:
    if part is Part.ATTRIBUTES:
        part = Part.ABOVE
    right_put(self, found, part, **more)  # type: ignore[arg-type]


def _first_block_only(descriptor: int, wanted: tuple[tuple[int, int], ...]) -> object:
    for span in right_data_in(descriptor, wanted):
        yield span
        return


def _linked_by_path(self: RootSaver, entry: Dirty, path: bytes) -> bool:
    right_linked(self, entry, path)
    return True


def _subdirectories_forgotten(self: RootSaver, top: bytes) -> None:
    found = self._object(top)
    if found is not None:
        self._put_object(found, Part.WHOLE)


PLANTED: list[tuple[object, str, Callable[..., object]]] = [
    (RootSaver, "_save_regions", _no_last_region),
    (RootSaver, "_save_names", _no_names),
    (bundle_save, "_data_in", _first_block_only),
    (RootSaver, "_save_linked", _linked_by_path),
    (RootSaver, "_save_tree", _subdirectories_forgotten),
]


@pytest.mark.parametrize(("where", "name", "wrong"), PLANTED, ids=[wrong.__name__ for _, _, wrong in PLANTED])
def test_planted_mistakes_are_found(
    where: object, name: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises((AssertionError, KeyError, OSError)):
        for number in range(60):
            place = tmp_path / str(number)
            place.mkdir()
            check(place, number)
            shutil.rmtree(place)
