"""Failover of a group, on its target: which steps, in which order (docs/developers/failover.md).

What a step does is the affair of others, each behind a small protocol here. All of it may be called again
after a crash in the middle.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from replicator.agent.failover.procedures import Kind, Procedures
from replicator.errors import ReplicatorError
from replicator.failover.phases import GroupEvent
from replicator.failover.plan_runner import Plan, Run, Step
from replicator.failover_reports import CopyReport, Report
from replicator.failovers import Monitor, Promotion, ScriptKind

FAILOVER = "failover"

# Names of the steps, in their order.
FENCE, VOTE, PRE_SCRIPT, PROBE, DRAIN, PROMOTE, OPEN, ADDRESSES, HOST_NAME, POST_SCRIPT, TELL = (
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


Say = Callable[[str], None]
"""Takes a line for the report."""


class Fence(Protocol):
    """`replicator/failover/fence_command.py`."""

    async def fence(self, monitor: Monitor, epoch: int, reason: str, say: Say) -> None:
        """Switch the source off. Raises ReplicatorError unless it is certain."""
        ...


class Arbiter(Protocol):
    """Asks the witness of a group."""

    async def vote(self, monitor: Monitor, epoch: int, *, forced: bool, say: Say) -> str:
        """Wait until no lease of the source can be valid, and have the witness agree to this target owning
        the group with `epoch`. The same question again gets the same answer. Returns who agreed; "":
        nobody is to be asked. Raises ReplicatorError: no. `forced`: a witness that cannot be reached does not
        stop it; one that knows of a later epoch does.
        """
        ...

    async def withdraw(self, monitor: Monitor, epoch: int) -> None:
        """The vote was not used: leases may be granted to the source again."""
        ...


class Data(Protocol):
    """`agent/failover/promotion.py`: the copies of a group."""

    def next_epoch(self, monitor: Monitor) -> int:
        """One more than the largest of the group's own and those of its copies."""
        ...

    async def drain(self, monitor: Monitor, say: Say) -> Drained:
        """No session of the source is accepted any more; the copies apply what they have, and stand still."""
        ...

    async def undo_drain(self, monitor: Monitor) -> None:
        """The source may go on, whatever `drain` had got to."""
        ...

    async def promote(
        self, monitor: Monitor, epoch: int, *, vote: str, reason: str, drained: Drained
    ) -> Promotion:
        """Make the record durable: one write, after which the epoch is as it says. No more than that: what
        follows from it belongs to `open`, which comes again after a crash.
        """
        ...

    async def promotion(self, monitor: Monitor, epoch: int) -> Promotion | None:
        """The record, if it is durable."""
        ...

    async def open(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """Receivers get the epoch, locks end, roots are mounted and captured, return connections track."""
        ...

    async def tell(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        """Witness, source, siblings, targets down a chain: whoever can be reached now."""
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


class Parts(msgspec.Struct, frozen=True):
    """What does the steps."""

    fence: Fence
    arbiter: Arbiter
    data: Data
    scripts: Scripts
    addresses: Addresses


class Failover:
    """`Service.failover.procedure`."""

    def __init__(self, procedures: Procedures, get: Callable[[str], Monitor | None], parts: Parts) -> None:
        """`get`: the monitor of a group."""
        self._procedures = procedures
        self._get = get
        self._parts = parts
        procedures.register(
            Kind(FAILOVER, self.plan, GroupEvent.BEGIN, GroupEvent.COMPLETED, GroupEvent.TAKEN_BACK)
        )

    async def fail_over(self, group: str, *, reason: str, forced: bool) -> Report:
        """Take over, or go on with a failover that waits for a person. Returns when it has ended or waits
        again: the report says which. Cancelled, the failover goes on. Raises ReplicatorError if there is no
        such group, or something else is under way.

        `forced`: a person wants it in spite of a fence command that fails, a witness that is not there, or
        addresses that somebody else still has.
        """
        monitor = self._get(group)
        if monitor is None:
            raise ReplicatorError(f"there is no monitor {group}")
        return await self._procedures.start(
            FAILOVER, group, {"monitor": monitor}, reason=reason, forced=forced
        )

    def plan(self, arguments: Mapping[str, Any]) -> Plan:
        """The steps for a monitor as it was when the failover began."""
        monitor = msgspec.convert(msgspec.to_builtins(arguments["monitor"]), Monitor)
        return Plan(FAILOVER, _Steps(monitor, self._parts).all())


class _Steps:
    """Of one failover."""

    def __init__(self, monitor: Monitor, parts: Parts) -> None:
        self._monitor = monitor
        self._parts = parts

    def all(self) -> Sequence[Step]:
        settings = self._monitor.settings
        data, addresses = self._parts.data, self._parts.addresses
        steps = []
        if settings.fence_command:
            steps.append(Step(FENCE, self._fence))
        steps.append(Step(VOTE, self._vote, undo=self._withdraw, about=self._epoch))
        if ScriptKind.PRE_FAILOVER in settings.scripts:
            steps.append(Step(PRE_SCRIPT, self._script(PRE_SCRIPT, ScriptKind.PRE_FAILOVER)))
        if settings.addresses:
            steps.append(
                Step(PROBE, lambda run: addresses.probe(self._monitor, forced=run.forced, say=run.say))
            )
        steps += [
            Step(
                DRAIN,
                lambda run: data.drain(self._monitor, run.say),
                undo=lambda run: data.undo_drain(self._monitor),
            ),
            Step(PROMOTE, self._promote, commits=True, was_done=self._was_promoted),
            Step(OPEN, lambda run: data.open(self._monitor, self._promotion(run), run.say)),
        ]
        if settings.addresses:
            steps.append(
                Step(ADDRESSES, lambda run: addresses.take(self._monitor, forced=run.forced, say=run.say))
            )
        if settings.host_name:
            steps.append(Step(HOST_NAME, lambda run: addresses.set_host_name(self._monitor), optional=True))
        if ScriptKind.POST_FAILOVER in settings.scripts:
            steps.append(Step(POST_SCRIPT, self._script(POST_SCRIPT, ScriptKind.POST_FAILOVER)))
        steps.append(
            Step(TELL, lambda run: data.tell(self._monitor, self._promotion(run), run.say), optional=True)
        )
        return steps

    async def _fence(self, run: Run) -> None:
        try:
            await self._parts.fence.fence(
                self._monitor, self._parts.data.next_epoch(self._monitor), run.reason, run.say
            )
        except ReplicatorError as error:
            if not run.forced:
                raise
            run.say(f"forced in spite of: {error}")

    def _epoch(self, run: Run) -> int:
        return self._parts.data.next_epoch(self._monitor)

    async def _vote(self, run: Run) -> Voted:
        epoch = run.about(VOTE, int)
        return Voted(
            vote=await self._parts.arbiter.vote(self._monitor, epoch, forced=run.forced, say=run.say)
        )

    async def _withdraw(self, run: Run) -> None:
        await self._parts.arbiter.withdraw(self._monitor, run.about(VOTE, int))

    async def _promote(self, run: Run) -> Promotion:
        return await self._parts.data.promote(
            self._monitor,
            run.about(VOTE, int),
            vote=run.result(VOTE, Voted).vote,
            reason=run.reason,
            drained=run.result(DRAIN, Drained),
        )

    async def _was_promoted(self, run: Run) -> Promotion | None:
        return await self._parts.data.promotion(self._monitor, run.about(VOTE, int))

    def _promotion(self, run: Run) -> Promotion:
        return run.result(PROMOTE, Promotion)

    def _script(self, step: str, kind: ScriptKind) -> Callable[[Run], Any]:
        async def run_script(run: Run) -> None:
            facts = Facts(
                monitor=self._monitor,
                kind=kind,
                epoch=run.about(VOTE, int),
                reason=run.reason,
                forced=run.forced,
                promotion=self._promotion(run) if run.has_done(PROMOTE) else None,
                copies=run.result(DRAIN, Drained).drained if run.has_done(DRAIN) else (),
            )
            await self._parts.scripts.run(facts, f"{run.uuid}-{kind}-{run.failures(step)}", run.say)

        return run_script
