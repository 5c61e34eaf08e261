"""A former target that owned a group and finds that its source has taken it back (`taking_back.py`).

As a source it steps back as any other (`returning.py`, `following.py`). Here ends what it was as the target:
it gives the group's addresses up, its copies that were promoted are none any more, and it watches nobody.
"""

import trio

from replicator import limits
from replicator.agent.core import Core
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.copies_again import CopiesAgain
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.promotion import Promotions
from replicator.errors import ReplicatorError
from replicator.failovers import Guard, Phase, Promotion


class Deposed:
    """Of one agent. `run` ends what an earlier one has left half done."""

    def __init__(
        self,
        core: Core,
        guards: Guards,
        groups: Groups,
        promotions: Promotions,
        addresses: GroupAddresses,
    ) -> None:
        self._guards = guards
        self._groups = groups
        self._promotions = promotions
        self._addresses = addresses
        self._copies = CopiesAgain(core)
        self._more = trio.Event()
        guards.on_superseded.append(self._superseded)

    async def _superseded(self, guard: Guard, record: Promotion) -> None:
        self._more.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more = trio.Event()
            left = [guard for guard in self._guards.all() if guard.is_held and not await self._end(guard)]
            with trio.move_on_after(limits.ADDRESS_RETRY_S if left else float("inf")):
                await self._more.wait()

    async def _end(self, guard: Guard) -> bool:
        """Whether this host is no target of that group any more. May be done again after a crash: what it was
        is known by the monitor, which goes last.
        """
        monitor, record = self._groups.get(guard.group), guard.superseded
        if monitor is None or record is None or monitor.phase is not Phase.ACTIVE:
            return True  # on the way home the procedure of that does all of it
        try:
            await self._addresses.give_up(monitor, lambda text: None)
            mine = self._promotions.record(guard.group)
            for copy in mine.copies if mine is not None else ():
                await self._copies.discard(copy.connection)
            what = f"{record.owner_name} has taken it back (epoch {record.epoch})"
            await self._groups.note(monitor, "superseded", what)
            await self._groups.remove(monitor.uuid)
        except (ReplicatorError, OSError):
            return False
        return True
