"""Leases of the groups that this agent owns as their source: asked for, every third of their length, of the
target and of the witness. One grant is enough. What follows for the mounts is in `guards.py`.
"""

from functools import partial
from typing import Protocol

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.contained import Contained
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.grants import Answer
from replicator.agent.failover.guards import Guards, boottime_s
from replicator.errors import ReplicatorError
from replicator.failover.lease import Asked, Renew, Renewed
from replicator.failover.owner import WITNESS
from replicator.failovers import Guard, Lapse
from replicator.status import Lag


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
        self._contained = Contained(core.events)
        self._kept: set[str] = set()
        self._waits_said: set[str] = set()
        self._asked_lag: set[str] = set()  # groups whose target wants to know what the copies lack
        self._behind: dict[str, tuple[float | None, float]] = {}  # by group: what its copies lack, and when
        self._patient: set[tuple[str, str]] = set()  # groups and granters of requests that may take long

    async def run(self) -> None:
        self._kept.clear()
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._guards.news.event
                for guard in self._guards.all():
                    if guard.group not in self._kept:
                        self._kept.add(guard.group)
                        nursery.start_soon(
                            self._contained.keep,
                            f"leases of {guard.name}",
                            partial(self._keep, guard.group),
                            limits.LEASE_ASK_MIN_S,
                        )
                await self._guards.settle()
                await changed.wait()

    async def _keep(self, group: str) -> None:
        """Until nobody watches it any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_behind, group)
            while (guard := self._guards.get(group)) is not None:
                owner = self._guards.standing(guard).owner
                changed = self._guards.news.event
                now_s = boottime_s()
                await self._guards.settle()  # who is asked may count on what the fences say by then
                asked = [(granter, trio.Event()) for granter in owner.due(now_s)]
                for granter, ended in asked:
                    nursery.start_soon(self._ask_in_time, guard, granter, ended)
                # Whoever does not answer at once is not to hold up the next request to the other.
                with trio.move_on_after(self._period_s(guard)):
                    for _, ended in asked:
                        await ended.wait()
                await self._look(group)
                with trio.move_on_after(
                    max(now_s + self._period_s(guard) - boottime_s(), limits.LEASE_ASK_MIN_S)
                ):
                    await changed.wait()
            nursery.cancel_scope.cancel()
        self._kept.discard(group)
        self._asked_lag.discard(group)
        self._behind.pop(group, None)

    async def _look_behind(self, group: str) -> None:
        """What its copies lack, if its target wants to know: beside the leases, which wait for no sender."""
        while (guard := self._guards.get(group)) is not None:
            if group in self._asked_lag:
                self._behind[group] = await self._behind_of(guard), boottime_s()
            await trio.sleep(limits.GUARD_LAG_S)

    async def _behind_of(self, guard: Guard) -> float | None:
        """Seconds. None: nobody knows."""
        children, found_s = self._core.children, None
        for connection in self._core.state.connections:
            if connection.uuid not in guard.copies:
                continue
            child = children.sender(connection)
            try:
                if child is None or (await child.call("status"))["tracking"]:
                    return None  # what is tracked has no age
                lag = msgspec.convert(await child.call("lag"), Lag)
            except ReplicatorError:
                return None
            found_s = max(found_s or 0.0, lag.recovery_point_seconds)
        return found_s

    def _is_behind(self, group: str) -> float | None:
        """As of now: what was lacking then has only become older."""
        found_s, looked_s = self._behind.get(group, (None, 0.0))
        passed_s = boottime_s() - looked_s
        if found_s is None or passed_s > limits.GUARD_LAG_OLD_S:
            return None
        return found_s + passed_s if found_s else 0.0

    def _period_s(self, guard: Guard) -> float:
        owner = self._guards.standing(guard).owner
        if guard.is_held or (guard.lapse is Lapse.NONE and not owner.came_back):
            return max(owner.renew_s, limits.GUARD_LOOK_S)  # nobody counts on it: to hear what has happened
        return owner.renew_s

    async def _ask_in_time(self, guard: Guard, granter: str, ended: trio.Event) -> None:
        """Before the next one is due; but one of them at a time may take longer. On a slow line, or between
        hosts that are overloaded, none would ever be answered otherwise. Those after it see at once when a
        line is there again: a connection that is not answered is tried more and more seldom.
        """
        key, limit_s = (guard.group, granter), self._period_s(guard)
        is_patient = key not in self._patient
        if is_patient:
            self._patient.add(key)
            holds = self._guards.right_of(guard).holds(boottime_s())
            # Later than that the answer is no lease any more. But it says who owns the group.
            limit_s = max(limit_s, guard.lease_s if holds else limits.FAILOVER_CALL_S)
        try:
            with trio.move_on_after(limit_s):
                await self._ask(guard, granter)
        finally:
            if is_patient:
                self._patient.discard(key)
            ended.set()

    async def _ask(self, guard: Guard, granter: str) -> None:
        owner = self._guards.standing(guard).owner
        asked, request = owner.ask(granter, boottime_s())
        request = msgspec.structs.replace(request, enforced=request.enforced and self._stops(guard))
        try:
            if granter == WITNESS:
                answer = Answer(renewed=await self._witnesses.at(guard.witness).renew(guard.group, request))
            else:
                request = msgspec.structs.replace(request, behind_s=self._is_behind(guard.group))
                address = Address(guard.target_host, guard.target_port)
                answer = await self._calls.ask(address, "renew", guard.group, request, Answer)
        except ReplicatorError:
            return  # the other one may answer; if none does the lease lapses
        with trio.CancelScope(shield=True):  # what was heard counts
            if granter != WITNESS:
                (self._asked_lag.add if answer.asks_lag else self._asked_lag.discard)(guard.group)
            await self._heard(guard.group, asked, answer)

    def _stops(self, guard: Guard) -> bool:
        """Whether its mounts really stop when its leases have lapsed. Said only when it is so already:
        whoever hears of it counts on it, whether the answer arrives here or not.
        """
        mounts = self._guards.mounts_of(guard)
        follows = self._guards.standing(guard).enforcing and not guard.by_hand
        return follows and bool(mounts) and all(self._fencing.obeys(mount) for mount in mounts)

    async def _heard(self, group: str, asked: Asked, answer: Answer) -> None:
        guard = self._guards.get(group)
        if guard is None:
            return
        if not answer.watched:
            await self._guards.forget(group)
            return
        record = self._guards.standing(guard).owner.answered(asked, answer.renewed, boottime_s())
        if record is not None:
            await self._guards.supersede(group, record)
        elif answer.renewed.granted:
            self._waits_said.discard(group)
            self._guards.standing(guard).enforcing = True
            if guard.by_hand and not guard.is_held:
                await self._guards.change(group, by_hand=False)
        await self._guards.settle()

    async def _look(self, group: str) -> None:
        """One that has come back, and is not answered."""
        guard = self._guards.get(group)
        if guard is None:
            return
        await self._guards.settle()
        if guard.is_held:
            return  # it is answered: another agent owns the group
        if not self._guards.standing(guard).owner.came_back or group in self._waits_said:
            return
        if self._guards.right_of(guard).holds(boottime_s()):
            said = events.START_UNANSWERED
            self._core.events.add(said, name=guard.name, seconds=limits.START_FENCED_S)
        elif guard.witness or guard.lapse is not Lapse.NONE:
            self._core.events.add(events.START_WAITS, name=guard.name, target=guard.target_name)
        else:
            return
        self._waits_said.add(group)
