"""The step of a failover that waits until its source has stopped and its witness agrees; votes taken back."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from replicator.agent.failover.arbiter import Arbiter, Try
from replicator.errors import ReplicatorError, UnreachableError
from replicator.events import EventRing
from replicator.failover.candidate import Candidacy, Order
from replicator.failover.lease import Granter, GrantMemory, Renew, lapse_s
from replicator.failover.witness import Ballot, Told, Voted, Withdraw, Witness, WitnessFile
from replicator.paths import Home

Clock = trio.testing.MockClock
G, S, T = "group", "source", "target"
TRY = Try(
    group=G,
    witness="gamma",
    ballot=Ballot(
        agent=T, candidate=T, owner=S, parent_epoch=0, epoch=1, attempt="1", lease_s=3.0, armed=True
    ),
    terms=1,
)
FACTS = Candidacy(now_s=0.0, order=Order.MONITOR, automatic=True, failed=True, armed=True, witness=True)
RENEWAL = Renew(agent=S, other=T, epoch=0, lease_s=3.0, enforced=True, terms=1, holds_lease=True)


class World:
    """A target, and a witness that can be cut off. The source had a lease of both at 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut = False
        self.said: list[str] = []
        self.votes: list[Ballot] = []
        self.granter = Granter(GrantMemory(), -100.0)
        known = {"epoch": 0, "owns": False, "promotion": None, "lease_s": 3.0, "terms": 1}
        self.renew_here: Callable[[float], Any] = lambda now_s: self.granter.renew(RENEWAL, now_s, **known)  # type: ignore[arg-type]
        self.renew_here(self.now_s())
        self.witness = Witness(WitnessFile(), -100.0)
        self.witness.renew(G, RENEWAL, self.now_s())
        self.told: list[int] = []
        self.start()

    def start(self) -> None:
        ring = EventRing(lambda: 0, lambda event: self.told.append(event.id))
        core: Any = SimpleNamespace(home=Home(str(self.path)), events=ring, identity=SimpleNamespace(uuid=T))
        (self.path / "failover").mkdir(exist_ok=True)
        grants: Any = SimpleNamespace(granter=lambda group: self.granter)
        witnesses: Any = SimpleNamespace(at=lambda name: self)
        self.arbiter = Arbiter(core, witnesses, grants, self.now_s)

    def now_s(self) -> float:
        try:
            return trio.current_time() - self.began_s
        except AttributeError:
            self.began_s = trio.current_time()
            return 0.0

    # the client of the witness
    async def vote(self, group: str, ballot: Ballot) -> Voted:
        await self._line()
        self.votes.append(ballot)
        return self.witness.vote(group, ballot, self.now_s())

    async def withdraw(self, group: str, withdraw: Withdraw) -> Told:
        await self._line()
        return self.witness.withdraw(group, withdraw, self.now_s())

    async def _line(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.cut:
            raise UnreachableError("cut")

    async def agree(self, facts: Candidacy = FACTS, failed: Callable[[], bool] = lambda: True) -> str:
        return await self.arbiter.agree(TRY, facts, self.said.append, failed)

    @property
    def source_may_write(self) -> bool:
        """Whether somebody would give it a lease."""
        answers = [self.renew_here(self.now_s()), self.witness.renew(G, RENEWAL, self.now_s())]
        return any(answer.granted for answer in answers)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_waits_for_both_leases_and_the_source_gets_no_other(
    world: World, autojump_clock: Clock
) -> None:
    assert await world.agree() == "gamma"
    assert lapse_s(3.0) <= world.now_s() <= lapse_s(3.0) + 1.0
    assert not world.source_may_write
    assert "a lease granted here may be valid" in world.said


async def test_a_witness_that_is_away_is_asked_until_it_answers(world: World, autojump_clock: Clock) -> None:
    world.cut = True
    with trio.move_on_after(20) as scope:
        await world.agree()
    assert scope.cancelled_caught
    world.cut = False
    assert await world.agree() == "gamma"


async def test_a_source_that_answers_again_is_left_alone(world: World, autojump_clock: Clock) -> None:
    world.cut = True
    with pytest.raises(ReplicatorError, match="answers"):
        await world.agree(failed=lambda: world.now_s() < 6.0)


async def test_without_a_witness_nobody_agrees(world: World, autojump_clock: Clock) -> None:
    alone = msgspec.structs.replace(TRY, witness="")
    facts = msgspec.structs.replace(FACTS, witness=False)
    assert await world.arbiter.agree(alone, facts, world.said.append) == ""
    assert world.now_s() >= lapse_s(3.0) and world.votes == []


async def test_a_source_that_was_fenced_is_not_waited_for(world: World, autojump_clock: Clock) -> None:
    facts = msgspec.structs.replace(FACTS, fence_command=True)
    await world.arbiter.before_fence(TRY, facts, world.said.append)
    assert not world.source_may_write  # before the command runs
    assert await world.agree(msgspec.structs.replace(facts, fenced=True)) == "gamma"
    assert world.now_s() < 1.0
    assert [ballot.fenced for ballot in world.votes] == [False, True]


async def test_a_fence_command_that_nobody_could_tell_the_witness_of(
    world: World, autojump_clock: Clock
) -> None:
    """The source may be up again, with a new lease: then that is waited for."""
    facts = msgspec.structs.replace(FACTS, fence_command=True)
    world.cut = True
    await world.arbiter.before_fence(TRY, facts, world.said.append)
    await trio.sleep(2.0)
    world.witness.renew(G, RENEWAL, world.now_s())  # it is up again
    world.cut = False
    assert await world.agree(msgspec.structs.replace(facts, fenced=True)) == "gamma"
    assert world.now_s() >= 2.0 + lapse_s(3.0)
    assert not any(ballot.fenced for ballot in world.votes)


async def test_a_vote_that_is_not_used_is_taken_back_whenever_the_witness_is_there(
    world: World, autojump_clock: Clock
) -> None:
    await world.agree()
    world.cut = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.arbiter.run)
        await world.arbiter.withdraw(TRY)
        assert world.renew_here(world.now_s()).granted
        await trio.sleep(60.0)
        assert not world.witness.renew(G, RENEWAL, world.now_s()).granted
        nursery.cancel_scope.cancel()
    world.start()  # the agent is restarted
    world.cut = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.arbiter.run)
        await trio.sleep(1.0)
        assert world.witness.renew(G, RENEWAL, world.now_s()).granted
        nursery.cancel_scope.cancel()
    world.votes.clear()
    world.start()
    async with trio.open_nursery() as nursery:  # and it owes nothing any more
        nursery.start_soon(partial(world.arbiter.run))
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert world.told == []


async def test_a_witness_that_does_not_know_the_group_needs_no_more(
    world: World, autojump_clock: Clock
) -> None:
    world.witness.forget(G)
    await world.arbiter.withdraw(TRY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.arbiter.run)
        await trio.sleep(30.0)
        nursery.cancel_scope.cancel()
    assert len(world.told) == 1  # said once
