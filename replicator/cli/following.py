"""Waiting for the end of something that an agent does, by looking at it again and again."""

import time
from collections.abc import Callable
from typing import TypeVar

from replicator.errors import UnreachableError

_FIRST_S = 0.05  # what is over soon is told soon,
_LAST_S = 0.5  # and what takes long is not asked for all the time
_GROWTH = 1.3
_AGENT_AWAY_S = 20.0  # an agent that is started again; what it does goes on meanwhile

T = TypeVar("T")


def _nothing(found: object) -> None:
    pass


def until_over(
    look: Callable[[], T], is_over: Callable[[T], bool], told: Callable[[T], None] = _nothing
) -> T:
    """What `look` finds when it is over. `told` hears of each look. Ctrl-C ends the waiting only.

    Raises what `look` does; UnreachableError only if the agent stays away.
    """
    pause_s = _FIRST_S
    away_since_s: float | None = None
    while True:
        try:
            found = look()
        except UnreachableError:
            now_s = time.monotonic()
            away_since_s = now_s if away_since_s is None else away_since_s
            if now_s - away_since_s > _AGENT_AWAY_S:
                raise
        else:
            away_since_s = None
            told(found)
            if is_over(found):
                return found
        time.sleep(pause_s)
        pause_s = min(pause_s * _GROWTH, _LAST_S)
