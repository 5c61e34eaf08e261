"""Waiting for what nobody tells: a look again and again, until it is so."""

import time
from collections.abc import Callable
from typing import Any

import trio

PATIENCE_S = 40.0  # a machine may have much else to do
LONG_S = 1000.0  # of a virtual clock


def until(
    condition: Callable[[], Any], timeout_s: float = PATIENCE_S, pause_s: float = 0.02, *, what: object = ""
) -> Any:
    """What `condition` returns, once that is true. AssertionError after `timeout_s`, with `what`: what should
    have happened, or a function that says how things are then.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, _late(what)
        time.sleep(pause_s)
    return found


async def until_async(
    condition: Callable[[], Any], timeout_s: float = PATIENCE_S, pause_s: float = 0.01, *, what: object = ""
) -> Any:
    """As `until`, by the clock of trio, which may be a virtual one. Other tasks run meanwhile."""
    deadline_s = trio.current_time() + timeout_s
    while not (found := condition()):
        assert trio.current_time() < deadline_s, _late(what)
        await trio.sleep(pause_s)
    return found


def _late(what: object) -> str:
    return f"this did not happen in time: {what() if callable(what) else what}"
