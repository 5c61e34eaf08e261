"""The node table: names, paths, descriptors, forgetting; against a model on random trees."""

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.fs.nodes import Node, NodeTable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def table(root: Path) -> Iterator[NodeTable]:
    made = NodeTable(os.open(root, os.O_PATH | os.O_DIRECTORY), descriptors_max=4)
    yield made
    made.close()


def look_up(table: NodeTable, path: str) -> Node:
    node = table.root
    for part in os.fsencode(path).split(b"/"):
        state = os.stat(part, dir_fd=table.directory(node), follow_symlinks=False)
        node = table.attach(node, part, state)
        node.lookups += 1
    return node


def test_paths_follow_renames_of_directories_above(table: NodeTable, root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/f").touch()
    file = look_up(table, "a/b/c/f")
    directory = look_up(table, "a/b/c")
    assert table.path(file) == b"a/b/c/f"
    assert table.path(directory) == b"a/b/c"
    os.rename(root / "a", root / "z")
    table.move_name(look_up(table, "z"), table.root, b"a", table.root, b"z")
    assert table.path(file) == b"z/b/c/f"
    assert table.child_path(directory, b"new") == b"z/b/c/new"


def test_a_directory_found_elsewhere_moved_below_our_back(table: NodeTable, root: Path) -> None:
    (root / "a/sub").mkdir(parents=True)
    sub = look_up(table, "a/sub")
    assert table.path(sub) == b"a/sub"
    os.rename(root / "a", root / "b")
    look_up(table, "b")
    assert table.path(sub) == b"b/sub"


def test_a_file_has_all_its_names(table: NodeTable, root: Path) -> None:
    (root / "d").mkdir()
    (root / "a").touch()
    os.link(root / "a", root / "d/b")
    node = look_up(table, "a")
    assert look_up(table, "d/b") is node
    assert {name for _, name in table.names(node)} == {b"a", b"b"}
    table.remove_name(node, table.root, b"a")
    assert table.path(node) == b"d/b"
    table.remove_name(node, table.root, b"a")  # known no more: nothing happens
    assert table.path(node) == b"d/b"


def test_descriptors_stay_below_the_cap(table: NodeTable, root: Path) -> None:
    for number in range(30):
        (root / f"d{number}/sub").mkdir(parents=True)
    for number in range(30):
        look_up(table, f"d{number}/sub")
        assert table.open_directories <= 4
    node = look_up(table, "d0/sub")
    other = look_up(table, "d7/sub")
    one, two = table.two_directories(node, other)
    assert os.fstat(one).st_ino == (root / "d0/sub").stat().st_ino
    assert os.fstat(two).st_ino == (root / "d7/sub").stat().st_ino


def test_two_descriptors_are_there_together(table: NodeTable, root: Path) -> None:
    deep = "/".join("abcdefghij")
    (root / deep).mkdir(parents=True)
    (root / "near").mkdir()
    near, far = look_up(table, "near"), look_up(table, deep)
    table.close_directories()
    one, two = table.two_directories(near, far)  # reaching `far` opens more than the cap allows
    assert os.fstat(one).st_ino == near.inode
    assert os.fstat(two).st_ino == far.inode


def test_a_pinned_object_is_reached_without_a_name(table: NodeTable, root: Path) -> None:
    (root / "s").symlink_to("nowhere")
    node = look_up(table, "s")
    table.pin(node)
    os.unlink(root / "s")
    table.remove_name(node, table.root, b"s")
    assert table.path(node) is None
    assert stat.S_ISLNK(table.stat(node).st_mode)
    assert os.readlink(b"", dir_fd=node.descriptor) == b"nowhere"


def test_another_object_under_the_name_is_stale(table: NodeTable, root: Path) -> None:
    (root / "d").mkdir()
    directory = look_up(table, "d")
    table.close_directories()
    (root / "other").mkdir()
    os.rename(root / "d", root / "gone")
    os.rename(root / "other", root / "d")
    with pytest.raises(OSError, match="Stale"):
        table.directory(directory)
    with pytest.raises(OSError, match="Stale"):
        table.stat(directory)


def test_parents_live_as_long_as_their_children(table: NodeTable, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/f").touch()
    file = look_up(table, "a/b/f")
    for path in ("a/b", "a"):  # a look-up counts for every directory on its way
        node = look_up(table, path)
        table.forget(node.id, node.lookups)
    assert len(table) == 4
    assert table.path(file) == b"a/b/f"
    os.rename(root / "a", root / "c")
    moved = table.find((root / "c").stat())
    assert moved is not None  # so that a rename finds what the kernel no longer knows
    table.move_name(moved, table.root, b"a", table.root, b"c")
    assert table.path(file) == b"c/b/f"
    table.forget(file.id, file.lookups)
    assert len(table) == 1


def test_deep_trees_are_forgotten_without_recursion(table: NodeTable, root: Path) -> None:
    depth = 1500
    descriptor = os.open(root, os.O_RDONLY)
    node = table.root
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        state = os.stat("d", dir_fd=descriptor)
        node = table.attach(node, b"d", state)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    node.lookups = 1
    assert len(table) == depth + 1
    table.forget(node.id, 1)
    assert len(table) == 1
    # Too deep for one path: take it apart from within.
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        os.rmdir("d", dir_fd=above)
        descriptor = above
    os.close(descriptor)


@pytest.mark.parametrize("seed", range(5))
def test_every_known_path_is_right_after_random_changes(table: NodeTable, root: Path, seed: int) -> None:
    """The table against the tree itself: whatever was looked up is found under its path, or has none."""
    random_ = random.Random(seed)
    (root / "0").mkdir()
    directories, files, made = ["0"], list[str](), 0
    for _ in range(400):
        made += 1
        parent = random_.choice(directories)
        action = random_.randrange(6)
        if action == 0:
            path = f"{parent}/{made}"
            (root / path).mkdir()
            directories.append(path)
        elif action == 1:
            path = f"{parent}/{made}"
            (root / path).touch()
            files.append(path)
            look_up(table, path)
        elif action == 2 and files:
            path = f"{parent}/{made}"
            os.link(root / random_.choice(files), root / path)
            files.append(path)
            look_up(table, path)
        elif action == 3 and files:
            path = files.pop(random_.randrange(len(files)))
            node = look_up(table, path)
            table.pin(node)
            os.unlink(root / path)
            table.remove_name(node, look_up(table, os.path.dirname(path)), os.path.basename(path).encode())
            if node.parent is not None:
                table.unpin(node)
        elif action == 4 and files:
            index = random_.randrange(len(files))
            old, new = files[index], f"{parent}/{made}"
            node = look_up(table, old)
            os.rename(root / old, root / new)
            table.move_name(
                node,
                look_up(table, os.path.dirname(old)),
                os.path.basename(old).encode(),
                look_up(table, parent),
                str(made).encode(),
            )
            files[index] = new
        elif action == 5 and len(directories) > 1:
            old = random_.choice(directories[1:])
            new = f"{parent}/{made}"
            if f"{new}/".startswith(f"{old}/"):
                continue
            node = look_up(table, old)
            os.rename(root / old, root / new)
            table.move_name(
                node,
                look_up(table, os.path.dirname(old)),
                os.path.basename(old).encode(),
                look_up(table, parent),
                str(made).encode(),
            )
            directories = [new + d[len(old) :] if f"{d}/".startswith(f"{old}/") else d for d in directories]
            files = [new + f[len(old) :] if f"{f}/".startswith(f"{old}/") else f for f in files]
    for node in table:
        path_bytes = table.path(node)
        if path_bytes is None:
            assert table.stat(node).st_nlink == 0
        else:
            state = os.lstat(os.path.join(os.fsencode(root), path_bytes))
            assert (state.st_ino, state.st_dev) == (node.inode, node.device)
            assert table.open_directories <= 4


def test_what_only_the_kernel_holds_is_spare_and_looked_at_in_turns(table: NodeTable, root: Path) -> None:
    (root / "d").mkdir()
    for number in range(20):
        (root / f"d/{number}").touch()
    nodes = [look_up(table, f"d/{number}") for number in range(20)]
    nodes[3].uses += 1  # an open handle
    spare = nodes[:3] + nodes[4:]
    found = [table.spare(5) for _ in range(8)]
    assert all(len(part) <= 5 for part in found)
    seen = [node for part in found for node in part]
    assert set(seen) == set(spare)  # the directory has children
    assert seen[: len(found[0])] == spare[: len(found[0])]  # the oldest first
    for node in nodes:
        table.forget(node.id, 1)
    table.forget(look_up(table, "d").id, 21 + 1)
    assert set(table.spare(5)) <= {nodes[3]}
    nodes[3].uses -= 1


def test_a_file_without_name_is_pinned_until_it_has_one(table: NodeTable, root: Path) -> None:
    descriptor = os.open(root, os.O_TMPFILE | os.O_RDWR)
    try:
        node = table.attach_unnamed(os.fstat(descriptor), os.dup(descriptor))
        node.lookups = 1
        assert (node.links, table.path(node)) == (0, None)
        assert table.stat(node).st_ino == node.inode
        os.link(f"/proc/self/fd/{descriptor}", "f", dst_dir_fd=table.directory(table.root))
        assert look_up(table, "f") is node
        assert table.path(node) == b"f"
    finally:
        os.close(descriptor)
