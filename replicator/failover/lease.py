"""Leases: the right of an owner to write for a while, as the owner counts it, and as who grants it does.

    holder = Holder(epoch)                          # of the owner; one per group
    asked = holder.ask("target", now_s)             # then the request is sent
    holder.granted(asked, answer.lease_s)           # whenever the answer comes
    holder.is_valid(now_s)

    granter = Granter(memory, now_s)                # of the target; one per group
    answer = granter.renew(request, now_s, ...)     # `memory` is durable before the answer leaves
    granter.stop(epoch); granter.free_s             # it wants to take over: when no lease is valid any more

Pure: times are arguments, seconds of CLOCK_BOOTTIME of the host that says them (clock_gettime(2): it counts
on while the host is suspended). Nobody compares clocks of two hosts, only lengths of time: the lease of an
owner ends `lease_s` after it has **sent** its request; whoever granted it counts from the later moment at
which it answered, and longer (`lapse_s`). docs/developers/failover.md has the argument, and what it assumes.
"""

from collections.abc import Collection
from typing import Annotated, NamedTuple

import msgspec

from replicator import limits
from replicator.bounds import Count, Id
from replicator.failovers import Promotion

Seconds = Annotated[float, msgspec.Meta(ge=0, le=limits.LEASE_MAX_S)]


class Timers(NamedTuple):
    """`renew_s`: between two requests of an owner."""

    lease_s: float
    renew_s: float


def timers(interval_s: float, misses: int) -> Timers:
    """Of a monitor that gives its source up after `misses` intervals without a sign of life.

    Every lease ends before that countdown does, so that a failover waits for none: the last grant may be one
    interval younger than the last sign of life.
    """
    lease_s = (interval_s * (misses - 1) - limits.LEASE_SLACK_S) / (1 + limits.LEASE_DRIFT)
    lease_s = min(max(lease_s, limits.LEASE_MIN_S), limits.LEASE_MAX_S)
    return Timers(lease_s, lease_s / limits.LEASE_RENEWALS)


def lapse_s(lease_s: float) -> float:
    """How long after it has granted a lease somebody has to take it for valid, by a clock of its own."""
    return lease_s * (1 + limits.LEASE_DRIFT) + limits.LEASE_SLACK_S


# --- what is said ---


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    """Call `renew`, owner → target and witness: may I go on?"""

    agent: Id  # uuid of who asks
    other: Id = ""  # uuid of the agent that may take its place
    epoch: Count
    lease_s: Seconds = 0.0  # that it wants
    enforced: bool = False  # its mounts stop by themselves when its leases have lapsed
    terms: Count = 0  # number of the settings that it goes by: who grants, and what a lapse means
    holds_lease: bool = False  # it has a valid one; False: it comes back, or has lost touch
    promotion: Promotion | None = None  # by which it owns the group; None: as configured
    behind_s: Annotated[float, msgspec.Meta(ge=0)] | None = None  # age of what its copies lack; None: unknown


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer. Granted for `lease_s` from the moment the request was *sent*."""

    granted: bool
    lease_s: Seconds = 0.0
    epoch: Count = 0  # the highest that whoever answers knows of
    promotion: Promotion | None = None  # of an epoch above that of who asks
    reason: str = ""  # why not


# --- the owner ---


_BEFORE = "before the restart"


class Asked(NamedTuple):
    """A request that was sent. `term`: which row of leases it belongs to."""

    granter: str
    sent_s: float
    term: int


class Holder:
    """Leases of an owner for one group. One that is valid is enough."""

    def __init__(self, epoch: int, granters: Collection[str] = (), expiry_s: float = 0.0) -> None:
        """`expiry_s`: of a lease that it had before the agent was restarted, as captures know it still."""
        self.epoch = epoch
        self._term = 0
        self._expiries_s = {_BEFORE: expiry_s, **dict.fromkeys(granters, 0.0)}

    def ask(self, granter: str, now_s: float) -> Asked:
        """The request is sent now, or later: never before."""
        return Asked(granter, now_s, self._term)

    def granted(self, asked: Asked, lease_s: float) -> bool:
        """However late the answer comes: it counts from when it was asked for. One to a request of a former
        term, or of somebody whose word counts no more, has no effect: False.
        """
        if asked.term != self._term or asked.granter not in self._expiries_s:
            return False
        expiry_s = asked.sent_s + lease_s
        self._expiries_s[asked.granter] = max(self._expiries_s[asked.granter], expiry_s)
        return True

    def choose(self, granters: Collection[str]) -> None:
        """Who may grant from now on. Leases of others are void at once."""
        self._expiries_s = {granter: self._expiries_s.get(granter, 0.0) for granter in granters}

    def begin(self, epoch: int) -> None:
        """Another term of ownership, or another try at the same: former leases, and answers that are still on
        their way, are void.
        """
        self.epoch = epoch
        self._term += 1
        self._expiries_s = dict.fromkeys(self._expiries_s, 0.0)

    @property
    def expiry_s(self) -> float:
        """0: there is no lease."""
        return max(self._expiries_s.values(), default=0.0)

    def is_valid(self, now_s: float) -> bool:
        return now_s < self.expiry_s


# --- the target ---


class GrantMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a target remembers over restarts.

    `lease_s`: the longest lease that may be out. `armed`: number of the settings by which the source stops
    by itself when its leases have lapsed; None: it does not, or nobody knows. A change of the settings
    disarms by their number, and a request of former ones that was under way arms by theirs: not at all.
    """

    lease_s: float = 0.0
    armed: int | None = None


class Granter:
    """Grants of a target for one group. `memory` changes: save it before an answer leaves, and before what
    depends on it is decided.
    """

    def __init__(self, memory: GrantMemory, now_s: float, *, stopped: int | None = None) -> None:
        """`stopped`: the epoch of the owner that it had decided to take over from, before a restart."""
        self.memory = memory
        self._stopped = stopped
        self._free_s = now_s + lapse_s(memory.lease_s) if memory.lease_s else now_s

    def renew(
        self,
        request: Renew,
        now_s: float,
        *,
        epoch: int,
        owns: bool,
        promotion: Promotion | None,
        lease_s: float,
        terms: int,
    ) -> Renewed:
        """`epoch`, `promotion`: the highest that this target knows, after it has learned of the request's; it
        `owns` the group. `lease_s`, `terms`: as configured.
        """
        if request.epoch < epoch:
            return Renewed(granted=False, epoch=epoch, promotion=promotion, reason="another owns it since")
        if owns or request.epoch > epoch:
            return Renewed(granted=False, epoch=epoch, reason="there are two owners of one epoch")
        self._arm(request, terms)
        if self._stopped is not None and self._stopped < epoch:
            self._stopped = None  # that owner was superseded; this is another term
        if self._stopped is not None:
            return Renewed(granted=False, epoch=epoch, reason="the target takes over")
        lease_s = min(request.lease_s or lease_s, lease_s)
        if lease_s > self.memory.lease_s:
            self.memory = msgspec.structs.replace(self.memory, lease_s=lease_s)
        self._free_s = max(self._free_s, now_s + lapse_s(lease_s))
        return Renewed(granted=True, lease_s=lease_s, epoch=epoch)

    def _arm(self, request: Renew, terms: int) -> None:
        armed = terms if request.enforced and request.terms == terms else None
        if armed != self.memory.armed:
            self.memory = msgspec.structs.replace(self.memory, armed=armed)

    def stop(self, epoch: int) -> None:
        """The target has decided to take over from the owner of that epoch: it gets nothing any more."""
        self._stopped = epoch

    def resume(self) -> None:
        """It has not taken over after all, and that is durable."""
        self._stopped = None

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

    @property
    def free_s(self) -> float:
        """From then on no lease that was granted here is valid. It moves as long as something is granted."""
        return self._free_s
