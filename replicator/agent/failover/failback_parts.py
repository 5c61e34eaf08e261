"""What a failback is made of, on the agent that owns the group: what does its steps, and what they leave for
one another. The steps are in `failback_steps.py`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from replicator.agent.failover.procedure import Facts, Taken
from replicator.failover.handback import Behind, Home, Mark
from replicator.failovers import Monitor, Promotion, TakeOver
from replicator.net.frames import Connect

Say = Callable[[str], None]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the copies at home had when they stood still: by connection and journal."""

    marks: dict[str, dict[str, Mark]] = msgspec.field(default_factory=dict)


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of the mounts whose programs wait. `copies`: what the streams of the forward connections say of
    themselves, by their uuids.
    """

    mounts: tuple[str, ...] = ()
    copies: dict[str, Connect] = {}


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """Who agreed; "": nobody was asked."""

    vote: str = ""


class HomeSide(Protocol):
    """`home_calls.py`: the other agent. Everything raises UnreachableError if it cannot be asked. `attempt`:
    the uuid of this try; what comes late, of one that has ended, does nothing (`home_tries.py`).
    """

    async def look(self, monitor: Monitor) -> Home:
        """As it is. Raises nothing: `Home.unreached`."""
        ...

    async def prepare(self, monitor: Monitor) -> None:
        """A person has decided that what the owner has survives: home keeps its own in a bundle, and becomes
        a copy. Returns when it is one. Raises ReplicatorError: something there is in the way.
        """
        ...

    async def hold(self, monitor: Monitor, order: TakeOver, attempt: str, say: Say) -> Held:
        """Its copies take what has arrived, are durable, and stand still until `release`."""
        ...

    async def promote(self, monitor: Monitor, order: TakeOver, attempt: str) -> Promotion:
        """It owns the group: the record is durable there. The same order again gives the same record."""
        ...

    async def promotion(self, monitor: Monitor, epoch: int, attempt: str) -> Promotion | None:
        """The record, if it is durable there. Else this try has ended: it never will be."""
        ...

    async def open(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """Its programs may write, and what they write is kept for the forward connections."""
        ...

    async def resume(self, monitor: Monitor, promotion: Promotion) -> None:
        """The forward connections go on from the hand-over: their copies follow."""
        ...

    async def take(self, monitor: Monitor, attempt: str, *, forced: bool, say: Say) -> Taken:
        """Its own addresses are there again, and announced."""
        ...

    async def give_up(self, monitor: Monitor, attempt: str) -> None:
        """Undo `take`."""
        ...

    async def adopt(self, monitor: Monitor, attempt: str) -> None:
        """It watches this agent, with these settings. Undo: `disown`."""
        ...

    async def disown(self, monitor: Monitor, attempt: str) -> None: ...

    async def retire(self, monitor: Monitor) -> None:
        """It is no source any more: its forward connections end, and nobody watches it."""
        ...


class OwnSide(Protocol):
    """`handing_over.py`: this agent, which owns the group until the promotion."""

    def connections(self, monitor: Monitor) -> tuple[str, ...]:
        """Uuids of the forward connections that were promoted."""
        ...

    async def behind(self, monitor: Monitor) -> Sequence[Behind]:
        """What the return connections have still to bring."""
        ...

    async def catch_up(self, monitor: Monitor, say: Say) -> None:
        """Until the copies at home are exact, and little is queued for them."""
        ...

    async def freeze(self, monitor: Monitor) -> Frozen:
        """Changes on the mounts of the group wait, and all that were done are in the journals."""
        ...

    async def thaw(self, monitor: Monitor) -> None: ...

    async def drain(self, monitor: Monitor, say: Say) -> dict[str, dict[str, Mark]]:
        """Until the copies at home have all of the journals. The ends of these, by connection and journal."""
        ...

    async def follow(
        self,
        monitor: Monitor,
        promotion: Promotion,
        connections: Sequence[str],
        frozen: Frozen,
        say: Say,
    ) -> None:
        """These mounts end, return connections too, the directories are copies again, locked as before, and
        the record is kept. `connections`: the forward ones. Needs nobody else.
        """
        ...

    async def turn_around(self, monitor: Monitor) -> None:
        """For good: the return connections are ordinary ones, the copies that were promoted are none any
        more, and the monitor is gone from here, with one durable write at the end.
        """
        ...

    async def has_turned(self, monitor: Monitor) -> bool: ...


class Arbiter(Protocol):
    """`handing_over_vote.py`: asks the witness of a group, as its owner."""

    async def hand_over(
        self, monitor: Monitor, epoch: int, to: str, attempt: str, *, forced: bool, say: Say
    ) -> str:
        """The witness agrees to the agent `to` owning the group with `epoch`, at the wish of its owner, which
        has stopped. The same question again gets the same answer. Returns who agreed; "": nobody is to be
        asked. Raises ReplicatorError: no. `attempt`: home takes the vote back by it (`Errands`).
        """
        ...

    async def tell(self, monitor: Monitor, promotion: Promotion) -> None:
        """The witness knows who owns the group. Raises ReplicatorError."""
        ...


class Scripts(Protocol):
    """`group_scripts.py`."""

    async def run(self, facts: Facts, attempt: str, say: Say) -> None: ...


class Addresses(Protocol):
    """Those of this host, as `procedure.Addresses`."""

    async def take(self, monitor: Monitor, *, forced: bool, say: Say) -> Taken: ...
    async def give_up(self, monitor: Monitor, say: Say) -> None: ...


class Errands(Protocol):
    """`errands.py`: what home is asked for until it has acknowledged it."""

    async def post_script(self, facts: Facts, attempt: str) -> None:
        """Home will run its script (FB-02). Durable on return."""
        ...

    async def post_release(self, monitor: Monitor, order: TakeOver, attempt: str) -> None:
        """Undo `HomeSide.hold` and `take`, and a vote: whoever takes back a failback does not wait for home,
        which does it as soon as it hears of it.
        """
        ...

    async def settle(self, group: str) -> None:
        """What was posted so of an earlier failback is done. Raises ReplicatorError: not yet."""
        ...


class Parts(NamedTuple):
    """What does the steps."""

    home: HomeSide
    own: OwnSide
    arbiter: Arbiter
    scripts: Scripts
    addresses: Addresses
    errands: Errands
