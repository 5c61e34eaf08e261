"""Whether the owner of a group has stopped, and the witness agrees: the step of a failover before anything
is taken (`procedure.Arbiter`). `failover/candidate.py` decides; this does what it says, and asks again.

A vote that is not used is taken back, however long the witness cannot be reached: until then it would give
the source no lease.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from replicator import events, limits
from replicator.agent.core import Core
from replicator.agent.failover.witness_service import boot_s
from replicator.agent.failover.witnesses import Witnesses
from replicator.agent.state import load_document, save_document
from replicator.errors import ReplicatorError, UnreachableError
from replicator.failover.candidate import Action, Attempt, Candidacy
from replicator.failover.lease import Granter
from replicator.failover.witness import Ballot, Withdraw

Say = Callable[[str], None]


class Grants(Protocol):
    """Leases that this agent has granted as the target of groups: `leases.py`."""

    def granter(self, group: str) -> Granter: ...


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at owning a group. `ballot`: without what is known only when it is asked."""

    group: str
    witness: str  # as `MonitorSettings.witness`
    ballot: Ballot
    terms: int  # number of the settings: `armed` holds for these only


_Vote = tuple[str, str, str]
"""(witness, group, attempt)."""


class Owed(msgspec.Struct, frozen=True, kw_only=True):
    """Votes to be taken back."""

    votes: tuple[_Vote, ...] = ()


class Arbiter:
    """Of one agent. `run` delivers what could not be taken back at once."""

    def __init__(
        self, core: Core, witnesses: Witnesses, grants: Grants, now_s: Callable[[], float] = boot_s
    ) -> None:
        self._core = core
        self._witnesses = witnesses
        self._grants = grants
        self._now_s = now_s
        self._owed = load_document(core.home.withdrawals, Owed) or Owed()
        self._more = trio.Event()
        self._owing = trio.Lock()
        # Tries whose fence command runs, and when that was begun; an agent that ends takes them back.
        self._begun: dict[str, tuple[Attempt, float]] = {}

    async def before_fence(
        self, try_: Try, candidacy: Candidacy, say: Say, failed: Callable[[], bool] = lambda: True
    ) -> None:
        """Its owner gets no lease any more, here and, if that answers, of the witness: then it may be fenced.
        Raises and is asked as `agree`, which follows.
        """
        attempt = self._attempt(try_, candidacy)
        await self._go_on(try_, attempt, say, failed, until=Action.FENCE)
        self._begun[try_.ballot.attempt] = attempt, self._now_s()

    async def agree(
        self, try_: Try, candidacy: Candidacy, say: Say, failed: Callable[[], bool] = lambda: True
    ) -> str:
        """Wait until no mount of the owner can write, and the witness has voted. Returns who agreed; "":
        nobody was to be asked. Raises ReplicatorError: no, or a person has to decide.

        `candidacy`: what is known when it begins; what changes is looked up. `failed`: what the monitor says
        meanwhile. Asked again for the same try, the answer is the same. Cancellation: the vote may be given;
        `withdraw` it.
        """
        attempt, began_s = self._begun.pop(try_.ballot.attempt, (self._attempt(try_, candidacy), None))
        if began_s is not None:
            attempt.fence(candidacy.fenced is True, began_s)
        await self._go_on(try_, attempt, say, failed, until=Action.GO)
        return try_.witness if attempt.is_voted else ""

    def _attempt(self, try_: Try, candidacy: Candidacy) -> Attempt:
        granter = self._grants.granter(try_.group)
        return Attempt(candidacy, try_.ballot, granter, try_.terms, witness=bool(try_.witness))

    async def _go_on(
        self, try_: Try, attempt: Attempt, say: Say, failed: Callable[[], bool], until: Action
    ) -> None:
        said = ""
        while True:
            verdict = attempt.look(self._now_s(), failed=failed())
            if verdict.reason and verdict.reason != said:
                said = verdict.reason
                say(said)
            match verdict.action:
                case Action.WAIT:
                    await trio.sleep(max(verdict.until_s - self._now_s(), limits.WITNESS_POLL_S))
                case Action.VOTE:
                    await self._ask(try_, attempt)
                case action if action in (until, Action.GO):
                    return
                case _:
                    raise ReplicatorError(verdict.reason or "the source has to be fenced first")

    async def _ask(self, try_: Try, attempt: Attempt) -> None:
        try:
            voted = await self._witnesses.at(try_.witness).vote(try_.group, attempt.ballot())
        except UnreachableError as error:
            attempt.silence(str(error), self._now_s())
        else:
            attempt.vote(voted, self._now_s())

    async def withdraw(self, try_: Try) -> None:
        """The vote was not used, and will not be. Durable here on return; the witness is told as soon as it
        can be reached. Leases are granted again. Raises StateError.
        """
        self._begun.pop(try_.ballot.attempt, None)
        if try_.witness:
            await self._owe(add=(try_.witness, try_.group, try_.ballot.attempt))
            self._more.set()
        self._grants.granter(try_.group).resume()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._more = trio.Event()
            for vote in self._owed.votes:
                await self._take_back(*vote)
            with trio.move_on_after(limits.WITNESS_OWED_S if self._owed.votes else float("inf")):
                await self._more.wait()

    async def _take_back(self, witness: str, group: str, attempt: str) -> None:
        withdraw = Withdraw(agent=self._core.identity.uuid, attempt=attempt)
        try:
            await self._witnesses.at(witness).withdraw(group, withdraw)
        except UnreachableError:
            return
        except ReplicatorError as error:  # it does not know the group, or not between these agents
            self._core.events.add(events.WITHDRAWAL_FAILED, witness=witness, group=group, reason=str(error))
        await self._owe(remove=(witness, group, attempt))

    async def _owe(self, *, add: _Vote | None = None, remove: _Vote | None = None) -> None:
        async with self._owing:  # two that change it at once would forget one of the changes
            votes = [vote for vote in self._owed.votes if vote not in (add, remove)]
            owed = Owed(votes=(*votes, *([add] if add is not None else []))[-limits.MONITORS :])
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(save_document, self._core.home.withdrawals, owed)
            self._owed = owed
