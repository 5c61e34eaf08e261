"""The data of an owner that was superseded: its connections are held, its tail is kept, and its directories
become copies of what the new owner has.

    await former.hold(record)                        # at once: nothing is transmitted any more
    tails = await former.tails(record)               # what this side wrote behind the fork point
    await former.prepare(record, save=keep_bundle)   # the return connection goes on

Every step may be done again. `prepare` needs the new owner; all else does not.
"""

from collections.abc import Awaitable, Callable, Mapping

from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.failovers import Promotion
from replicator.queue.dirty import DirtyMap

Tails = Mapping[str, DirtyMap | None]
"""By mount id: what may differ from the fork point, paths relative to the captured directory. None: nobody
knows, it may be anything. An empty map: nothing was written.
"""

Save = Callable[[Promotion, str, Tails], Awaitable[None]]
"""Keeps a bundle of the tail of one connection (its uuid). Returns when it is durable. Nothing of the tail is
overwritten before; raises ReplicatorError if it cannot be kept.
"""


class FormerOwner:
    """Of one agent."""

    def __init__(self, core: Core, calls: Calls) -> None:
        self._core = core
        self._calls = calls

    async def hold(self, record: Promotion) -> None:
        """The connections of the group transmit nothing any more (*Restore required*); they track."""
        raise NotImplementedError

    async def tails(self, record: Promotion) -> dict[str, Tails]:
        """By connection. The mounts must be fenced. Raises ReplicatorError: a sender does not answer."""
        raise NotImplementedError

    async def prepare(self, record: Promotion, save: Save) -> None:
        """Bundles are kept, mounts go down, the copies of the return connections know of the tails, and the
        new owner is told that it may send. Raises ReplicatorError, UnreachableError: to be done again.
        """
        raise NotImplementedError

    def is_prepared(self, record: Promotion) -> bool:
        """Whether `prepare` has ended, durably."""
        raise NotImplementedError
