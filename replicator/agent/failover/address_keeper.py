"""After a start of the agent: addresses of groups that this host owns are put up again, those of others go.

A reboot takes addresses away, and nobody else puts these up. While somebody else answers for one, it is tried
again: either that host gives it back, or this one learns that it owns the group no longer.
"""

import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.groups import Groups
from replicator.errors import ReplicatorError
from replicator.failover.phases import OWNING
from replicator.failovers import Monitor, Phase

_MAY_HAVE = OWNING | {Phase.TAKING_OVER}


class AddressKeeper:
    """`run` once, after procedures that were under way go on."""

    def __init__(self, core: Core, groups: Groups, addresses: GroupAddresses) -> None:
        self._core = core
        self._groups = groups
        self._addresses = addresses

    async def run(self) -> None:
        """Returns when all that this host should have is here."""
        try:
            await self._addresses.keep_only(m.uuid for m in self._groups.all() if m.phase in _MAY_HAVE)
        except (ReplicatorError, OSError) as error:
            self._warn("groups that this host does not own", str(error))
        async with trio.open_nursery() as nursery:
            for monitor in self._groups.all():
                if monitor.phase in OWNING:
                    nursery.start_soon(self._restore, monitor)

    async def _restore(self, monitor: Monitor) -> None:
        said = ""
        while (known := self._groups.get(monitor.uuid)) is not None and known.phase in OWNING:
            try:
                await self._addresses.restore(monitor.uuid)
                return
            except (ReplicatorError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self._warn(monitor.name, said)
            await trio.sleep(limits.ADDRESS_RETRY_S)

    def _warn(self, name: str, reason: str) -> None:
        self._core.events.add(events.ADDRESS_CONFLICT, name=name, reason=reason)
