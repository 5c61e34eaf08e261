"""A copy that stands still for a drill goes on by itself when nobody keeps the drill up any more.

The room of a drill ends with its agent. What the agent has asked of its receivers would outlive it until the
next one starts, and a copy that stands still gets older all the time. So it has to be asked for again and
again; a hold of before this process counts from its start.
"""

import sys

import trio

from replicator import limits
from replicator.failover_drills import HOLD
from replicator.receiver.replica import Replica


class DrillHold:
    """Of one copy. `run` until cancelled."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._heard = trio.Event()

    def keep(self, hold: str = "") -> None:
        """The drill is still there, if it is this one; "": the copy began to stand still, or goes on."""
        if hold in ("", self._replica.state.restoring):
            self._heard.set()

    async def run(self) -> None:
        while True:
            self._heard = heard = trio.Event()
            hold = self._replica.state.restoring
            with trio.move_on_after(limits.DRILL_HOLD_S if hold.startswith(HOLD) else float("inf")):
                await heard.wait()
                continue
            try:
                await self._replica.ownership.release(hold)
            except OSError as error:
                reason = f"the copy stands still for a drill that is gone: {error.strerror}"
            else:
                reason = "nobody keeps its drill up any more: the copy goes on"
            print(reason, file=sys.stderr, flush=True)
