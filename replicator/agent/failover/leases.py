"""Leases of the groups that this agent owns as their source: asked for, every third of their length, of the
target and of the witness. One grant is enough. What follows for the mounts is in `guards.py`.
"""

from typing import Protocol

import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.grants import Answer
from replicator.agent.failover.guards import TARGET, WITNESS, Guards, boottime_s
from replicator.errors import ReplicatorError
from replicator.failover.lease import Asked, Renew, Renewed
from replicator.failovers import Guard, Lapse


class WitnessClient(Protocol):
    async def renew(self, group: str, request: Renew) -> Renewed: ...


class Witnesses(Protocol):
    """`witnesses.py`."""

    def at(self, name: str) -> WitnessClient:
        """Raises UsageError."""
        ...


class Leases:
    """Of one agent. `run` renews until cancelled."""

    def __init__(
        self, core: Core, calls: Calls, guards: Guards, fencing: Fencing, witnesses: Witnesses
    ) -> None:
        self._core = core
        self._calls = calls
        self._guards = guards
        self._fencing = fencing
        self._witnesses = witnesses
        self._kept: set[str] = set()
        self._waits_said: set[str] = set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._guards.news.event
                for guard in self._guards.all():
                    if guard.group not in self._kept:
                        self._kept.add(guard.group)
                        nursery.start_soon(self._keep, guard.group)
                await self._guards.settle()
                await changed.wait()

    async def _keep(self, group: str) -> None:
        """Until nobody watches it any more."""
        while (guard := self._guards.get(group)) is not None:
            began_s = trio.current_time()
            if not guard.is_superseded:
                await self._ask_all(guard)
            self._guards.look()
            await self._look_at_start(group)
            period_s = self._period_s(guard)
            changed = self._guards.news.event
            with trio.move_on_at(began_s + period_s):
                await changed.wait()
                await trio.sleep(limits.LEASE_ASK_MIN_S)
        self._kept.discard(group)

    def _period_s(self, guard: Guard) -> float:
        renew_s = guard.lease_s / limits.LEASE_RENEWALS or limits.GUARD_LOOK_S
        if guard.lapse is Lapse.NONE and self._guards.standing(guard).came_back_s is None:
            return max(renew_s, limits.GUARD_LOOK_S)  # nobody counts on it: to hear what has happened
        return renew_s

    async def _ask_all(self, guard: Guard) -> None:
        # Whoever does not answer at once is not to hold up the next request to the other.
        with trio.move_on_after(max(self._period_s(guard) - limits.LEASE_ASK_MIN_S, limits.LEASE_ASK_MIN_S)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, guard, TARGET)
                if guard.witness:
                    nursery.start_soon(self._ask, guard, WITNESS)

    async def _ask(self, guard: Guard, whom: str) -> None:
        standing = self._guards.standing(guard)
        request = self._request(guard)
        asked = standing.holder.ask(whom, boottime_s())
        try:
            if whom == WITNESS:
                answer = Answer(renewed=await self._witnesses.at(guard.witness).renew(guard.group, request))
            else:
                address = Address(guard.target_host, guard.target_port)
                answer = await self._calls.ask(address, "renew", guard.group, request, Answer)
        except ReplicatorError:
            return  # the other one may answer; if none does the lease lapses
        with trio.CancelScope(shield=True):  # what was heard counts
            await self._heard(guard, whom, answer, asked)

    async def _heard(self, guard: Guard, whom: str, answer: Answer, asked: Asked) -> None:
        renewed = answer.renewed
        if renewed.promotion is not None and renewed.promotion.epoch > guard.epoch:
            await self._guards.supersede(guard.group, renewed.promotion)
        elif not answer.watched:
            await self._guards.forget(guard.group)
        elif renewed.granted:
            standing = self._guards.standing(guard)
            standing.holder.granted(asked, renewed.lease_s)
            standing.came_back_s = None
            self._waits_said.discard(guard.group)
            if guard.opened is not None and self._guards.get(guard.group) == guard:
                await self._guards.change(guard.group, opened=None)
            await self._guards.settle()

    def _request(self, guard: Guard) -> Renew:
        standing = self._guards.standing(guard)
        mounts = self._guards.mounts_of(guard)
        obeys = bool(mounts) and all(self._fencing.obeys(mount) for mount in mounts)
        by_hand = guard.opened is not None
        return Renew(
            agent=self._core.identity.uuid,
            other=guard.target_uuid,
            epoch=guard.epoch,
            lease_s=guard.lease_s,
            enforced=guard.lapse is not Lapse.NONE and obeys and not by_hand,
            terms=guard.terms,
            holds_lease=standing.came_back_s is None and standing.holder.is_valid(boottime_s()),
            promotion=guard.promotion,
        )

    async def _look_at_start(self, group: str) -> None:
        """One that has come back, and is not answered."""
        guard = self._guards.get(group)
        if guard is None or guard.is_closed:
            return
        standing = self._guards.standing(guard)
        if standing.came_back_s is None or boottime_s() < standing.came_back_s + limits.START_FENCED_S:
            return
        if guard.witness or guard.lapse is not Lapse.NONE:
            if group not in self._waits_said:
                self._waits_said.add(group)
                self._core.events.add(events.START_WAITS, name=guard.name, target=guard.target_name)
            return
        standing.came_back_s = None
        self._core.events.add(events.START_UNANSWERED, name=guard.name, seconds=limits.START_FENCED_S)
        await self._guards.settle()
