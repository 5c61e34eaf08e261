"""Tasks of failover, and what the outside does to them.

A disk that is full, a peer that answers nonsense, an interface that goes away meanwhile, a file that is
damaged: none of it ends the agent, which has leases to renew and others to watch. Who meets it is told of,
once for each reason, and begun again. Everything else is a bug: it ends the agent, whose children go on, and
the next one starts from what is durable.
"""

from collections.abc import Awaitable, Callable, Iterator

import trio

from replicator import events, limits
from replicator.bounds import MALFORMED, one_line
from replicator.errors import ReplicatorError
from replicator.events import EventRing

OUTSIDE = (ReplicatorError, OSError, trio.BrokenResourceError, *MALFORMED)
"""What the outside can cause."""


class Contained:
    """Of one agent."""

    def __init__(self, ring: EventRing) -> None:
        self._ring = ring

    async def keep(
        self, what: str, work: Callable[[], Awaitable[None]], pause_s: float = limits.FAILOVER_AGAIN_S
    ) -> None:
        """Until `work` returns: begun again when the outside has ended it. `what`: for people. It is called
        anew each time, so what it keeps in variables of its own is gone.
        """
        said = ""
        while True:
            began_s = trio.current_time()
            reason = ""
            try:
                await work()
            except* OUTSIDE as group:
                reason = reason_of(group)
            if not reason:
                return
            if trio.current_time() - began_s >= limits.FAILOVER_WORKED_S:
                said = ""  # it had worked meanwhile
            if reason != said:
                said = reason
                self._ring.add(events.FAILOVER_TASK_FAILED, what=what, reason=reason)
            await trio.sleep(pause_s)


def reason_of(error: BaseException) -> str:
    """One line, also of several that came together."""
    return "; ".join(dict.fromkeys(_line(each) for each in _leaves(error)))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return one_line(str(error)) or type(error).__name__
