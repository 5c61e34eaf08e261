"""What home does in a failback besides copies and addresses: see `homecoming.Deeds`."""

import msgspec

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.failover.arbiter import Arbiter, Try
from replicator.agent.failover.divergences import Divergences
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.homecoming import Deeds
from replicator.agent.failover.promotion import Promotions
from replicator.failover.witness import Ballot
from replicator.failovers import Guard, Monitor, Phase, TakeOver, return_of


class HomeDeeds:
    """Of one agent."""

    def __init__(
        self,
        core: Core,
        connections: Connections,
        groups: Groups,
        guards: Guards,
        scripts: GroupScripts,
        divergences: Divergences,
        arbiter: Arbiter,
        promotions: Promotions,
    ) -> None:
        self._core = core
        self._connections = connections
        self._groups = groups
        self._guards = guards
        self._scripts = scripts
        self._divergences = divergences
        self._arbiter = arbiter
        self._promotions = promotions

    def deeds(self) -> Deeds:
        return Deeds(
            run_script=self._scripts.run_for_other,
            bundles=self._bundles,
            withdraw=self._withdraw,
            adopt=self._adopt,
            disown=self._disown,
            retire=self._retire,
        )

    async def _bundles(self, group: str) -> tuple[str, ...]:
        return tuple(
            view.manifest.id for view in await self._divergences.all() if view.manifest.group == group
        )

    async def _withdraw(self, monitor: Monitor, order: TakeOver, attempt: str) -> None:
        agent = self._core.identity.uuid
        ballot = Ballot(
            agent=agent,
            candidate=agent,
            owner=agent,  # only the attempt counts
            parent_epoch=order.parent_epoch,
            epoch=order.epoch,
            attempt=attempt,
        )
        witness = monitor.settings.witness
        await self._arbiter.withdraw(Try(group=monitor.uuid, witness=witness, ballot=ballot, terms=0))

    async def _adopt(self, monitor: Monitor, guard: Guard) -> None:
        """Watch the owner with the settings by which it watched this host. Nothing, if that is done."""
        if self._groups.get(monitor.uuid) is not None or guard.superseded is None:
            return
        settings = msgspec.structs.replace(
            monitor.settings,
            source_host=guard.target_host,
            source_port=guard.target_port,
            addresses=tuple(
                msgspec.structs.replace(address, interface="") for address in monitor.settings.taken
            ),
            copies=tuple(return_of(uuid) for uuid in guard.copies),
        )
        record = guard.superseded
        # A witness that was away when the owner was promoted learns of it by a later vote of this host.
        await self._promotions.keep(record)
        await self._groups.add(
            msgspec.structs.replace(
                monitor,
                settings=settings,
                source_uuid=record.owner,
                source_name=record.owner_name,
                phase=Phase.WATCHING,
                epoch=record.epoch,
            )
        )

    async def _disown(self, group: str) -> None:
        if self._groups.get(group) is not None:
            await self._groups.remove(group)

    async def _retire(self, guard: Guard) -> None:
        for uuid in guard.copies:
            await self._connections.remove_quietly(uuid)
        await self._guards.dismiss(guard.group)
