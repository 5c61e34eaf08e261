"""Groups in which this agent is the source (`State.guards`): who watches it, and what became of it.

A target tells its source that it watches it, and with what settings (`watch`, `unwatch`); the source believes
that of the agent that keeps its copies, and of nobody else.
"""

import msgspec

from replicator import limits
from replicator.agent.core import Core
from replicator.bounds import Id
from replicator.failovers import Guard, GuardedAddress, Lapse, Monitor, Promotion


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Call `watch`, target → source. Said again whenever it changes, and when the source comes back."""

    name: str
    target_uuid: Id
    target_name: str
    target_port: int = limits.PORT
    witness: str = ""
    lease_s: float = 0.0
    lapse: Lapse = Lapse.NONE
    copies: tuple[Id, ...] = ()  # empty: all whose target is that agent
    addresses: tuple[GuardedAddress, ...] = ()
    epoch: int = 0


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer."""

    agent_uuid: str
    agent_name: str
    copies: tuple[str, ...]  # those that are guarded now


class Unwatch(msgspec.Struct, frozen=True, kw_only=True):
    """Call `unwatch`, target → source: its monitor was removed."""


class Guards:
    """Of one agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def all(self) -> tuple[Guard, ...]:
        raise NotImplementedError

    def find(self, key: str) -> Guard:
        """By its name or uuid. Raises NotFoundError."""
        raise NotImplementedError

    def mounts_of(self, guard: Guard) -> tuple[str, ...]:
        """Ids of the mounts whose changes go to its copies."""
        raise NotImplementedError

    async def supersede(self, group: str, promotion: Promotion) -> bool:
        """Somebody says that another agent owns the group. Whether that is so and was not known: then it is
        durable, and the mounts are fenced, on return. From `renew`, a refused session, an acknowledgement.
        """
        raise NotImplementedError

    async def tell(self, monitor: Monitor) -> Watched:
        """On the target: tell the source that it is watched. Raises UnreachableError, ReplicatorError."""
        raise NotImplementedError
