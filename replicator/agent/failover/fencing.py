"""Fences of the mounts of this host: closed, opened, shown.

A mount without fence costs nothing. A fence is a page of shared memory (`fs/fence.py`) that outlives capture
and agent; what stands in it follows from the leases of the groups of the mount (`leases.py`), from who has
superseded this agent (`returning.py`), and from whether somebody froze it for a hand-over.
"""

from collections.abc import Iterable

from replicator.agent.core import Core
from replicator.fences import FenceMode, FenceState


class Fencing:
    """Of one agent. Mounts are named by their ids."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def freeze(self, mounts: Iterable[str]) -> None:
        """For a planned hand-over: changes wait from the return on, and all that was done before is in the
        journal. Survives kills of agent and capture. Raises ReplicatorError; then nothing is frozen.
        """
        raise NotImplementedError

    async def thaw(self, mounts: Iterable[str]) -> None:
        """Take that back: what waits goes on, or fails if this agent was superseded meanwhile."""
        raise NotImplementedError

    async def set_mode(self, mounts: Iterable[str], mode: FenceMode, until_ns: int) -> None:
        """Changes are carried out until then (CLOCK_BOOTTIME), and as `mode` says from then on. 0: from now
        on. A capture that does not run finds it when it starts.
        """
        raise NotImplementedError

    async def remove(self, mounts: Iterable[str]) -> None:
        """No group guards them any more, and nobody has frozen them."""
        raise NotImplementedError

    def state(self, mount: str) -> FenceState | None:
        """None: it has no fence."""
        raise NotImplementedError
