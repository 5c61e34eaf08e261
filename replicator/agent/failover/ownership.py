"""What of failover has to be there before mounts come up: whether this agent still owns what is below them,
and the fences that follow from that.

All else is in `service.py`. It is loaded once mounts serve and connections run: no program waits for it.
"""

from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.contained import Contained
from replicator.agent.failover.fenced_start import FencedStart
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guards import Guards


class Ownership:
    """Of one agent. `calls`: what it answers to others is registered with them, by this and by all else."""

    def __init__(self, core: Core) -> None:
        self.calls = Calls(core.peers)
        self.fencing = Fencing(core)
        core.fence_state = self.fencing.state
        self.guards = Guards(core, self.calls, self.fencing)
        self._start = FencedStart(core, self.guards, self.fencing)
        self._contained = Contained(core.events)

    async def before_mounts(self) -> None:
        """When the agent starts. A mount without its fence would be open to programs: it waits for a disk
        that has no room for one.
        """
        await self._contained.keep("fences of mounts", self._start.before_mounts)
