"""After a start of the agent: addresses of groups that others own go; all else that this host has taken is
put up again.

A reboot takes addresses away, and nobody else puts these up. While somebody else answers for one, it is tried
again: either that host gives it back, or this one learns that it owns the group no longer. Whoever has turned
around a failback (`--stay`) owns a group whose monitor is elsewhere, or nowhere: what it has taken stays.
"""

import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.errors import ReplicatorError
from replicator.failover.phases import MAY_OWN
from replicator.failovers import Phase


class AddressKeeper:
    """`run` once, after procedures that were under way go on."""

    def __init__(self, core: Core, groups: Groups, guards: Guards, addresses: GroupAddresses) -> None:
        self._core = core
        self._groups = groups
        self._guards = guards
        self._addresses = addresses

    async def run(self) -> None:
        """Returns when all that this host should have is here."""
        groups = await self._addresses.groups()
        try:
            await self._addresses.give_up_all(group for group in groups if not self._may_have(group))
        except (ReplicatorError, OSError) as error:
            self._warn("groups that this host does not own", str(error))
        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(self._restore, group)

    def _may_have(self, group: str) -> bool:
        """As its target, or else as its source."""
        monitor, guard = self._groups.get(group), self._guards.get(group)
        if monitor is not None:
            return monitor.phase in MAY_OWN
        return guard is None or not guard.is_superseded

    def _is_due(self, group: str) -> bool:
        """What is just being taken is put up by its procedure."""
        monitor = self._groups.get(group)
        return self._may_have(group) and (monitor is None or monitor.phase is not Phase.TAKING_OVER)

    async def _restore(self, group: str) -> None:
        said = ""
        while self._is_due(group):
            try:
                await self._addresses.restore(group)
                return
            except (ReplicatorError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    known = self._groups.get(group) or self._guards.get(group)
                    self._warn(known.name if known is not None else group, said)
            await trio.sleep(limits.ADDRESS_RETRY_S)

    def _warn(self, name: str, reason: str) -> None:
        self._core.events.add(events.ADDRESS_CONFLICT, name=name, reason=reason)
