"""What a successor finds: the ledger of objects, and the change of a name under way."""

import os
import random
from pathlib import Path

import pytest

from replicator.fs.intent import Intent
from replicator.fs.ledger import Known, Ledger, known, read
from replicator.fs.nodes import Node, NodeTable


def found(path: Path) -> dict[int, Known]:
    return known(read(str(path)))


def test_names_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    ledger = Ledger(str(path))
    place = ledger.named(5, 5, 1, False, 1, 1, b"a")
    ledger.named(5, 5, 1, False, 1, 1, b"\xff link")
    ledger.named(6, 6, 1, True, 2, 1, b"d")
    ledger.gone(5, 1, b"a")
    ledger.references(place, 7)
    assert found(path) == {
        5: Known(5, 5, 1, False, 7, [(1, b"\xff link")]),
        6: Known(6, 6, 1, True, 2, [(1, b"d")]),
    }
    ledger.forgotten(5)
    ledger.named(5, 5, 1, True, 1, 6, b"again")  # the number of another object now
    assert found(path)[5] == Known(5, 5, 1, True, 1, [(6, b"again")])
    ledger.remove()
    assert not path.exists()


def test_a_kill_within_an_entry_leaves_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    ledger = Ledger(str(path))
    ledger.named(5, 5, 1, False, 1, 1, b"whole")
    before = path.read_bytes()
    ledger.named(6, 6, 1, False, 1, 1, b"torn")
    after = path.read_bytes()
    path.write_bytes(before[:16] + after[16:])  # the length is stored last
    assert set(found(path)) == {5}
    ledger.close()


def test_a_full_ledger_begins_anew_with_what_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    ledger = Ledger(str(path), size=4096)

    def rewrite() -> None:
        (_, place) = ledger.begin([(1, 1, 1, True, 1, 0, b""), (2, 2, 1, False, 2, 1, b"kept")])
        ledger.references(place, 3)

    ledger.rewrite = rewrite
    for number in range(1000):
        ledger.named(10 + number, 10 + number, 1, False, 1, 1, b"x" * 20)
    entries = found(path)
    assert entries[2].references == 3
    assert 1009 in entries
    assert os.listdir(tmp_path) == ["nodes"]
    ledger.close()


def test_a_successors_ledger_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    old = Ledger(str(path))
    old.named(5, 5, 1, False, 1, 1, b"a")
    old.close()
    new = Ledger(str(path), keep=True)
    assert set(found(path)) == {5}  # a kill now costs nothing
    new.begin([])
    assert found(path) == {}
    assert os.listdir(tmp_path) == ["nodes"]
    new.close()


@pytest.mark.parametrize("content", [b"", b"RLEDGER1", b"x" * 100, b"RLEDGER1" + bytes([200] + [0] * 7)])
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
    successor = NodeTable(os.open(root, os.O_PATH), 8, Ledger(path, keep=True, size=1 << 16))
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
