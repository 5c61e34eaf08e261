"""The data part of taking over: copies stand still, are promoted, and are opened for programs.

    report = await promotions.look(order)      # nothing is changed
    report = await promotions.drain(order)     # undo: `release`
    record = await promotions.promote(order)   # no undo: it is durable, or nothing has happened
    await promotions.open(record.group)        # done again after a crash, as often as it takes

Every step may be done again: what was done already stays as it is. `record` says on which side of the
point of no return a crashed take-over is.
"""

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.mounts import Mounts
from replicator.errors import ReplicatorError
from replicator.failovers import Promotion, Report, TakeOver


class NotReadyError(ReplicatorError):
    """A copy cannot be promoted, or not unless a person forces it."""


class Promotions:
    """Of one agent: of the copies that it keeps, and, in a failback, of those of return connections."""

    def __init__(self, core: Core, mounts: Mounts, connections: Connections) -> None:
        self._core = core
        self._mounts = mounts
        self._connections = connections

    def record(self, group: str) -> Promotion | None:
        """The last one of the group that this agent made, or was told of. It is durable."""
        raise NotImplementedError

    async def look(self, order: TakeOver) -> Report:
        """The copies as they are, and the epoch that a promotion would reach. Changes nothing."""
        raise NotImplementedError

    async def drain(self, order: TakeOver) -> Report:
        """No session of the source is accepted any more (it is told why), what has arrived is applied for at
        most `drain_s`, then the copies are durable and stand still, also over restarts, until `release`.

        What is left then is in the report. Raises NotReadyError, with nothing changed, if a copy is in no
        state that its source was in, unless `forced`; and if one does not come to a stop.
        """
        raise NotImplementedError

    async def release(self, order: TakeOver) -> None:
        """Undo `drain`: the copies go on with their source. Does nothing once they are promoted."""
        raise NotImplementedError

    async def promote(self, order: TakeOver) -> Promotion:
        """The record is durable here, then the receivers have its epoch: sources of older ones are refused
        with it. `order.epoch` as `drain` has reported it. Raises NotReadyError: a copy does not stand still,
        or has a higher epoch; nothing has happened then. Once the record is durable nothing is raised for
        single receivers: `open` tells them again.
        """
        raise NotImplementedError

    async def open(self, group: str) -> Report:
        """Programs may write: locks end, each root is mounted over itself and captured, and its return
        connection tracks changes from the first one on. Raises ReplicatorError: to be done again.
        """
        raise NotImplementedError
