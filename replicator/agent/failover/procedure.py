"""What a failover is made of, on the target: names of its steps, what they leave for one another, and what
does them: each behind a small protocol. The steps are in `failover_plan.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from replicator.agent.failover.group_copies import GroupCopy
from replicator.failover.candidate import Order
from replicator.failovers import CopyReport, Monitor, Promotion, ScriptKind, TakeOver
from replicator.failovers import Report as TakeOverReport

FAILOVER = "failover"

# Names of the steps, in their order.
CHECK, FENCE, VOTE, PRE_SCRIPT, PROBE, DRAIN, PROMOTE, OPEN, ADDRESSES, HOST_NAME, POST_SCRIPT, TELL = (
    "check",
    "fence command",
    "vote",
    "pre-failover script",
    "address conflicts",
    "drain",
    "promote",
    "open",
    "addresses",
    "host name",
    "post-failover script",
    "tell",
)


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a failover begins with. `epoch`: the one it will reach."""

    epoch: int
    copies: tuple[str, ...] = ()


class Fenced(msgspec.Struct, frozen=True, kw_only=True):
    """How the fence command ended. False: a person goes on in spite of it."""

    fenced: bool


class Voted(msgspec.Struct, frozen=True, kw_only=True):
    """`vote`: who agreed, for the record; "": nobody was asked."""

    vote: str = ""


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """What the copies had when they stood still: for the report."""

    drained: tuple[CopyReport, ...] = ()


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses that are here now, as ADDRESS/PREFIX on INTERFACE."""

    taken: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a script is to know. `promotion`, `copies`: after these steps only."""

    monitor: Monitor
    kind: ScriptKind
    epoch: int
    reason: str
    forced: bool
    promotion: Promotion | None = None
    copies: tuple[CopyReport, ...] = ()


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Whether this target may own a group. `attempt`: a uuid for this failover. `flaws`: why copies are no
    state that their source was in, by name. `fenced`: how the fence command ended; None: it has not run.
    """

    monitor: Monitor
    order: Order
    attempt: str
    epoch: int
    copies: tuple[str, ...] = ()
    flaws: dict[str, str] = {}
    fenced: bool | None = None


Say = Callable[[str], None]
"""Takes a line for the report."""


class Fence(Protocol):
    """`agent/failover/fence_command.py`."""

    async def fence(self, monitor: Monitor, *, epoch: int, reason: str, attempt: str, say: Say) -> None:
        """Switch the source off. Raises ReplicatorError unless it is certain."""
        ...


class Arbiter(Protocol):
    """`agent/failover/agreement.py`."""

    async def check(self, question: Question) -> None:
        """Whether there is any use in beginning. Raises ReplicatorError: no. Nothing is done."""
        ...

    async def before_fence(self, question: Question, say: Say) -> None:
        """From here on nobody gives the source a lease: a host that was fenced may soon be up again. Raises
        ReplicatorError: it is not to be fenced. Undone by `withdraw`.
        """
        ...

    async def agree(self, question: Question, say: Say) -> str:
        """Wait until the source cannot write any more, and the witness agrees. The same question again gets
        the same answer. Returns who agreed; "": nobody is to be asked. Raises ReplicatorError: no.
        """
        ...

    async def withdraw(self, question: Question) -> None:
        """The agreement was not used: leases may be granted to the source again."""
        ...


class Data(Protocol):
    """`agent/failover/promotion.py`: the copies of a group."""

    def record(self, group: str) -> Promotion | None: ...
    async def look(self, order: TakeOver) -> TakeOverReport: ...
    async def drain(self, order: TakeOver) -> TakeOverReport: ...
    async def release(self, order: TakeOver) -> None: ...
    async def promote(self, order: TakeOver) -> Promotion: ...
    async def open(self, group: str) -> TakeOverReport: ...


class Copies(Protocol):
    """`agent/failover/group_copies.py`."""

    async def of(self, monitor: Monitor) -> Sequence[GroupCopy]: ...


class Telling(Protocol):
    """`agent/failover/telling.py`."""

    async def tell(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """Witness, source, siblings, targets down a chain: whoever can be reached now. Raises
        ReplicatorError: somebody could not; others tell them later.
        """
        ...


class Scripts(Protocol):
    async def run(self, facts: Facts, attempt: str, say: Say) -> None:
        """Run the group's script of that kind, or learn how this attempt of it does. Raises ReplicatorError
        if it failed and that is to stop the procedure.
        """
        ...


class Addresses(Protocol):
    """`agent/failover/addresses.py`: addresses and host name of this host."""

    async def probe(self, monitor: Monitor, *, forced: bool, say: Say) -> None:
        """Raises ReplicatorError: somebody else has one of them (with the MAC that answers), or there is no
        interface for it. `forced`: the former only says so.
        """
        ...

    async def take(self, monitor: Monitor, *, forced: bool, say: Say) -> Taken:
        """Probe, add, announce, and remember that they are this group's."""
        ...

    async def give_up(self, monitor: Monitor, say: Say) -> None:
        """Remove those that are here for this group."""
        ...

    async def set_host_name(self, monitor: Monitor) -> None: ...


class Drills(Protocol):
    """`agent/failover/drills.py`."""

    async def give_way(self, group: str) -> None:
        """No drill of the group is to be seen on return."""
        ...


class Groups(Protocol):
    """`agent/failover/groups.py`."""

    def get(self, uuid: str) -> Monitor | None: ...
    async def change(self, uuid: str, **fields: Any) -> Monitor: ...


class Parts(msgspec.Struct, frozen=True):
    """What does the steps."""

    fence: Fence
    arbiter: Arbiter
    copies: Copies
    data: Data
    scripts: Scripts
    addresses: Addresses
    telling: Telling
    groups: Groups
    drills: Drills | None = None
