"""What a successor finds: the ledger of objects, and the change of a name under way."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import limits
from replicator.fs.intent import Intent
from replicator.fs.ledger import _NAME, _OBJECT, Entry, Known, Ledger, known, read
from replicator.fs.nodes import Node, NodeTable


def found(path: Path) -> dict[int, Known]:
    return known(read(str(path)))


def places(path: Path) -> dict[int, tuple[int, list[tuple[int, bytes]]]]:
    return {node_id: (alive.references, alive.names) for node_id, alive in found(path).items()}


def test_names_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    ledger = Ledger(str(path))
    place = ledger.object(5, 5, 1, False, 1, 1, b"a")
    ledger.named(5, 5, 1, False, 1, 1, b"\xff link")
    other = ledger.object(6, 6, 1, True, 2, 1, b"d")
    ledger.gone(5, 1, b"a")
    ledger.references(place, 7)
    assert found(path) == {
        5: Known(5, 5, 1, False, 7, [(1, b"\xff link")], place),
        6: Known(6, 6, 1, True, 2, [(1, b"d")], other),
    }
    ledger.forgotten(5)
    place = ledger.object(5, 5, 1, True, 1, 6, b"again")  # the number of another object now
    assert found(path)[5] == Known(5, 5, 1, True, 1, [(6, b"again")], place)
    ledger.remove()
    assert not path.exists()
    ledger.remove()  # given up before


def test_a_kill_within_an_entry_leaves_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    ledger = Ledger(str(path))
    ledger.object(5, 5, 1, False, 1, 1, b"whole")
    before = path.read_bytes()
    ledger.object(6, 6, 1, False, 1, 1, b"torn")
    after = path.read_bytes()
    path.write_bytes(before[:16] + after[16:])  # the length is stored last
    assert set(found(path)) == {5}
    ledger.close()


class Living(dict[int, int]):
    """Places of objects that never change."""

    def __init__(self, path: Path, size: int) -> None:
        self.ledger = Ledger(str(path), size=size)
        self.references: dict[int, int] = {}
        self.ledger.living = self.move
        self.moved = 0

    def add(self, node_id: int) -> None:
        references = self.references.setdefault(node_id, 1)
        self[node_id] = self.ledger.object(node_id, node_id, 1, False, references, 1, b"kept %d" % node_id)

    def move(self) -> Iterator[None]:
        for node_id in list(self):
            if self.ledger.is_left_behind(self[node_id]):
                self.add(node_id)
                self.moved += 1
                yield


def test_a_full_ledger_goes_on_in_another_a_few_objects_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    living = Living(path, 1 << 16)
    for node_id in range(100):
        living.add(node_id)
    files = set()
    for number in range(2000):
        moved = living.moved
        living.ledger.object(1000, 1, 1, False, 1, 1, b"x")
        living.ledger.forgotten(1000)
        assert living.moved - moved <= 2 * limits.LEDGER_MOVES
        living.references[number % 100] = number
        living.ledger.references(living[number % 100], number)
        files.add(tuple(sorted(os.listdir(tmp_path))))
    assert living.moved >= 200
    assert files == {("nodes",), ("nodes", "nodes.next")}
    assert places(path) == {n: (1900 + n, [(1, b"kept %d" % n)]) for n in range(100)}
    living.ledger.remove()
    assert os.listdir(tmp_path) == []


def test_what_is_alive_must_have_room(tmp_path: Path) -> None:
    living = Living(tmp_path / "nodes", 4096)
    with pytest.raises(OSError, match="too many objects"):
        for node_id in range(1000):
            living.add(node_id)
    assert len(living) > 30
    living.ledger.remove()


def test_a_successor_goes_on_where_the_ledger_ends(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    old = Ledger(str(path))
    place = old.object(5, 5, 1, False, 1, 1, b"a")
    old.close()
    new = Ledger(str(path), resume=True)
    assert set(found(path)) == {5}
    new.references(place, 3)
    new.object(6, 6, 1, False, 1, 1, b"b")
    assert places(path) == {5: (3, [(1, b"a")]), 6: (1, [(1, b"b")])}
    new.close()
    new = Ledger(str(path))
    assert found(path) == {}
    new.close()


def test_what_continues_an_older_ledger_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    living = Living(path, 1 << 12)
    while not (tmp_path / "nodes.next").exists():
        living.add(len(living))
    living.ledger.close()
    left = (tmp_path / "nodes.next").read_bytes()
    Ledger(str(path)).close()
    assert os.listdir(tmp_path) == ["nodes"]
    other = bytearray(left)
    other[16] += 1  # its number
    (tmp_path / "nodes.next").write_bytes(other)
    assert found(path) == {}


@pytest.mark.parametrize("content", [b"", b"RLEDGER2", b"x" * 100, b"RLEDGER2" + bytes([200] + [0] * 7)])
def test_what_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nodes").write_bytes(content)
    with pytest.raises(ValueError, match=r"ledger|cut short"):
        found(tmp_path / "nodes")


# --- a table restored from it ---


def picture(table: NodeTable) -> dict[int, object]:
    return {
        node.id: (
            node.inode,
            node.is_directory,
            node.lookups,
            sorted((p.id, n) for p, n in table.names(node)),
        )
        for node in table
    }


def look_up(table: NodeTable, parent: Node, name: bytes) -> Node:
    state = os.stat(name, dir_fd=table.directory(parent), follow_symlinks=False)
    node = table.attach(parent, name, state)
    table.looked_up(node)
    return node


@pytest.mark.parametrize("seed", range(5))
def test_a_table_is_what_it_was_after_random_changes(tmp_path: Path, seed: int) -> None:
    root, path = tmp_path / "root", str(tmp_path / "nodes")
    root.mkdir()
    chance = random.Random(seed)
    table = NodeTable(os.open(root, os.O_PATH), 8, Ledger(path, size=1 << 16))
    directories: list[Node] = [table.root]
    files: list[tuple[Node, Node, bytes]] = []
    for number in range(600):
        parent = chance.choice(directories)
        name = b"%d" % number
        place = f"/proc/self/fd/{table.directory(parent)}/{number}"
        action = chance.random()
        if action < 0.15:
            os.mkdir(place)
            directories.append(look_up(table, parent, name))
        elif action < 0.5 or not files:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
            files.append((look_up(table, parent, name), parent, name))
        elif action < 0.7:
            index = chance.randrange(len(files))
            node, old_parent, old_name = files[index]
            one, other = table.two_directories(old_parent, parent)
            os.rename(old_name, name, src_dir_fd=one, dst_dir_fd=other)
            table.move_name(node, old_parent, old_name, parent, name)
            files[index] = (node, parent, name)
        elif action < 0.85:
            node, old_parent, old_name = chance.choice(files)
            one, other = table.two_directories(old_parent, parent)
            os.link(old_name, name, src_dir_fd=one, dst_dir_fd=other)
            assert look_up(table, parent, name) is node
            files.append((node, parent, name))
        else:
            node, parent, name = files.pop(chance.randrange(len(files)))
            os.unlink(name, dir_fd=table.directory(parent))
            table.remove_name(node, parent, name)
            if not table.names(node):
                table.forget(node.id, node.lookups)
    expected = picture(table)
    alive = list(known(read(path)).values())
    successor = NodeTable(os.open(root, os.O_PATH), 8, Ledger(path, resume=True, size=1 << 16))
    successor.restore(alive, {})
    assert picture(successor) == expected
    for node, parent, name in files:
        other_node = successor.get(node.id)
        assert (successor.get(parent.id), name) in successor.names(other_node)
        assert successor.stat(other_node).st_ino == node.inode
    assert {k: v.references for k, v in known(read(path)).items()} == {
        node.id: node.lookups for node in successor if node is not successor.root
    }
    table.close()
    successor.close()


# --- the change under way ---


def test_a_request_is_noted_with_its_reply(tmp_path: Path) -> None:
    path = str(tmp_path / "intent")
    intent = Intent(path)
    assert intent.read().unique == 0
    intent.begin(7, 100)
    intent.note(55)
    assert Intent(path).read() == (7, 55, None, False)
    intent.done(b"reply")
    assert Intent(path).read() == (7, 55, b"reply", False)
    intent.begin(8, 101)
    assert Intent(path).read() == (8, 0, None, False)
    intent.failed(17)
    assert Intent(path).read() == (8, 0, 17, False)
    intent.begin(9, 101)
    intent.done(b"")
    assert intent.read().reply == b""
    intent.remove()
    assert os.listdir(tmp_path) == []


def test_whether_it_is_journaled_is_decided_once(tmp_path: Path) -> None:
    intent = Intent(str(tmp_path / "intent"))
    intent.begin(7, 100)
    intent.decide(100)
    intent.decide(105)  # a second successor: the first one's own records mean nothing
    assert not intent.read().is_recorded
    intent.begin(7, 105)
    intent.decide(106)
    assert intent.read().is_recorded
    intent.close()


def test_what_has_moved_has_the_names_of_its_new_log() -> None:
    """A rename that was killed between its two entries, after the object had moved with its new name: the old
    one is not believed, for it would end with the former log.
    """
    former = Entry(_OBJECT, 24, 1, 7, 7, 1, False, 1, b"old")
    name = Entry(_NAME, 25, 1, 7, 7, 1, False, 1, b"new")
    moved = Entry(_OBJECT, 73, 1, 7, 7, 1, False, 1, b"new")
    assert known(iter([former, name]))[7].names == [(1, b"old"), (1, b"new")]
    assert known(iter([former, name, moved]))[7].names == [(1, b"new")]
    other = Entry(_NAME, 121, 1, 7, 7, 1, False, 1, b"another")
    assert known(iter([former, name, moved, other]))[7].names == [(1, b"new"), (1, b"another")]
