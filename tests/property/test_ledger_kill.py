"""A process is killed at every line of a ledger's life: what it leaves is what was there before the change or
after it, whether it lies in one log or in two.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.fs import ledger, nodes
from replicator.fs.ledger import Ledger
from replicator.fs.nodes import Node, NodeTable

SIZE = 1 << 13
TRACED = {ledger.__file__, nodes.__file__}
Picture = dict[int, tuple[int, frozenset[tuple[int, bytes]]]]  # id: references, names


class Killed(BaseException):
    pass


class State(NamedTuple):
    """As far as the table looks at os.stat_result."""

    st_ino: int
    st_dev: int
    st_nlink: int = 1
    st_mode: int = stat.S_IFREG


@contextmanager
def traced(at_line: Callable[[], None]) -> Iterator[None]:
    """`at_line` is called before each line of the table and its ledger."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            at_line()
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


class Life:
    """A table, and those that succeed it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.root.mkdir()
        self.path = str(directory / "nodes")
        self.continued = 0
        self.table = self.begin(resume=False)

    def begin(self, *, resume: bool) -> NodeTable:
        self.ledger = Ledger(self.path, resume=resume, size=SIZE)
        return NodeTable(os.open(self.root, os.O_PATH), 8, self.ledger)

    def succeed(self) -> None:
        """After a kill."""
        self.ledger.close()
        self.table.close()
        alive = list(ledger.known(ledger.read(self.path)).values())
        self.table = self.begin(resume=True)
        self.table.restore(alive, {})

    def known(self) -> Picture:
        """What the table knows."""
        return {
            node.id: (max(node.lookups, 0), frozenset((p.id, n) for p, n in self.table.names(node)))
            for node in self.table
            if node is not self.table.root
        }

    def left(self) -> Picture:
        """What a successor would know."""
        return {
            found.id: (found.references, frozenset(found.names))
            for found in ledger.known(ledger.read(self.path)).values()
        }

    # --- changes ---

    def look_up(self, number: int, name: int) -> None:
        state = State((1 << 40) + number, self.table.root.device)
        self.table.looked_up(self.table.attach(self.table.root, b"%d" % name, state))  # type: ignore[arg-type]

    def pick(self, number: int) -> Node | None:
        others = [node for node in self.table if node is not self.table.root]
        return others[number % len(others)] if others else None

    def move(self, number: int, name: int) -> None:
        node = self.pick(number)
        if node is not None and (names := self.table.names(node)):
            parent, old = names[name % len(names)]
            if (new := b"%d" % name) not in [n for _, n in names]:
                self.table.move_name(node, parent, old, self.table.root, new)

    def remove(self, number: int, name: int) -> None:
        node = self.pick(number)
        if node is not None and (names := self.table.names(node)):
            self.table.remove_name(node, *names[name % len(names)])

    def forget(self, number: int, name: int) -> None:
        node = self.pick(number)
        if node is not None:
            self.table.forget(node.id, node.lookups if name % 2 else 1)

    def unnamed(self, number: int, name: int) -> None:
        state = State((2 << 40) + number, self.table.root.device)
        if self.table.by_inode(state.st_ino) is None:
            pinned = os.open(self.root, os.O_PATH)
            self.table.looked_up(self.table.attach_unnamed(state, pinned))  # type: ignore[arg-type]


def assert_between(found: Picture, before: Picture, after: Picture) -> None:
    for node_id in found.keys() | before.keys() | after.keys():
        old, new, at = before.get(node_id), after.get(node_id), found.get(node_id)
        if old == new:
            assert at == old, node_id
            continue
        if at is None:
            assert old is None or new is None, node_id
            continue
        references, names = at
        of_old = frozenset() if old is None else old[1]
        of_new = frozenset() if new is None else new[1]
        assert of_old & of_new <= names <= of_old | of_new, node_id
        if old is not None and new is not None:
            assert references in (old[0], new[0]), node_id


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["look_up", "look_up", "look_up", "move", "remove", "forget", "unnamed"]),
        st.integers(0, 9),
        st.integers(0, 40),
        st.one_of(st.none(), st.none(), st.integers(1, 120)),  # killed at this line
    ),
    max_size=60,
)


@given(changes=CHANGES)
@settings(max_examples=40, deadline=None)
def test_a_kill_at_any_line(tmp_path_factory: Any, changes: list[tuple[str, int, int, int | None]]) -> None:
    life = Life(tmp_path_factory.mktemp("ledger"))
    # So that it is continued, again and again, while little is alive.
    for _ in range(3):
        for number in range(12):
            life.look_up(number, number)
            life.forget(number, 1)
    for name, number, argument, killed_at in changes:
        before, seen = life.known(), []
        assert life.left() == before
        left_lines = [killed_at or -1]

        def at_line(seen: list[Picture] = seen, left_lines: list[int] = left_lines) -> None:
            left_lines[0] -= 1
            if not left_lines[0]:
                raise Killed
            found = life.left()
            if not seen or found != seen[-1]:
                seen.append(found)

        try:
            with traced(at_line):
                getattr(life, name)(number, argument)
        except Killed:
            found = life.left()
            life.succeed()
            assert life.left() == found
            after = life.known()
            assert after == found
            for at in seen:
                assert_between(at, before, after)
        else:
            after = life.known()
            for at in seen:
                assert_between(at, before, after)
    assert life.left() == life.known()
    life.ledger.remove()
    life.table.close()
