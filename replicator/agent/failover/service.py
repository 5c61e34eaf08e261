"""Failover, assembled: `Service.failover`.

Each part is made here, registers what it answers to other agents (`calls.py`), and has its `run` started in
`FailoverService.run` if it does something by itself. What mounts need before they come up is in
`ownership.py`; this is loaded later.
"""

from functools import partial

import trio

from replicator.addresses import Address, parse_host_port
from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.failover.address_keeper import AddressKeeper
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.agreement import Agreement
from replicator.agent.failover.arbiter import Arbiter
from replicator.agent.failover.checkup import Checkup
from replicator.agent.failover.contained import Contained
from replicator.agent.failover.copies_again import CopiesAgain
from replicator.agent.failover.deposed import Deposed
from replicator.agent.failover.divergences import Divergences
from replicator.agent.failover.drills import Drills
from replicator.agent.failover.dropping import Dropping
from replicator.agent.failover.errands import Errand, Errands
from replicator.agent.failover.failback import Failback
from replicator.agent.failover.failback_parts import Parts as FailbackParts
from replicator.agent.failover.failover_plan import Failover
from replicator.agent.failover.fence_command import FenceCommand
from replicator.agent.failover.following import Following
from replicator.agent.failover.former_owner import FormerOwner
from replicator.agent.failover.grants import Grants
from replicator.agent.failover.group_copies import GroupCopies
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.handing_over import HandingOver
from replicator.agent.failover.handing_over_vote import HandingOverVote
from replicator.agent.failover.home_calls import HomeCalls
from replicator.agent.failover.home_deeds import HomeDeeds
from replicator.agent.failover.homecoming import Homecoming
from replicator.agent.failover.leases import Leases
from replicator.agent.failover.monitors import Monitors
from replicator.agent.failover.narration import Narration
from replicator.agent.failover.ownership import Ownership
from replicator.agent.failover.procedure import Parts
from replicator.agent.failover.procedures import Procedures
from replicator.agent.failover.promotion import Promotions
from replicator.agent.failover.questions import tell_script
from replicator.agent.failover.releasing import Releasing
from replicator.agent.failover.returning import Returning
from replicator.agent.failover.siblings import Siblings
from replicator.agent.failover.source_addresses import SourceAddresses
from replicator.agent.failover.taking_back import TakingBack
from replicator.agent.failover.telling import TellingAll
from replicator.agent.failover.witness_service import WitnessService
from replicator.agent.failover.witnesses import ETCD, Witnesses
from replicator.agent.mounts import Mounts
from replicator.agent.repsets import Repsets
from replicator.failovers import Monitor, return_of
from replicator.world import World


class FailoverService:
    """Of one agent, whatever it is to others: source, target, witness."""

    def __init__(
        self, core: Core, ownership: Ownership, connections: Connections, mounts: Mounts, repsets: Repsets
    ) -> None:
        self._core = core
        self.calls = ownership.calls
        self.fencing = ownership.fencing
        self.guards = ownership.guards
        self.groups = Groups(core)
        self.divergences = Divergences(core)
        self.copies = GroupCopies(core)
        self.scripts = GroupScripts(core, self.groups, self.copies)
        self.drills = Drills(core, self.groups, self.copies, self.scripts)
        self.monitors = Monitors(core, self.groups, self.calls)
        self.monitors.default_scripts = self.scripts.defaults
        self.monitors.watching.run_question_script = partial(tell_script, self.scripts)
        self.source_addresses = SourceAddresses(core.identity.uuid, self.calls)
        self.witnesses = Witnesses(self.calls, lambda: core.config.failover)
        self.witness = WitnessService(core, self.calls)
        self.leases = Leases(core, self.calls, self.guards, self.fencing, self.witnesses)
        self.promotions = Promotions(core, mounts, connections)
        self.former = FormerOwner(core, self.calls, self.promotions.opening)
        self.following = Following(core, self.guards, self.former, self.divergences.keep)
        self.siblings = Siblings(
            *(core, self.calls, self.groups, self.guards, self.promotions, connections, repsets)
        )
        self.grants = Grants(core, self.calls, self.groups, self.copies, self.promotions.record)
        self.addresses = GroupAddresses(World().disk, core.home.failover_addresses, core.events.add)
        self.monitors.leave_addresses = self.addresses.leave
        self.dropping = Dropping(self.calls, self.groups, self.guards, self.addresses)
        self.returning = Returning(core, self.guards, self.dropping.superseded)
        self.releasing = Releasing(core, self.guards, self.former, self.addresses)
        self.arbiter = Arbiter(core, self.witnesses, self.grants)
        self.telling = TellingAll(self.witnesses)
        narration = Narration(core, self.groups)
        self.procedures = Procedures(
            core.home.failover_procedures, self.groups, World(), narration.ended, narration.warn
        )
        self.agreement = Agreement(
            *(core.identity.uuid, self.arbiter, self.grants),
            *(self.monitors.watching, self.promotions.record),
        )
        parts = self._parts()
        self.procedure = Failover(self.procedures, core.identity.uuid, parts)
        self.checkup = Checkup(
            self.groups,
            self.copies,
            self.scripts,
            self.monitors.watching,
            parts.data,
            parts.arbiter,
            self._reach_witness,
            self.procedure,
            self.drills.all,
        )
        self.errands = Errands(core, self._do_errand, self.groups.note)
        self._home_calls = HomeCalls(self.calls, core.identity.uuid, self._ways_home)
        self.failback = Failback(
            self.procedures, self.groups.get, core.identity.name, self._failback_parts(connections, mounts)
        )
        deeds = HomeDeeds(
            *(core, connections, self.groups, self.guards, self.scripts, self.divergences, self.arbiter),
            self.promotions,
        ).deeds()
        self.homecoming = Homecoming(
            core,
            self.calls,
            self.guards,
            self.fencing,
            self.promotions,
            self.former,
            self.following,
            self.dropping,
            deeds,
        )
        self.taking_back = TakingBack(
            *(core, self.guards, self.groups, self.monitors, deeds, self.scripts.defaults, self.failback)
        )
        self.promotions.before_opening = self.taking_back.before_opening
        self.deposed = Deposed(core, self.guards, self.groups, self.promotions, self.addresses)
        self.monitors.report_of = self.procedures.report
        self.monitors.is_armed = self.agreement.is_armed
        self.monitors.watching.taking_over = self.procedure
        self.monitors.watching.get_ready = self.addresses.probe_ahead

    async def _reach_witness(self, monitor: Monitor) -> None:
        """Raises ReplicatorError: its witness does not answer. An agent is asked for something that changes
        nothing there.
        """
        witness = monitor.settings.witness
        if witness.startswith(ETCD):
            await self.witnesses.at(witness).watch(monitor.uuid)
        else:
            await self.source_addresses.of(parse_host_port(witness))

    def _parts(self) -> Parts:
        """What does the steps of a failover."""
        return Parts(
            fence=FenceCommand(self.scripts),
            arbiter=self.agreement,
            copies=self.copies,
            data=self.promotions,
            scripts=self.scripts,
            addresses=self.addresses,
            telling=self.telling,
            groups=self.groups,
            drills=self.drills,
        )

    def _failback_parts(self, connections: Connections, mounts: Mounts) -> FailbackParts:
        """What does the steps of a failback, on the agent that owns the group."""
        core = self._core
        return FailbackParts(
            home=self._home_calls,
            own=HandingOver(
                *(core, self.groups, connections, mounts, self.fencing, self.guards),
                records=self.promotions,
                copies=CopiesAgain(core),
            ),
            arbiter=HandingOverVote(core.identity.uuid, self.witnesses, self.promotions.record),
            scripts=self.scripts,
            addresses=self.addresses,
            errands=self.errands,
        )

    def _ways_home(self, monitor: Monitor) -> list[Address]:
        """From where it has called, by the return connections, or as the monitor names the source (FB-03)."""
        record = self.promotions.record(monitor.uuid)
        returning = {return_of(copy.connection) for copy in record.copies} if record is not None else set()
        ways = [
            Address(c.target_host, c.target_port)
            for c in self._core.state.connections
            if c.uuid in returning and c.target_host
        ]
        port = monitor.settings.source_port
        met = self.former.met.get(monitor.uuid, "")
        return [
            *([Address(met, port)] if met else []),
            *ways,
            Address(monitor.settings.source_host, port),
        ]

    async def _do_errand(self, errand: Errand) -> str:
        return await self._home_calls.do(errand)

    async def run(self) -> None:
        """Until cancelled."""
        await self._core.up.wait()
        keep = Contained(self._core.events).keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "drills", self.drills.run)
            nursery.start_soon(keep, "announcements of addresses", self.addresses.run)
            nursery.start_soon(keep, "connections of a group that another host owns", self.returning.begin)
            nursery.start_soon(keep, "addresses of a group that another host owns", self.dropping.run)
            nursery.start_soon(keep, "votes that were not used", self.arbiter.run)
            nursery.start_soon(keep, "leases", self.leases.run)
            # What an earlier agent has left half done comes before anything new.
            nursery.start_soon(keep, "procedures", self.procedures.run)
            await self.procedures.ready()
            addresses = AddressKeeper(self._core, self.groups, self.guards, self.addresses)
            nursery.start_soon(keep, "addresses of this host's groups", addresses.run)
            nursery.start_soon(keep, "monitors", self.monitors.run)
            nursery.start_soon(keep, "scripts", self.scripts.serve)
            nursery.start_soon(keep, "failbacks", self.failback.run)
            nursery.start_soon(keep, "errands", self.errands.run)
            nursery.start_soon(keep, "groups that another host has taken meanwhile", self.deposed.run)
            nursery.start_soon(keep, "following a new owner", self.following.run)
            nursery.start_soon(keep, "other targets", self.siblings.run)
            nursery.start_soon(keep, "what sources are told", self.grants.run)
