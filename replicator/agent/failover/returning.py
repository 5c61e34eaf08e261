"""What a source does that comes back: it starts fenced, asks, and goes on or steps back.

An agent that knows of a group, and whose mounts are not up already, brings them up read-only. A grant of
target or witness opens them. Whoever owns the group by now supersedes it: see `superseded`.
"""

from replicator.agent.core import Core
from replicator.failovers import Guard, Promotion


class Returning:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def before_mounts(self) -> None:
        """When the agent starts, before its mounts do: those of groups that are not up are fenced."""
        raise NotImplementedError

    async def superseded(self, guard: Guard, promotion: Promotion) -> None:
        """Fence its mounts, hold its connections (*Restore required*, event 4018), drop its addresses. Done
        again at every start: whatever was done already stays as it is.
        """
        raise NotImplementedError

    async def open(self, key: str, *, even_if_two_masters: bool) -> Guard:
        """FO: a person decides that this agent goes on writing. Raises ReplicatorError that says what that
        means, unless `even_if_two_masters`.
        """
        raise NotImplementedError
