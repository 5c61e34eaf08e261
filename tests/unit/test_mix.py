"""How many frames of changes go for each step of a mirror."""

from types import SimpleNamespace
from typing import Any

from replicator.sender.mix import Mix


class Flow:
    def __init__(self) -> None:
        self.left = 0
        self.cursor: Any = SimpleNamespace(backlog=lambda: (self.left, self.left * 100))


def test_changes_go_first_as_long_as_there_are_some() -> None:
    flows: Any = [Flow(), Flow()]
    mix = Mix(flows)
    flows[1].left = 10
    mix.step()
    assert not mix.holds, "nothing was asked for"
    mix.ratio = 3
    mix.step()
    for _ in range(3):
        assert mix.holds
        mix.shipped()
    assert not mix.holds
    mix.step()
    flows[1].left = 0
    assert not mix.holds, "the queue is empty"
    flows[1].left = 10
    assert not mix.holds, "what comes now was not there when the step was taken"
    mix.step()
    mix.ratio = 0
    assert not mix.holds
