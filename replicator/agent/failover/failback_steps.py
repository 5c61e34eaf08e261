"""The steps of a failback, and their orders (docs/developers/failover.md). Until `promote` everything is
taken back; from there on it is completed: home owns the group then.

Where **home is lost** for good, in `promote` or later, nobody can say any more whether it owns the group. A
person says that it is lost, and it is taken to own it: what only home could do is passed over, this host
becomes its copy, and takes over from it as from any source that is lost, with an epoch beyond the one that
home may have.
"""

from collections.abc import Callable

import msgspec

from replicator.agent.failover.failback_parts import Frozen, Held, Parts, Vote
from replicator.agent.failover.procedure import Facts
from replicator.errors import ReplicatorError
from replicator.failover.handback import Then, disagreement
from replicator.failover.plan_runner import Run, Step
from replicator.failovers import Monitor, Promotion, ScriptKind, TakeOver

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


class FailbackSteps:
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

        adopt = Step(
            ADOPT,
            lambda run: home.adopt(monitor, run.uuid),
            undo=lambda run: home.disown(monitor, run.uuid),
        )
        turn = Step(TURN, lambda run: own.turn_around(monitor), commits=True, was_done=turned)
        retire = Step(RETIRE, lambda run: home.retire(monitor), if_lost=_nothing)
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
            return await own.freeze(self._monitor)

        return Step(FREEZE, freeze, undo=lambda run: own.thaw(self._monitor))

    def _hand_over(self) -> list[Step]:
        return [
            Step(DRAIN, self._drain),
            Step(HOLD, self._hold, undo=self._release),
            Step(VOTE, self._vote),  # `_release` takes it back
            Step(
                PROMOTE,
                self._promote,
                commits=True,
                was_done=self._was_promoted,
                if_lost=self._presumed,
            ),
        ]

    def _move_addresses(self, *, undo: bool) -> list[Step]:
        """Each is on one host at any time: first it goes here, then it comes there."""
        monitor, home, here = self._monitor, self._parts.home, self._parts.addresses
        if not monitor.settings.taken:
            return []

        async def back(run: Run) -> None:
            await here.take(monitor, forced=True, say=run.say)

        async def give_up(run: Run) -> None:
            await self._release(run)  # if home does not hear of it now
            await home.give_up(monitor, run.uuid)

        return [
            Step(GIVE_UP, lambda run: here.give_up(monitor, run.say), undo=back if undo else None),
            Step(
                TAKE,
                lambda run: home.take(monitor, run.uuid, forced=run.forced, say=run.say),
                undo=give_up if undo else None,
                if_lost=_nothing,
            ),
        ]

    def _settle(self) -> list[Step]:
        monitor, home = self._monitor, self._parts.home
        return [
            Step(OPEN, lambda run: home.open(monitor, self._promotion(run), run.say), if_lost=_nothing),
            Step(FOLLOW, self._follow),
            Step(RESUME, lambda run: home.resume(monitor, self._promotion(run)), if_lost=_nothing),
            *self._script(POST_SCRIPT, ScriptKind.POST_FAILBACK, if_lost=_nothing),
            *self._home_script(),
            Step(
                TELL,
                lambda run: self._parts.arbiter.tell(monitor, self._promotion(run)),
                if_lost=_nothing,  # the ballot of the failover that follows says it
                optional=True,
            ),
        ]

    # --- steps ---

    async def _drain(self, run: Run) -> Held:
        return Held(marks=await self._parts.own.drain(self._monitor, run.say))

    async def _hold(self, run: Run) -> Held:
        held = await self._parts.home.hold(self._monitor, self._order, run.uuid, run.say)
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
        return await self._parts.home.promote(self._monitor, order, run.uuid)

    async def _was_promoted(self, run: Run) -> Promotion | None:
        run.say("only home can say whether it owns the group now")
        return await self._parts.home.promotion(self._monitor, self._order.epoch, run.uuid)

    def _presumed(self, run: Run) -> Promotion:
        """The record that home may have. It is of an epoch in which nobody else can own the group."""
        return Promotion(
            group=self._order.group,
            epoch=self._order.epoch,
            parent_epoch=self._order.parent_epoch,
            owner=self._monitor.source_uuid,
            owner_name=self._monitor.source_name,
            reason="presumed: it was lost while the group was handed over",
            vote=run.result(VOTE, Vote).vote,
        )

    async def _follow(self, run: Run) -> None:
        frozen = run.result(FREEZE, Frozen)
        connections = self._order.copies
        await self._parts.own.follow(self._monitor, self._promotion(run), connections, frozen, run.say)

    def _promotion(self, run: Run) -> Promotion:
        return run.result(PROMOTE, Promotion)

    def _script(
        self, step: str, kind: ScriptKind, if_lost: Callable[[Run], None] | None = None
    ) -> list[Step]:
        async def run_script(run: Run) -> None:
            attempt = f"{run.uuid}-{kind}-{run.failures(step)}"
            await self._parts.scripts.run(self._facts(run, kind), attempt, run.say)

        return [Step(step, run_script, if_lost=if_lost)] if kind in self._monitor.settings.scripts else []

    def _home_script(self) -> list[Step]:
        kind = ScriptKind.SOURCE_POST_FAILBACK

        async def post(run: Run) -> None:
            await self._parts.errands.post_script(self._facts(run, kind), f"{run.uuid}-{kind}")

        return [Step(HOME_SCRIPT, post, if_lost=_nothing)] if kind in self._monitor.settings.scripts else []

    def _facts(self, run: Run, kind: ScriptKind) -> Facts:
        return Facts(
            monitor=self._monitor,
            kind=kind,
            epoch=self._order.epoch,
            reason=run.reason,
            forced=run.forced,
            promotion=self._promotion(run) if run.has_done(PROMOTE) else None,
        )


def _nothing(run: Run) -> None:
    """Of a step that only home could do, or that is of use only if home serves."""
