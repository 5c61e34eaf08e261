"""A process is killed at every line of a ledger's life: what it leaves is what was there before the change or
after it, whether it lies in one log or in two.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator import limits
from replicator.fs import ledger, nodes
from replicator.fs.ledger import Ledger
from replicator.fs.nodes import Node, NodeTable

SIZE = 1 << 13
OBJECTS = 20
TRACED = {ledger.__file__, nodes.__file__}
Picture = dict[int, tuple[int, frozenset[tuple[int, bytes]]]]  # id: references, names


Change = tuple[str, int, int, int | None]  # method of `Life`, its arguments, the line it is killed at


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

    def bytes(self) -> list[bytes]:
        found = []
        for path in (self.path, self.path + ".next"):
            with suppress(FileNotFoundError), open(path, "rb") as file:
                found.append(file.read())
        return found

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


class Looker:
    """Sees what a successor would find at each line."""

    def __init__(self, life: Life, lines: int) -> None:
        self._life = life
        self._lines = lines  # left until it is killed
        self._bytes: list[bytes] = []
        self.seen: list[Picture] = []

    def look(self) -> None:
        self._lines -= 1
        if not self._lines:
            raise Killed
        now = self._life.bytes()
        if now != self._bytes:
            self._bytes = now
            self.seen.append(self._life.left())


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
        st.integers(0, OBJECTS),
        st.integers(0, 2 * OBJECTS),
        st.one_of(st.none(), st.none(), st.integers(1, 120)),  # killed at this line
    ),
    min_size=30,
    max_size=60,
)


@given(changes=CHANGES, moves=st.integers(1, 3), spent=st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_a_kill_at_any_line(tmp_path_factory: Any, changes: list[Change], moves: int, spent: int) -> None:
    with patch.object(limits, "LEDGER_MOVES", moves):  # as few as among hundreds of thousands
        live(Life(tmp_path_factory.mktemp("ledger")), changes, spent)


def live(life: Life, changes: list[Change], spent: int) -> None:
    for number in range(OBJECTS):
        life.look_up(number, number)
    for _ in range(spent):  # so that it is full sooner or later
        life.look_up(OBJECTS, OBJECTS)
        life.forget(OBJECTS, 1)
    for name, number, argument, killed_at in changes:
        before = life.known()
        assert life.left() == before
        looker = Looker(life, killed_at or -1)
        try:
            with traced(looker.look):
                getattr(life, name)(number, argument)
        except Killed:
            found = life.left()
            life.succeed()
            assert life.left() == found
            after = life.known()
            assert after == found
        else:
            after = life.known()
        for found in looker.seen:
            assert_between(found, before, after)
    assert life.left() == life.known()
    life.ledger.remove()
    life.table.close()
