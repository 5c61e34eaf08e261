"""The owner's side of a group: whom it asks, when, and what an answer means for its mounts. Pure.

    owner = Owner(agent_uuid, guard, now_s, came_back=mounts were not up)
    for granter in owner.due(now_s):
        asked, request = owner.ask(granter, now_s)     # before it is sent
        …
    record = owner.answered(asked, answer, now_s)      # not None: durable first, then owner.superseded(…)
    owner.right(now_s)                                 # what the fences of its mounts are told

The agent that drives it sends what it says to send, keeps the guard, and sets the fences: nothing else.
"""

import math

from replicator import limits
from replicator.failover.lease import Asked, Holder, Renew, Renewed
from replicator.failover.writing import Facts, Right, right
from replicator.failovers import Guard, Lapse, Promotion

TARGET = "target"
WITNESS = "witness"


class Owner:
    """Of one group. `guard` is what is durable; this only adds what a restart may forget."""

    def __init__(
        self,
        agent: str,
        guard: Guard,
        now_s: float,
        *,
        came_back: bool,
        expiry_s: float = 0.0,
        frozen: bool = False,
    ) -> None:
        """`came_back`: its mounts were not up when the agent started. `expiry_s`, `frozen`: of their fences,
        if they were. A fence without end is no lease that somebody counts.
        """
        if came_back or frozen or not math.isfinite(expiry_s):
            expiry_s = 0.0
        self.guard = guard
        self.frozen = frozen
        self._agent = agent
        self._came_back_s = now_s if came_back else None
        self._holder = Holder(guard.epoch, self._granters(), expiry_s)
        self._due_s = dict.fromkeys(self._granters(), now_s)

    def _granters(self) -> tuple[str, ...]:
        return (TARGET, WITNESS) if self.guard.witness else (TARGET,)

    @property
    def came_back(self) -> bool:
        """Whether nobody has answered since its mounts were not up."""
        return self._came_back_s is not None

    @property
    def renew_s(self) -> float:
        return (self.guard.lease_s or limits.LEASE_MIN_S) / limits.LEASE_RENEWALS

    # --- what is known ---

    def follow(self, guard: Guard) -> None:
        """Settings, epoch or record have changed, and are durable; the fences were closed before that. Leases
        by other settings than before, or of another epoch, are void, also those that are still on their way.
        """
        former, self.guard = self.guard, guard
        if (former.epoch, former.terms, former.witness) != (guard.epoch, guard.terms, guard.witness):
            self._holder.choose(self._granters())
            self._holder.begin(guard.epoch)
            self._due_s = dict.fromkeys(self._granters(), 0.0)

    def freeze(self) -> None:
        """For a hand-over. Its leases are void, so are answers that are under way."""
        self.frozen = True
        self._holder.begin(self.guard.epoch)

    def thaw(self) -> None:
        self.frozen = False

    # --- asking ---

    def due(self, now_s: float) -> list[str]:
        """Who is to be asked now. While it is frozen only the target knows whether it may go on."""
        if self.guard.is_superseded:
            return []
        return [
            granter
            for granter, due_s in self._due_s.items()
            if due_s <= now_s and not (self.frozen and granter == WITNESS)
        ]

    def due_s(self) -> float:
        """When somebody is to be asked next."""
        return min(self._due_s.values())

    def ask(self, granter: str, now_s: float) -> tuple[Asked, Renew]:
        """`now_s`: a moment before it is sent."""
        self._due_s[granter] = now_s + self.renew_s
        guard = self.guard
        request = Renew(
            agent=self._agent,
            other=guard.target_uuid,
            epoch=guard.epoch,
            lease_s=guard.lease_s,
            enforced=guard.lapse is not Lapse.NONE,
            terms=guard.terms,
            holds_lease=self.right(now_s).holds(now_s),
            promotion=guard.owned_by,
        )
        return self._holder.ask(granter, now_s), request

    def answered(self, asked: Asked, answer: Renewed, now_s: float) -> Promotion | None:
        """The record by which another agent owns the group, if that is what it says: it has to be durable
        before anything else is done, and then comes back by `follow`.
        """
        record, guard = answer.promotion, self.guard
        if record is not None and record.owner != self._agent:
            known = max(guard.epoch, guard.opened, guard.superseded.epoch if guard.superseded else 0)
            return record if record.epoch > known else None
        stands = answer.granted and answer.epoch == guard.epoch and not guard.is_superseded
        if stands and self._holder.granted(asked, answer.lease_s):
            self._came_back_s = None
            if asked.granter == TARGET:
                self.frozen = False  # it was asked after the freeze, so the hand-over was given up
        return None

    # --- what follows ---

    def right(self, now_s: float) -> Right:
        superseded = self.guard.superseded
        return right(
            Facts(
                superseded_by=superseded.owner_name if superseded and self.guard.is_superseded else "",
                frozen=self.frozen,
                lapse=self.guard.lapse,
                expiry_s=self._holder.expiry_s,
                witness=bool(self.guard.witness),
                came_back_s=self._came_back_s,
            ),
            now_s,
        )
