"""This agent as the witness of groups of other agents: who may ask, and what is durable before an answer.
`failover/witness.py` decides.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
import trio

from replicator import events, limits
from replicator.agent.core import Core, NotFoundError
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.state import load_document, save_document
from replicator.errors import ReplicatorError, UsageError
from replicator.failover.lease import Renew, Renewed
from replicator.failover.witness import (
    VERSION,
    Ballot,
    Entry,
    Tell,
    Told,
    Voted,
    Withdraw,
    Witness,
    WitnessFile,
    WitnessRefusedError,
)
from replicator.failovers import Promotion

RENEW, VOTE, PROMOTED, WITHDRAW, STATUS = (
    "witness-renew",
    "witness-vote",
    "witness-promoted",
    "witness-withdraw",
    "witness-status",
)
"""Actions of calls with purpose "failover", about a group."""

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `witness-status`."""


class WitnessView(msgspec.Struct, frozen=True, kw_only=True):
    """A group, as its witness shows it. Uuids of agents."""

    group: str
    agents: tuple[str, ...]
    owner: str
    epoch: int
    lease_left_s: float  # as long may a lease given here be valid, at most
    seen_s: float | None  # seconds since one of its agents asked; None: not since the start of the witness
    candidate: str = ""  # who has its vote, and has not said yet what became of it
    insisted: bool = False  # a person wants the candidate to take over; the owner gets no lease
    log: tuple[Promotion, ...] = ()


def boot_s() -> float:
    """clock_gettime(2), CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WitnessService:
    """Of one agent. It needs no monitor, and no connection to any of them."""

    def __init__(self, core: Core, calls: Calls, now_s: Callable[[], float] = boot_s) -> None:
        """Raises StateError: its file is damaged. To go on without would forget who owns what."""
        self._core = core
        self._now_s = now_s
        file = load_document(core.home.witness, WitnessFile) or WitnessFile()
        if file.version > VERSION:
            raise ReplicatorError(f"{core.home.witness}: written by a newer release: use that release")
        self._witness = Witness(file, now_s())
        self._lock = trio.Lock()
        calls.register(RENEW, Renew, self._renew)
        calls.register(VOTE, Ballot, self._vote)
        calls.register(PROMOTED, Tell, self._promoted)
        calls.register(WITHDRAW, Withdraw, self._withdraw)
        calls.register(STATUS, Ask, self._status)

    # --- by other agents ---

    async def _renew(self, group: str, request: Renew, caller: Caller) -> Renewed:
        _check(request.agent, caller)
        return await self._decide(group, caller, partial(self._witness.renew, group, request))

    async def _vote(self, group: str, ballot: Ballot, caller: Caller) -> Voted:
        _check(ballot.agent, caller)
        return await self._decide(group, caller, partial(self._witness.vote, group, ballot))

    async def _promoted(self, group: str, tell: Tell, caller: Caller) -> Told:
        _check(tell.agent, caller)
        if tell.promotion.group != group:
            raise UsageError("that promotion is of another group")
        return await self._decide(group, caller, partial(self._witness.tell, group, tell))

    async def _withdraw(self, group: str, withdraw: Withdraw, caller: Caller) -> Told:
        _check(withdraw.agent, caller)
        return await self._decide(group, caller, partial(self._witness.withdraw, group, withdraw))

    async def _status(self, group: str, ask: Ask, caller: Caller) -> WitnessView:
        entry = self._witness.file.groups.get(group)
        if entry is None:
            raise NotFoundError("this witness does not know that group")
        if caller.peer is not None and caller.peer.uuid not in entry.agents:
            raise WitnessRefusedError("this witness knows that group between other agents")
        return self._view(entry)

    async def _decide(self, group: str, caller: Caller, decide: Callable[[float], T]) -> T:
        """One at a time; an answer leaves when what it depends on is on the disk. StateError: it is not, and
        then nothing was decided.
        """
        async with self._lock:
            before = self._witness.file
            answer = decide(self._now_s())
            if self._witness.file is not before:
                try:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(
                            save_document, self._core.home.witness, self._witness.file
                        )
                except ReplicatorError:
                    self._witness.file = before
                    raise
                self._tell(before.groups.get(group), self._witness.file.groups[group], caller)
        return answer

    def _tell(self, before: Entry | None, entry: Entry, caller: Caller) -> None:
        add, group = self._core.events.add, entry.group
        if before is None:
            add(events.WITNESS_GROUP, group=group, name=caller.name)
        vote = entry.vote
        if vote is not None and vote.given and (before is None or before.vote != vote):
            add(events.WITNESS_VOTED, group=group, name=vote.candidate, epoch=vote.epoch)
        if (record := entry.promotion) is not None and (before is None or before.epoch != entry.epoch):
            add(events.WITNESS_LEARNED, group=group, name=record.owner_name, epoch=record.epoch)

    # --- by its own users ---

    def list(self) -> list[WitnessView]:
        return [self._view(entry) for entry in self._witness.file.groups.values()]

    def find(self, group: str) -> WitnessView:
        """By its uuid, or a beginning of it that is unique. Raises NotFoundError."""
        found = [entry for entry in self._witness.file.groups.values() if entry.group.startswith(group)]
        if len(found) != 1 or not group:
            raise NotFoundError(f"this agent is not the witness of a group {group!r}: see dtctl witness list")
        return self._view(found[0])

    async def forget(self, group: str) -> WitnessView:
        """A group that exists no more. Raises ReplicatorError while one of its agents still asks."""
        async with self._lock:
            view = self.find(group)
            if view.seen_s is not None and view.seen_s < limits.WITNESS_SEEN_S:
                raise ReplicatorError(
                    f"an agent of that group has asked {view.seen_s:.0f} s ago: remove its monitor first"
                )
            before = self._witness.file
            self._witness.forget(view.group)
            try:
                await trio.to_thread.run_sync(save_document, self._core.home.witness, self._witness.file)
            except ReplicatorError:
                self._witness.file = before
                raise
        self._core.events.add(events.WITNESS_FORGOT, group=view.group)
        return view

    def _view(self, entry: Entry) -> WitnessView:
        now_s = self._now_s()
        seen_s = self._witness.seen_s(entry.group)
        vote = entry.vote
        return WitnessView(
            group=entry.group,
            agents=entry.agents,
            owner=entry.owner,
            epoch=entry.epoch,
            lease_left_s=round(self._witness.lease_left_s(entry.group, now_s), 3),
            seen_s=None if seen_s is None else round(now_s - seen_s, 3),
            candidate=vote.candidate if vote is not None else "",
            insisted=vote is not None and not vote.given,
            log=entry.log,
        )


def _check(agent: str, caller: Caller) -> None:
    """With whom plain text is spoken is believed who it is."""
    if caller.peer is not None and caller.peer.uuid != agent:
        raise WitnessRefusedError(f"{caller.name} speaks for another agent")
