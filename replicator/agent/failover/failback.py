"""Failback of a group, on the agent that owns it: which steps, in which order (docs/developers/failover.md).

The counterpart of `procedure.py`. Until `promote` everything is taken back; from there on it is completed:
home owns the group then. What a step does is the affair of others, each behind a small protocol here; all
of it may be called again after a crash in the middle.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import trio

from replicator import limits
from replicator.agent.failover.procedure import Facts, Taken
from replicator.agent.failover.procedures import Kind, Procedures
from replicator.errors import ReplicatorError
from replicator.failover.handback import (
    Behind,
    Home,
    Mark,
    Order,
    Preview,
    Situation,
    Then,
    disagreement,
    preview,
)
from replicator.failover.phases import GroupEvent
from replicator.failover.plan_runner import Plan, Run, Step
from replicator.failover_reports import Report
from replicator.failovers import Monitor, Promotion, ScriptKind, TakeOver

FAILBACK, FAILBACK_AND_STOP, STAY = "failback", "failback without monitoring", "reversal"
"""Kinds of procedures."""
KINDS = (FAILBACK, FAILBACK_AND_STOP, STAY)

# Names of the steps.
PREPARE = "prepare home"
CATCH_UP = "bring what differs"
PRE_SCRIPT = "pre-failback script"
FREEZE = "freeze"
DRAIN = "drain"
HOLD = "hold and compare"
VOTE = "vote"
PROMOTE = "promote"
GIVE_UP = "give up addresses"
TAKE = "addresses at home"
OPEN = "open at home"
FOLLOW = "follow"
RESUME = "resume protection"
POST_SCRIPT = "post-failback script"
HOME_SCRIPT = "post-failback script at home"
TELL = "tell"
ADOPT = "monitor from home"
TURN = "turn around"
RETIRE = "retire home"

Say = Callable[[str], None]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What the copies at home had when they stood still: by connection and journal."""

    marks: dict[str, dict[str, Mark]] = msgspec.field(default_factory=dict)


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of the mounts whose programs wait."""

    mounts: tuple[str, ...] = ()


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """Who agreed; "": nobody was asked."""

    vote: str = ""


class HomeSide(Protocol):
    """`home_calls.py`: the other agent. Everything raises UnreachableError if it cannot be asked."""

    async def look(self, monitor: Monitor) -> Home:
        """As it is. Raises nothing: `Home.unreached`."""
        ...

    async def prepare(self, monitor: Monitor) -> None:
        """A person has decided that what the owner has survives: home keeps its own in a bundle, and becomes
        a copy. Returns when it is one. Raises ReplicatorError: something there is in the way.
        """
        ...

    async def hold(self, monitor: Monitor, order: TakeOver, say: Say) -> Held:
        """Its copies take what has arrived, are durable, and stand still until `release`."""
        ...

    async def promote(self, monitor: Monitor, order: TakeOver) -> Promotion:
        """It owns the group: the record is durable there. The same order again gives the same record."""
        ...

    async def promotion(self, monitor: Monitor, epoch: int) -> Promotion | None:
        """The record, if it is durable there."""
        ...

    async def open(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """Its programs may write, and what they write is kept for the forward connections."""
        ...

    async def resume(self, monitor: Monitor, promotion: Promotion) -> None:
        """The forward connections go on from the hand-over: their copies follow."""
        ...

    async def take(self, monitor: Monitor, *, forced: bool, say: Say) -> Taken:
        """Its own addresses are there again, and announced."""
        ...

    async def give_up(self, monitor: Monitor) -> None:
        """Undo `take`."""
        ...

    async def adopt(self, monitor: Monitor) -> None:
        """It watches this agent, with these settings. Undo: `disown`."""
        ...

    async def disown(self, monitor: Monitor) -> None: ...

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

    async def freeze(self, monitor: Monitor) -> tuple[str, ...]:
        """Changes on the mounts of the group wait, and all that were done are in the journals. Their ids."""
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
        mounts: Sequence[str],
        say: Say,
    ) -> None:
        """These mounts end, return connections too, the directories are copies again, locked as before, and
        the record is kept. `connections`: the forward ones.
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
        """Undo `HomeSide.hold`, and a vote: whoever takes back a failback does not wait for home."""
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


@dataclass
class _Beginning:
    ended: trio.Event = field(default_factory=trio.Event)
    error: ReplicatorError | None = None


class Failback:
    """`Service.failover.failback`."""

    def __init__(
        self, procedures: Procedures, get: Callable[[str], Monitor | None], owner: str, parts: Parts
    ) -> None:
        """`get`: the monitor of a group. `owner`: the name of this agent."""
        self._procedures = procedures
        self._get = get
        self._owner = owner
        self._parts = parts
        self._nursery: trio.Nursery | None = None
        begins, undone = GroupEvent.HAND_BACK, GroupEvent.HAND_BACK_UNDONE
        for name, completed in (
            (FAILBACK, GroupEvent.HANDED_BACK),
            (FAILBACK_AND_STOP, GroupEvent.HANDED_BACK_FOR_GOOD),
            (STAY, GroupEvent.HANDED_BACK_FOR_GOOD),  # there is no group any more by then
        ):
            procedures.register(Kind(name, self.plan, begins, completed, undone))

    async def run(self) -> None:
        """Until cancelled: what is asked for by `begin` goes on in here."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    async def look(self, group: str, order: Order, then: Then) -> Preview:
        """The state of both sides, and what a failback would do. Changes nothing. Raises ReplicatorError:
        there is no such group.
        """
        monitor = self._monitor(group)
        return preview(
            Situation(
                monitor=monitor,
                owner=self._owner,
                order=order,
                then=then,
                home=await self._look_home(monitor),
                behind=tuple(await self._parts.own.behind(monitor)),
                connections=self._parts.own.connections(monitor),
            )
        )

    async def _look_home(self, monitor: Monitor) -> Home:
        """A copy whose receiver does not answer is given time: it starts when its agent does, and when home
        has just become a copy.
        """
        deadline_s = trio.current_time() + limits.FAILBACK_PREPARE_S
        while (home := await self._parts.home.look(monitor)).is_silent:
            if trio.current_time() > deadline_s:
                break
            await trio.sleep(limits.FAILBACK_LOOK_S / 4)
        return home

    async def fail_back(
        self, group: str, *, order: Order, then: Then, reason: str, forced: bool = False
    ) -> Report:
        """Go home, or go on with a failback that waits for a person. Returns when it has ended or waits: the
        report says which. Cancelled, it goes on. Raises ReplicatorError: it cannot begin.
        """
        monitor = self._monitor(group)
        if self._procedures.report(group) is None:
            found = await self.look(group, order, then)
            if found.refused:
                raise ReplicatorError("; ".join(found.refused))
        kind = STAY if order is Order.STAY else FAILBACK if then is Then.MONITOR else FAILBACK_AND_STOP
        arguments = {
            "monitor": monitor,
            "order": order,
            "then": then,
            "connections": self._parts.own.connections(monitor),
        }
        return await self._procedures.start(kind, group, arguments, reason=reason, forced=forced)

    async def begin(self, group: str, *, order: Order, then: Then, reason: str, forced: bool = False) -> None:
        """The same; it goes on after this returns. Raises ReplicatorError if it cannot begin."""
        assert self._nursery is not None
        began = _Beginning()

        async def work() -> None:
            try:
                await self.fail_back(group, order=order, then=then, reason=reason, forced=forced)
            except ReplicatorError as error:
                began.error = error
            began.ended.set()

        self._nursery.start_soon(work)
        while not began.ended.is_set() and self._procedures.report(group) is None:
            with trio.move_on_after(limits.FAILBACK_POLL_S):
                await began.ended.wait()
        if began.error is not None:
            raise began.error

    async def abandon(self, group: str) -> None:
        """Raises ReplicatorError: there is none, or it is final."""
        if not await self._procedures.abandon(group, "a person has given it up"):
            raise ReplicatorError("nothing is under way that could be taken back")

    async def last(self, group: str) -> Report | None:
        """The one under way, or the last that has ended."""
        reports = [r for r in await self._procedures.reports(group) if r.kind in KINDS]
        return reports[-1] if reports else None

    def _monitor(self, group: str) -> Monitor:
        monitor = self._get(group)
        if monitor is None:
            raise ReplicatorError(f"there is no monitor {group}")
        return monitor

    def plan(self, arguments: Mapping[str, Any]) -> Plan:
        """The steps for a monitor as it was when the failback began."""
        plain = msgspec.to_builtins(dict(arguments))
        monitor = msgspec.convert(plain["monitor"], Monitor)
        steps = _Steps(monitor, self._parts, msgspec.convert(plain["connections"], tuple[str, ...]))
        match msgspec.convert(plain["order"], Order):
            case Order.RESTORE_FIRST:
                return Plan(FAILBACK, steps.restore_first())
            case Order.FAILBACK_FIRST:
                return Plan(FAILBACK, steps.failback_first())
            case Order.STAY:
                return Plan(STAY, steps.stay(msgspec.convert(plain["then"], Then)))


class _Steps:
    """Of one failback."""

    def __init__(self, monitor: Monitor, parts: Parts, connections: tuple[str, ...]) -> None:
        self._monitor = monitor
        self._parts = parts
        self._order = TakeOver(
            group=monitor.uuid,
            copies=connections,
            parent_epoch=monitor.epoch,
            epoch=monitor.epoch + 1,
            drain_s=monitor.settings.drain_s,
            reason="failback",
        )

    # --- orders ---

    def restore_first(self) -> list[Step]:
        return [
            self._prepare(),
            self._catch_up(),
            *self._script(PRE_SCRIPT, ScriptKind.PRE_FAILBACK),
            self._freeze(),
            *self._hand_over(),
            *self._move_addresses(undo=False),
            *self._settle(),
        ]

    def failback_first(self) -> list[Step]:
        return [
            self._prepare(),
            *self._script(PRE_SCRIPT, ScriptKind.PRE_FAILBACK),
            self._freeze(),
            *self._move_addresses(undo=True),
            self._catch_up(),
            *self._hand_over(),
            *self._settle(),
        ]

    def stay(self, then: Then) -> list[Step]:
        monitor, home, own = self._monitor, self._parts.home, self._parts.own

        async def turned(run: Run) -> bool | None:
            return await own.has_turned(monitor) or None

        adopt = Step(ADOPT, lambda run: home.adopt(monitor), undo=lambda run: home.disown(monitor))
        turn = Step(TURN, lambda run: own.turn_around(monitor), commits=True, was_done=turned)
        retire = Step(RETIRE, lambda run: home.retire(monitor))
        return [self._prepare(), self._catch_up(), *([adopt] if then is Then.MONITOR else []), turn, retire]

    # --- parts of them ---

    def _prepare(self) -> Step:
        async def prepare(run: Run) -> None:
            await self._parts.errands.settle(self._monitor.uuid)
            await self._parts.home.prepare(self._monitor)

        return Step(PREPARE, prepare)

    def _catch_up(self) -> Step:
        async def catch_up(run: Run) -> None:
            await self._parts.own.catch_up(self._monitor, run.say)

        return Step(CATCH_UP, catch_up)

    def _freeze(self) -> Step:
        own = self._parts.own

        async def freeze(run: Run) -> Frozen:
            return Frozen(mounts=await own.freeze(self._monitor))

        return Step(FREEZE, freeze, undo=lambda run: own.thaw(self._monitor))

    def _hand_over(self) -> list[Step]:
        return [
            Step(DRAIN, self._drain),
            Step(HOLD, self._hold, undo=self._release),
            Step(VOTE, self._vote),  # `_release` takes it back
            Step(PROMOTE, self._promote, commits=True, was_done=self._was_promoted),
        ]

    def _move_addresses(self, *, undo: bool) -> list[Step]:
        """Each is on one host at any time: first it goes here, then it comes there."""
        monitor, home, here = self._monitor, self._parts.home, self._parts.addresses
        if not monitor.settings.taken:
            return []

        async def back(run: Run) -> None:
            await here.take(monitor, forced=True, say=run.say)

        return [
            Step(GIVE_UP, lambda run: here.give_up(monitor, run.say), undo=back if undo else None),
            Step(
                TAKE,
                lambda run: home.take(monitor, forced=run.forced, say=run.say),
                undo=(lambda run: home.give_up(monitor)) if undo else None,
            ),
        ]

    def _settle(self) -> list[Step]:
        monitor, home = self._monitor, self._parts.home
        return [
            Step(OPEN, lambda run: home.open(monitor, self._promotion(run), run.say)),
            Step(FOLLOW, self._follow),
            Step(RESUME, lambda run: home.resume(monitor, self._promotion(run))),
            *self._script(POST_SCRIPT, ScriptKind.POST_FAILBACK),
            *self._home_script(),
            Step(TELL, lambda run: self._parts.arbiter.tell(monitor, self._promotion(run)), optional=True),
        ]

    # --- steps ---

    async def _drain(self, run: Run) -> Held:
        return Held(marks=await self._parts.own.drain(self._monitor, run.say))

    async def _hold(self, run: Run) -> Held:
        held = await self._parts.home.hold(self._monitor, self._order, run.say)
        wrong = disagreement(run.result(DRAIN, Held).marks, held.marks)
        if wrong:
            raise ReplicatorError(wrong)
        return held

    async def _vote(self, run: Run) -> Vote:
        monitor, epoch = self._monitor, self._order.epoch
        found = await self._parts.arbiter.hand_over(
            monitor, epoch, monitor.source_uuid, run.uuid, forced=run.forced, say=run.say
        )
        return Vote(vote=found)

    async def _release(self, run: Run) -> None:
        await self._parts.errands.post_release(self._monitor, self._order, run.uuid)

    async def _promote(self, run: Run) -> Promotion:
        order = msgspec.structs.replace(self._order, vote=run.result(VOTE, Vote).vote, reason=run.reason)
        return await self._parts.home.promote(self._monitor, order)

    async def _was_promoted(self, run: Run) -> Promotion | None:
        return await self._parts.home.promotion(self._monitor, self._order.epoch)

    async def _follow(self, run: Run) -> None:
        mounts = run.result(FREEZE, Frozen).mounts
        connections = self._order.copies
        await self._parts.own.follow(self._monitor, self._promotion(run), connections, mounts, run.say)

    def _promotion(self, run: Run) -> Promotion:
        return run.result(PROMOTE, Promotion)

    def _script(self, step: str, kind: ScriptKind) -> list[Step]:
        async def run_script(run: Run) -> None:
            attempt = f"{run.uuid}-{kind}-{run.failures(step)}"
            await self._parts.scripts.run(self._facts(run, kind), attempt, run.say)

        return [Step(step, run_script)] if kind in self._monitor.settings.scripts else []

    def _home_script(self) -> list[Step]:
        kind = ScriptKind.SOURCE_POST_FAILBACK

        async def post(run: Run) -> None:
            await self._parts.errands.post_script(self._facts(run, kind), f"{run.uuid}-{kind}")

        return [Step(HOME_SCRIPT, post)] if kind in self._monitor.settings.scripts else []

    def _facts(self, run: Run, kind: ScriptKind) -> Facts:
        return Facts(
            monitor=self._monitor,
            kind=kind,
            epoch=self._order.epoch,
            reason=run.reason,
            forced=run.forced,
            promotion=self._promotion(run) if run.has_done(PROMOTE) else None,
        )
