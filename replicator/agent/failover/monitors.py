"""The monitors of this agent: added, edited, driven. What a source's silence leads to is decided in
`failover/monitor.py`.
"""

from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.groups import Groups


class Monitors:
    """`run` watches."""

    def __init__(self, core: Core, groups: Groups, calls: Calls) -> None:
        self._core = core
        self._groups = groups
        self._calls = calls

    async def run(self) -> None:
        """Until cancelled; the next agent goes on watching."""
