"""A superseded source drops its addresses, and has the owner announce them once more.

While both hosts had an address, neighbours may have come to believe that it is at the source; what they are
told by nobody they go on believing for minutes. So whoever has dropped something says so to the owner. The
system may put addresses up later than the agent starts, so they are looked for as long as the source is
superseded.
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
from replicator.agent.failover.procedure import Say, Taken
from replicator.errors import NotPermittedError, ReplicatorError
from replicator.failover.phases import MAY_OWN

ACTION = "dropped"


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
        self._unwanted: dict[str, tuple[str, ...]] = {}  # addresses that may not be here, by group
        self._owed: dict[str, int] = {}  # groups whose owner is to be told: how often it may still be tried
        self._more = trio.Event()
        calls.register(ACTION, Dropped, self._dropped)

    async def superseded(self, group: str, wanted: Iterable[str]) -> None:
        """Drop them, and again if they come back while this host is superseded. Unless their owner has given
        them back already, on the way home: then they stay, also over a restart of this agent.
        """
        if self._epoch(group) <= await self._addresses.returned(group):
            return
        self._unwanted[group] = tuple(wanted)
        await self._drop(group)

    async def drop(self, group: str, wanted: Iterable[str]) -> list[str]:
        """At the owner's wish, who takes them back; as `superseded`. Returns those that were here."""
        await self._addresses.set_returned(group, 0)
        self._unwanted[group] = tuple(wanted)
        return await self._drop(group)

    async def put_back(self, group: str, *, forced: bool, say: Say) -> Taken:
        """See `GroupAddresses.put_back`. The owner has given them back, though he may own the group still."""
        self._unwanted.pop(group, None)
        await self._addresses.set_returned(group, self._epoch(group))
        return await self._addresses.put_back(group, forced=forced, say=say)

    def _epoch(self, group: str) -> int:
        """By which another agent owns it."""
        guard = self._guards.get(group)
        return guard.superseded.epoch if guard is not None and guard.superseded is not None else 0

    async def _drop(self, group: str) -> list[str]:
        self._more.set()
        dropped = await self._addresses.drop(group, self._unwanted[group])
        if dropped:
            self._owed[group] = limits.ADDRESS_TELL_TRIES
        return dropped

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more = trio.Event()
            for group in list(self._unwanted):
                await self._look_again(group)
            for group in list(self._owed):
                await self._tell(group)
            with trio.move_on_after(limits.ADDRESS_RETRY_S if self._owed or self._unwanted else float("inf")):
                await self._more.wait()

    async def _look_again(self, group: str) -> None:
        guard, wanted = self._guards.get(group), self._unwanted.get(group, ())
        if guard is None or not guard.is_superseded or not wanted:  # or given back meanwhile
            self._unwanted.pop(group, None)
            return
        try:
            if await self._addresses.drop(group, wanted):
                self._owed[group] = limits.ADDRESS_TELL_TRIES
        except (ReplicatorError, OSError):
            pass  # whoever has asked for it was told; it may do the next time

    async def _tell(self, group: str) -> None:
        self._owed[group] -= 1
        try:
            guard = self._guards.get(group)
            if guard is not None:
                owner = Address(guard.target_host, guard.target_port)
                await self._calls.ask(owner, ACTION, group, Dropped(), Announced)
        except ReplicatorError:
            if self._owed[group] > 0:
                return
        del self._owed[group]

    async def _dropped(self, group: str, body: Dropped, caller: Caller) -> Announced:
        monitor = self._groups.get(group)
        if monitor is None or monitor.phase not in MAY_OWN:
            return Announced(announced=False)
        if caller.peer is not None and monitor.source_uuid not in ("", caller.peer.uuid):
            raise NotPermittedError("this group has another source")
        await self._addresses.announce(group)
        return Announced(announced=True)
