"""Leases: kept for the groups that this agent owns, granted for those that it is the target of.

The pure part is `replicator/failover/lease.py`.
"""

import msgspec

from replicator.agent.core import Core
from replicator.bounds import Count, Id
from replicator.failovers import Promotion


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    """Call `renew`, owner → target and witness: may I go on?"""

    agent: Id  # uuid of who asks
    epoch: Count
    is_new: bool = False  # it has just come back, and was told nothing yet


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. Granted for `lease_s` from the moment the request was *sent*."""

    granted: bool
    lease_s: float = 0.0
    epoch: Count = 0  # the highest that whoever answers knows of
    promotion: Promotion | None = None  # of an epoch above that of who asks
    reason: str = ""  # why not


class Leases:
    """Of one agent. `run` renews until cancelled."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run(self) -> None:
        raise NotImplementedError

    # --- on the target ---

    def stop_granting(self, group: str) -> int:
        """The target has decided to take over: from here on nothing is granted for the group. The moment
        (CLOCK_BOOTTIME, ns) from which on no lease that this agent has granted is valid.
        """
        raise NotImplementedError

    def resume_granting(self, group: str) -> None:
        """It has not taken over after all."""
        raise NotImplementedError
