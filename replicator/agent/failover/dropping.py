"""A superseded source drops its addresses, and has the owner announce them once more.

While both hosts had an address, neighbours may have come to believe that it is at the source; what they are
told by nobody they go on believing for minutes. So whoever has dropped something says so to the owner.
"""

from collections.abc import Iterable

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.errors import NotPermittedError, ReplicatorError
from replicator.failover.phases import OWNING
from replicator.failovers import Phase

ACTION = "dropped"
_MAY_HAVE = OWNING | {Phase.TAKING_OVER}


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Call `dropped`, superseded source → owner: this host has not got the group's addresses any more."""


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """Answer: they are announced now, or (False) the owner is somebody else."""

    announced: bool


class Dropping:
    """Of one agent, on either side. `run` says what could not be said at once."""

    def __init__(self, calls: Calls, groups: Groups, guards: Guards, addresses: GroupAddresses) -> None:
        self._calls = calls
        self._groups = groups
        self._guards = guards
        self._addresses = addresses
        self._owed: dict[str, int] = {}  # groups whose owner is to be told: how often it may still be tried
        self._more = trio.Event()
        calls.register(ACTION, Dropped, self._dropped)

    async def drop(self, group: str, wanted: Iterable[str]) -> None:
        """See `GroupAddresses.drop`. Does not wait for the owner."""
        if await self._addresses.drop(group, wanted):
            self._owed[group] = limits.ADDRESS_TELL_TRIES
            self._more.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more = trio.Event()
            for group in list(self._owed):
                await self._tell(group)
            with trio.move_on_after(limits.ADDRESS_RETRY_S if self._owed else float("inf")):
                await self._more.wait()

    async def _tell(self, group: str) -> None:
        self._owed[group] -= 1
        try:
            guard = self._guards.find(group)
            owner = Address(guard.target_host, guard.target_port)
            await self._calls.ask(owner, ACTION, group, Dropped(), Announced)
        except ReplicatorError:
            if self._owed[group] > 0:
                return
        del self._owed[group]

    async def _dropped(self, group: str, body: Dropped, caller: Caller) -> Announced:
        monitor = self._groups.get(group)
        if monitor is None or monitor.phase not in _MAY_HAVE:
            return Announced(announced=False)
        if caller.peer is not None and monitor.source_uuid not in ("", caller.peer.uuid):
            raise NotPermittedError("this group has another source")
        await self._addresses.announce(group)
        return Announced(announced=True)
