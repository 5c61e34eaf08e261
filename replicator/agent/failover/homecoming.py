"""Home's side of a failback: answers the owner of a group (`home_calls.py`), step by step.

Home was the source; its copies of the return connections have what the owner's programs wrote. All of this
may be asked for again, also after a crash of either agent. Only the agent that owns the group is listened to.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import trio

from replicator import limits
from replicator.agent.core import Core
from replicator.agent.failover import home_opening
from replicator.agent.failover.calls import Caller, Calls, Handler, Nothing
from replicator.agent.failover.failback_parts import Held
from replicator.agent.failover.fencing import Fencing
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.handing_over import marks_of
from replicator.agent.failover.home_calls import (
    ADOPT,
    DISOWN,
    GIVE_UP,
    HOLD,
    LOOK,
    OPEN,
    PREPARE,
    PROMOTE,
    RECORD,
    RELEASE,
    RESUME,
    RETIRE,
    SCRIPT,
    TAKE,
    About,
    AboutEpoch,
    AboutOrder,
    AboutPromotion,
    AboutScript,
    AboutTaking,
    AboutTry,
    Ran,
    Recorded,
)
from replicator.agent.failover.home_opening import HomeOpening
from replicator.agent.failover.home_tries import HomeTries
from replicator.agent.failover.procedure import Facts, Taken
from replicator.agent.state import Connection
from replicator.agent.supervisor import Child, ChildError
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError
from replicator.failover.handback import Home, HomeCopy
from replicator.failover.script_result import ScriptResult
from replicator.failovers import Guard, Monitor, Promotion, Report, TakeOver, return_of
from replicator.status import TargetDataState


class Following(Protocol):
    """`following.py`."""

    async def follow(self, key: str) -> Guard: ...
    def reason(self, group: str) -> str: ...


class Promotions(Protocol):
    """`promotion.py`: here of the copies of return connections."""

    def record(self, group: str) -> Promotion | None: ...
    async def drain(self, order: TakeOver) -> Report: ...
    async def release(self, order: TakeOver) -> None: ...
    async def promote(self, order: TakeOver) -> Promotion: ...


class Former(home_opening.Former, Protocol):
    """`former_owner.py`."""

    def is_prepared(self, record: Promotion) -> bool: ...


class OwnAddresses(Protocol):
    """`addresses.py`: those that this host has as configured."""

    async def put_back(self, group: str, *, forced: bool, say: Callable[[str], None]) -> Taken: ...
    async def drop(self, group: str, wanted: Iterable[str]) -> list[str]: ...


class Deeds(NamedTuple):
    """What else is to be done, by others. `bundles`: ids of those of a group; `withdraw`: a vote for this
    agent is taken back, durably; `adopt`, `disown`: a monitor is made, or removed; `retire`: this host is no
    source of that group any more.
    """

    run_script: Callable[[Facts, str], Awaitable[ScriptResult]]
    bundles: Callable[[str], Awaitable[tuple[str, ...]]]
    withdraw: Callable[[Monitor, TakeOver, str], Awaitable[None]]
    adopt: Callable[[Monitor, Guard], Awaitable[None]]
    disown: Callable[[str], Awaitable[None]]
    retire: Callable[[Guard], Awaitable[None]]


class Homecoming:
    """Of one agent."""

    def __init__(
        self,
        core: Core,
        calls: Calls,
        guards: Guards,
        fencing: Fencing,
        promotions: Promotions,
        former: Former,
        following: Following,
        addresses: OwnAddresses,
        deeds: Deeds,
    ) -> None:
        self._core = core
        self._guards = guards
        self._promotions = promotions
        self._former = former
        self._following = following
        self._addresses = addresses
        self._deeds = deeds
        self._opening = HomeOpening(core, guards, fencing, promotions, former)
        self._tries = HomeTries(core.home)
        self._deciding = trio.Lock()  # whether a try ends, or holds and becomes final: one after the other
        answers: tuple[tuple[str, type[About], Handler[Any]], ...] = (
            (LOOK, About, self._look),
            (PREPARE, About, self._prepare),
            (HOLD, AboutOrder, self._hold),
            (RELEASE, AboutOrder, self._release),
            (PROMOTE, AboutOrder, self._promote),
            (RECORD, AboutEpoch, self._record),
            (OPEN, AboutPromotion, self._open),
            (RESUME, AboutPromotion, self._resume),
            (TAKE, AboutTaking, self._take),
            (GIVE_UP, AboutTry, self._give_up),
            (ADOPT, AboutTry, self._adopt),
            (DISOWN, AboutTry, self._disown),
            (RETIRE, About, self._retire),
            (SCRIPT, AboutScript, self._script),
        )
        for action, body, answer in answers:
            calls.register(action, body, partial(self._once_up, answer))

    async def _once_up(self, answer: Handler[Any], group: str, about: About, caller: Caller) -> object:
        """An agent that starts knows its copies and mounts a moment later. Raises UnreachableError."""
        with trio.move_on_after(limits.FAILOVER_CALL_S / 2) as waiting:
            await self._core.up.wait()
        if waiting.cancelled_caught:
            raise UnreachableError(f"{self._core.identity.name} is still starting")
        return await answer(group, about, caller)

    # --- looking ---

    async def _look(self, group: str, about: About, caller: Caller) -> Home:
        identity = self._core.identity
        guard = self._guards.get(group)
        record = guard.superseded if guard is not None else None
        copies = []
        for connection in guard.copies if guard is not None else ():
            copies.append(await self._copy(connection, record))
        return Home(
            agent=identity.uuid,
            name=identity.name,
            host=str(self._core.listen),
            epoch=max(guard.epoch, record.epoch if record is not None else 0) if guard is not None else 0,
            follows=guard is not None and guard.is_superseded,
            copies=tuple(copies),
            bundles=await self._deeds.bundles(group),
            waits=self._following.reason(group),
        )

    async def _copy(self, connection: str, record: Promotion | None) -> HomeCopy:
        known = self._connection(connection)
        child = self._core.children.receiver(return_of(connection))
        found = HomeCopy(
            connection=connection,
            repset=known.repset.name if known is not None else "",
            places=tuple(entry.source for entry in known.maps) if known is not None else (),
            prepared=record is not None and self._former.is_prepared(record),
        )
        if child is None:
            return found
        try:
            status = await child.call("status")
        except ReplicatorError as error:
            silent = isinstance(error, ChildError)
            return msgspec.structs.replace(found, problem=str(error), silent=silent)
        state = status["target_data_state"]
        return msgspec.structs.replace(found, data_state=state, exact=state == TargetDataState.OK)

    async def _prepare(self, group: str, about: About, caller: Caller) -> Home:
        """A person has decided on the owner's host. Returns how it is now; it goes on."""
        self._check(group, about, caller)
        guard = self._guards.find(group)
        record = guard.superseded
        if record is not None and guard.follows != record.epoch and not self._former.is_prepared(record):
            await self._following.follow(group)
        return await self._look(group, about, caller)

    def _connection(self, connection: str) -> Connection | None:
        return next((c for c in self._core.state.connections if c.uuid == connection), None)

    def _check(self, group: str, about: About, caller: Caller) -> None:
        """Raises NotPermittedError: whoever asks does not own the group."""
        guard = self._guards.get(group)
        if guard is None:
            raise NotPermittedError(f"{self._core.identity.name} knows of no such group")
        owner = guard.superseded.owner if guard.superseded is not None else ""
        if about.agent != owner or (caller.peer is not None and caller.peer.uuid != owner):
            raise NotPermittedError(f"{guard.name} is owned by another agent than {caller.name}")

    # --- until the hand-over ---

    async def _hold(self, group: str, about: AboutOrder, caller: Caller) -> Held:
        self._check(group, about, caller)
        async with self._deciding:
            await self._tries.begin(group, about.attempt)
            for connection in about.order.copies:
                await self._receiver(connection)
            await self._promotions.drain(self._returning(about.order))
        marks = {}
        for connection in about.order.copies:
            child = await self._receiver(connection)
            marks[connection] = marks_of((await child.call("status"))["positions"])
        return Held(marks=marks)

    async def _receiver(self, connection: str) -> Child:
        """Of the copy that is kept here of what a forward connection has sent, once it answers: it may just
        be starting. Raises ReplicatorError.
        """
        child = self._core.children.receiver(return_of(connection))
        if child is None:
            raise ReplicatorError(f"there is no copy of connection {return_of(connection)} here")
        await child.wait_running(limits.FAILBACK_PATIENCE_S)
        return child

    async def _release(self, group: str, about: AboutOrder, caller: Caller) -> Nothing:
        """The try is taken back, all of it: what home was asked for so far, and what it is still to hear."""
        self._check(group, about, caller)
        async with self._deciding:
            known = self._promotions.record(group)
            if known is not None and known.epoch >= about.order.epoch:
                return Nothing()
            if await self._tries.end(group, about.attempt):
                await self._promotions.release(self._returning(about.order))
                await self._drop_addresses(group)
        await self._deeds.withdraw(about.monitor, about.order, about.attempt)
        return Nothing()

    async def _promote(self, group: str, about: AboutOrder, caller: Caller) -> Promotion:
        """Only the record: the mounts stay as they are until `_open`."""
        known = self._promotions.record(group)
        if known is None or known.epoch != about.order.epoch:
            self._check(group, about, caller)
        async with self._deciding:
            known = self._promotions.record(group)
            if known is None or known.epoch < about.order.epoch:
                self._tries.check_present(group, about.attempt)
            return await self._promotions.promote(self._returning(about.order))

    async def _record(self, group: str, about: AboutEpoch, caller: Caller) -> Recorded:
        """Whoever is told that there is none goes on owning the group. So a promotion that is under way ends
        first, and one that is asked for late is refused.
        """
        async with self._deciding:
            record = self._promotions.record(group)
            if record is None or record.owner != self._core.identity.uuid or record.epoch != about.epoch:
                self._check(group, about, caller)
                await self._tries.end(group, about.attempt)
                return Recorded()
            return Recorded(promotion=record)

    def _returning(self, order: TakeOver) -> TakeOver:
        """The order, of the copies that are kept here."""
        return msgspec.structs.replace(order, copies=tuple(return_of(uuid) for uuid in order.copies))

    # --- after it ---

    async def _open(self, group: str, about: AboutPromotion, caller: Caller) -> Nothing:
        await self._opening.open(about.promotion, caller.name)
        return Nothing()

    async def _resume(self, group: str, about: AboutPromotion, caller: Caller) -> Nothing:
        await self._opening.resume(about.promotion)
        return Nothing()

    async def _take(self, group: str, about: AboutTaking, caller: Caller) -> Taken:
        self._check(group, about, caller)
        async with self._deciding:
            await self._tries.begin(group, about.attempt)
            return await self._addresses.put_back(group, forced=about.forced, say=lambda text: None)

    async def _give_up(self, group: str, about: AboutTry, caller: Caller) -> Nothing:
        self._check(group, about, caller)
        async with self._deciding:
            if await self._tries.end(group, about.attempt):
                await self._drop_addresses(group)
        return Nothing()

    async def _drop_addresses(self, group: str) -> None:
        guard = self._guards.get(group)
        if guard is not None:
            await self._addresses.drop(group, [address.address for address in guard.addresses])

    async def _script(self, group: str, about: AboutScript, caller: Caller) -> Ran:
        """Answered when it was started, or when it has ended, if it is waited for. That it has failed is an
        answer: it is not run again. What is asked for late, when another agent owns the group again, starts
        no services where nothing may be written.
        """
        guard = self._guards.get(group)
        if guard is not None and guard.superseded is not None and guard.superseded.epoch > about.facts.epoch:
            return Ran(problem=f"not run: {guard.superseded.owner_name} has taken over since")
        with trio.move_on_after(limits.FAILBACK_CALL_S / 2):  # else the next try asks how this one does
            result = await self._deeds.run_script(about.facts, about.attempt)
            return Ran(problem="" if result.succeeded else f"{result.path}: {result.how()}")
        raise ReplicatorError("it still runs")

    # --- reversal ---

    async def _adopt(self, group: str, about: AboutTry, caller: Caller) -> Nothing:
        self._check(group, about, caller)
        async with self._deciding:
            await self._tries.begin(group, about.attempt)
            await self._deeds.adopt(about.monitor, self._guards.find(group))
        return Nothing()

    async def _retire(self, group: str, about: About, caller: Caller) -> Nothing:
        guard = self._guards.get(group)
        if guard is not None:
            self._check(group, about, caller)
            await self._deeds.retire(guard)
        return Nothing()

    async def _disown(self, group: str, about: AboutTry, caller: Caller) -> Nothing:
        self._check(group, about, caller)
        async with self._deciding:
            if await self._tries.end(group, about.attempt):
                await self._deeds.disown(group)
        return Nothing()
