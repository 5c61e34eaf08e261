"""Failover, assembled: `Service.failover`.

Each part is made here, registers what it answers to other agents (`calls.py`), and has its `run` started in
`FailoverService.run` if it does something by itself.
"""

from functools import partial

import trio

from replicator.agent.connections import Connections
from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.drills import Drills
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.grants import Grants
from replicator.agent.failover.group_copies import GroupCopies
from replicator.agent.failover.group_scripts import GroupScripts
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.leases import Leases
from replicator.agent.failover.monitors import Monitors
from replicator.agent.failover.questions import tell_script
from replicator.agent.failover.returning import Returning
from replicator.agent.failover.witnesses import Witnesses
from replicator.agent.mounts import Mounts
from replicator.agent.repsets import Repsets


class FailoverService:
    """Of one agent, whatever it is to others: source, target, witness."""

    def __init__(self, core: Core, connections: Connections, mounts: Mounts, repsets: Repsets) -> None:
        self._core = core
        self.calls = Calls(core.peers)
        self.groups = Groups(core)
        self.copies = GroupCopies(core)
        self.scripts = GroupScripts(core, self.groups, self.copies)
        self.drills = Drills(core, self.groups, self.copies, self.scripts)
        self.monitors = Monitors(core, self.groups, self.calls)
        self.monitors.default_scripts = self.scripts.defaults
        self.monitors.watching.run_question_script = partial(tell_script, self.scripts)
        self.witnesses = Witnesses(self.calls)
        self.fencing = Fencing(core)
        core.fence_state = self.fencing.state
        self.guards = Guards(core, self.calls, self.fencing)
        self.leases = Leases(core, self.calls, self.guards, self.fencing, self.witnesses)
        self.grants = Grants(core, self.calls, self.groups, self.copies, lambda group: None)
        self.returning = Returning(core, self.guards, self.fencing)

    async def run(self) -> None:
        """Until cancelled."""
        await self._core.up.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.monitors.run)
            nursery.start_soon(self.scripts.serve)
            nursery.start_soon(self.drills.run)
            nursery.start_soon(self.leases.run)
            nursery.start_soon(self.grants.run)
