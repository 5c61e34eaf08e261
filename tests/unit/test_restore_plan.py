"""What a restore would do: every row of its decision table, and the order of the streams."""

import os
import stat
from functools import partial
from pathlib import Path

import pytest
from kit.trees import build_random_tree

from replicator.mirror.inventory import Item, items
from replicator.mirror.restore_plan import changes, outermost
from replicator.mirror.scan import Source
from replicator.repset import ReplicationSet, Rule, compile_filter
from replicator.restores import Existing

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
ANY = (Existing.OVERWRITE, Existing.MISSING, Existing.NEWER)


def item(path: str, mode: int = FILE, mtime: int = 5, size: int = 1, **more: object) -> Item:
    return Item(path.encode(), mode, 0, 0, mtime, size, **more)  # type: ignore[arg-type]


def plan(
    copy: list[Item], there: list[Item], existing: Existing = Existing.OVERWRITE, removes: bool = False
) -> list[tuple[str, str, bool]]:
    found = changes(copy, there, existing, removes=removes)
    return [(str(change.action), change.path.decode(), change.newer) for change in found]


@pytest.mark.parametrize("existing", ANY)
def test_what_is_missing_is_made(existing: Existing) -> None:
    assert plan([item("a")], [], existing) == [("create", "a", False)]


@pytest.mark.parametrize("existing", ANY)
def test_what_is_equal_is_no_step(existing: Existing) -> None:
    same = [item("a"), item("d", DIRECTORY), item("l", LINK, text=b"x")]
    assert plan(same, same, existing) == []


@pytest.mark.parametrize(
    ("existing", "mtime_there", "expected"),
    [
        (Existing.OVERWRITE, 4, ("overwrite", "a", False)),
        (Existing.OVERWRITE, 6, ("overwrite", "a", True)),
        (Existing.NEWER, 4, ("overwrite", "a", False)),
        (Existing.NEWER, 6, ("keep", "a", False)),
        (Existing.MISSING, 4, ("keep", "a", False)),
        (Existing.MISSING, 6, ("keep", "a", False)),
    ],
)
def test_a_file_that_differs(existing: Existing, mtime_there: int, expected: tuple[str, str, bool]) -> None:
    assert plan([item("a")], [item("a", mtime=mtime_there)], existing) == [expected]


def test_a_size_that_differs_is_seen_where_times_are_equal() -> None:
    assert plan([item("a", size=2)], [item("a")]) == [("overwrite", "a", False)]


def test_another_type() -> None:
    assert plan([item("a")], [item("a", LINK, mtime=1)]) == [("replace", "a", False)]
    assert plan([item("a")], [item("a", LINK, mtime=9)]) == [("replace", "a", True)]
    assert plan([item("a")], [item("a", LINK)], Existing.MISSING) == [("keep", "a", False)]


@pytest.mark.parametrize(
    "other",
    [
        item("a", FILE | 0o111),
        Item(b"a", FILE, 7, 0, 5, 1),
        Item(b"a", FILE, 0, 7, 5, 1),
        item("a", xattrs=3),
    ],
    ids=["mode", "owner", "group", "xattrs"],
)
def test_attributes(other: Item) -> None:
    assert plan([item("a")], [other]) == [("attributes", "a", False)]
    assert plan([item("a")], [other], Existing.MISSING) == [("keep", "a", False)]


def test_orphans() -> None:
    assert plan([], [item("a")]) == [("keep", "a", False)]
    assert plan([], [item("a")], removes=True) == [("remove", "a", False)]


def test_a_name_that_sorts_before_the_slash_does_not_confuse_the_streams() -> None:
    """ "a-b" is before "a/x" as bytes, and after it in a tree."""
    tree = [item("a", DIRECTORY), item("a/x"), item("a-b")]
    assert plan(tree, tree) == []
    assert plan(tree, [tree[0], tree[2]]) == [("create", "a/x", False)]


def test_outermost() -> None:
    assert list(outermost([b"a", b"a/b", b"a/b/c", b"ab", b"b/c", b"b/d"])) == [b"a", b"ab", b"b/c", b"b/d"]
    assert list(outermost([b"", b"a"])) == [b""]


def source(root: Path, *rules: Rule) -> Source:
    repset = ReplicationSet("set", 1, rules or (Rule(str(root)),))
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    return Source(descriptor, partial(compile_filter, repset, os.fsencode(root)))


def test_an_inventory_has_everything_once_and_in_order(tmp_path: Path) -> None:
    build_random_tree(tmp_path, 3, 200)
    for name in ("a", "a-b", "a.b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    tree = source(tmp_path)
    found = list(items(tree))
    tree.close()
    keys = [one.key for one in found]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    base = os.fsencode(tmp_path)
    walked = {os.path.join(at, name) for at, *names in os.walk(base) for name in names[0] + names[1]}
    assert {base + b"/" + one.path for one in found if one.path} == walked


def test_an_inventory_heeds_the_rules(tmp_path: Path) -> None:
    for path in ("in/file", "in/no.tmp", "out/file"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    rules = Rule(f"{tmp_path}/in"), Rule(f"{tmp_path}/in/*.tmp", include=False)
    tree = source(tmp_path, *rules)
    assert [one.path for one in items(tree)] == [b"in", b"in/file"]
    tree.close()


@pytest.mark.parametrize("aspect", ["mode", "owner", "mtime", "xattr", "content", "text", "type"])
def test_every_single_difference_is_named(tmp_path: Path, aspect: str) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for root in (left, right):
        root.mkdir()
        (root / "file").write_text("content")
        os.symlink("text", root / "link")
        for name in ("file", "link", ""):
            os.utime(root / name, ns=(5, 5), follow_symlinks=False)
    file, link = right / "file", right / "link"
    if aspect == "mode":
        file.chmod(0o600)
    elif aspect == "owner":
        os.chown(file, 7, 0)
    elif aspect == "mtime":
        os.utime(file, ns=(5, 6))
    elif aspect == "xattr":
        os.setxattr(file, "user.a", b"b")
    elif aspect == "content":
        file.write_text("longer content")
    elif aspect == "text":
        link.unlink()
        os.symlink("other", link)
    else:
        file.unlink()
        file.mkdir()
    trees = [source(left), source(right)]
    found = list(changes(items(trees[0]), items(trees[1]), Existing.OVERWRITE, removes=False))
    for tree in trees:
        tree.close()
    assert [os.fsdecode(change.path) for change in found] == ["link" if aspect == "text" else "file"]
