"""How commands wait for the end of something: often at first, and over a restart of the agent."""

import pytest

from replicator.cli import following
from replicator.errors import ReplicatorError, UnreachableError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(following, "time", clock)
    return clock


def test_it_looks_until_it_is_over(clock: Clock) -> None:
    values = iter(range(100))
    told: list[int] = []
    assert following.until_over(lambda: next(values), lambda value: value == 30, told.append) == 30
    assert told == list(range(31))
    assert clock.pauses[0] < 0.1 and clock.pauses[-1] == 0.5 and clock.pauses == sorted(clock.pauses)


def test_an_agent_may_be_started_again(clock: Clock) -> None:
    def look() -> str:
        if 1 < clock.now_s < 15 or 20 < clock.now_s < 35:
            raise UnreachableError("no agent")
        return "done" if clock.now_s > 40 else "at work"

    assert following.until_over(look, lambda value: value == "done") == "done"


def test_an_agent_that_stays_away_is_told(clock: Clock) -> None:
    def look() -> str:
        if clock.now_s > 1:
            raise UnreachableError("no agent")
        return ""

    with pytest.raises(UnreachableError):
        following.until_over(look, bool)
    assert 20 < clock.now_s < 25


def test_what_the_agent_says_is_told_at_once(clock: Clock) -> None:
    def look() -> str:
        raise ReplicatorError("no such run")

    with pytest.raises(ReplicatorError, match="no such run"):
        following.until_over(look, bool)
    assert not clock.pauses
