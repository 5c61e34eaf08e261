"""What the owner of a group says to home in a failback, and how it finds it (FB-03).

After a failover the owner may have the very address by which it knew the source. So home is whoever answers
with the uuid of the source's agent: by the way of the return connection, or at the address of the monitor.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import TypeVar

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent.failover.calls import Calls, Nothing
from replicator.agent.failover.errands import Errand
from replicator.agent.failover.failback_parts import Held, Say
from replicator.agent.failover.procedure import Facts, Taken
from replicator.bounds import Id
from replicator.errors import ReplicatorError, UnreachableError
from replicator.failover.handback import Home
from replicator.failovers import Monitor, Promotion, TakeOver

T = TypeVar("T")

# Actions, owner → home. Each may come again.
LOOK, PREPARE, HOLD, RELEASE, PROMOTE, RECORD, OPEN, RESUME, TAKE, GIVE_UP, ADOPT, DISOWN, RETIRE, SCRIPT = (
    "home-look",
    "home-prepare",
    "home-hold",
    "home-release",
    "home-promote",
    "home-record",
    "home-open",
    "home-resume",
    "home-take",
    "home-give-up",
    "home-adopt",
    "home-disown",
    "home-retire",
    "home-script",
)


class About(msgspec.Struct, frozen=True, kw_only=True):
    """`agent`: of the owner, which says so of itself. `monitor`: as it is there."""

    agent: Id
    monitor: Monitor


class AboutTry(About, frozen=True, kw_only=True):
    """`attempt`: a uuid for this failback (`home_tries.py`); by it the witness was asked, too."""

    attempt: Id


class AboutOrder(AboutTry, frozen=True, kw_only=True):
    """`order.copies`: uuids of the forward connections."""

    order: TakeOver


class AboutPromotion(About, frozen=True, kw_only=True):
    promotion: Promotion


class AboutEpoch(AboutTry, frozen=True, kw_only=True):
    epoch: int


class AboutScript(About, frozen=True, kw_only=True):
    facts: Facts
    attempt: str


class AboutTaking(AboutTry, frozen=True, kw_only=True):
    forced: bool = False


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    promotion: Promotion | None = None


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """A script. `problem`: how it failed; "": it has not."""

    problem: str = ""


class HomeCalls:
    """The other side of a failback, over calls: see `failback_parts.HomeSide`. `ways`: where the home of a
    monitor may be, the likeliest first.
    """

    def __init__(self, calls: Calls, agent: str, ways: Callable[[Monitor], Sequence[Address]]) -> None:
        self._calls = calls
        self._agent = agent
        self._ways = ways
        self._found: dict[str, Address] = {}  # by group: where home was met last

    # --- where it is ---

    async def look(self, monitor: Monitor) -> Home:
        """One try on each way. Raises nothing."""
        try:
            return (await self._find(monitor))[1]
        except ReplicatorError as error:
            return Home(unreached=str(error))

    async def _find(self, monitor: Monitor) -> tuple[Address, Home]:
        """Raises UnreachableError: nobody is home."""
        reasons = []
        known = self._found.get(monitor.uuid)
        ways = [known] if known is not None else []
        for address in dict.fromkeys([*ways, *self._ways(monitor)]):
            about = About(agent=self._agent, monitor=monitor)
            try:
                home = await self._calls.ask(address, LOOK, monitor.uuid, about, Home)
                home = msgspec.structs.replace(home, host=str(address))  # it knows only where it listens
            except ReplicatorError as error:
                reasons.append(str(error))
                continue
            if home.agent == self._agent:
                reasons.append(f"{address} is this agent")
            elif monitor.source_uuid and home.agent != monitor.source_uuid:
                reasons.append(f"{address} is {home.name}, not {monitor.source_name}")
            else:
                self._found[monitor.uuid] = address
                return address, home
        raise UnreachableError("; ".join(reasons) or "nobody knows where it is")

    async def _ask(
        self,
        monitor: Monitor,
        action: str,
        body: About,
        answer: type[T],
        patience_s: float = limits.FAILBACK_FIND_S,
    ) -> T:
        """Asked until it answers, or nobody has patience. Raises UnreachableError, or what it refuses."""
        deadline_s = trio.current_time() + patience_s
        while True:
            try:
                address = self._found.get(monitor.uuid) or (await self._find(monitor))[0]
                return await self._calls.ask(
                    address, action, monitor.uuid, body, answer, limits.FAILBACK_CALL_S
                )
            except UnreachableError:
                self._found.pop(monitor.uuid, None)
                if trio.current_time() + limits.FAILBACK_RETRY_S > deadline_s:
                    raise
                await trio.sleep(limits.FAILBACK_RETRY_S)

    # --- what it does ---

    async def prepare(self, monitor: Monitor) -> None:
        """See `failback_parts.HomeSide`. What is in the way for `limits.FAILBACK_PREPARE_S` ends it."""
        about = About(agent=self._agent, monitor=monitor)
        since_s, waits = trio.current_time(), ""
        while True:
            home = await self._ask(monitor, PREPARE, about, Home)
            if home.is_prepared:
                return
            if home.waits != waits:
                since_s, waits = trio.current_time(), home.waits
            if waits and trio.current_time() - since_s > limits.FAILBACK_PREPARE_S:
                raise ReplicatorError(f"{home.name}: {waits}")
            await trio.sleep(limits.FAILBACK_LOOK_S)

    async def hold(self, monitor: Monitor, order: TakeOver, attempt: str, say: Say) -> Held:
        body = AboutOrder(agent=self._agent, monitor=monitor, order=order, attempt=attempt)
        return await self._ask(monitor, HOLD, body, Held, limits.FAILBACK_PATIENCE_S)  # programs wait

    async def promote(self, monitor: Monitor, order: TakeOver, attempt: str) -> Promotion:
        body = AboutOrder(agent=self._agent, monitor=monitor, order=order, attempt=attempt)
        return await self._ask(monitor, PROMOTE, body, Promotion)

    async def promotion(self, monitor: Monitor, epoch: int, attempt: str) -> Promotion | None:
        """However long that takes: programs wait, but nobody else can know."""
        body = AboutEpoch(agent=self._agent, monitor=monitor, epoch=epoch, attempt=attempt)
        while True:
            try:
                return (await self._ask(monitor, RECORD, body, Recorded, inf)).promotion
            except ReplicatorError:  # its disk is full, or whatever it may be
                await trio.sleep(limits.FAILBACK_RETRY_S)

    async def open(self, monitor: Monitor, promotion: Promotion, say: Say) -> None:
        body = AboutPromotion(agent=self._agent, monitor=monitor, promotion=promotion)
        await self._ask(monitor, OPEN, body, Nothing)

    async def resume(self, monitor: Monitor, promotion: Promotion) -> None:
        body = AboutPromotion(agent=self._agent, monitor=monitor, promotion=promotion)
        await self._ask(monitor, RESUME, body, Nothing)

    async def take(self, monitor: Monitor, attempt: str, *, forced: bool, say: Say) -> Taken:
        """Whoever had an address until now may just be heard a last time."""
        body = AboutTaking(agent=self._agent, monitor=monitor, attempt=attempt, forced=forced)
        deadline_s = trio.current_time() + limits.FAILBACK_PATIENCE_S
        while True:
            try:
                taken = await self._ask(monitor, TAKE, body, Taken)
                break
            except UnreachableError:
                raise
            except ReplicatorError:
                if trio.current_time() > deadline_s:
                    raise
                await trio.sleep(limits.FAILBACK_RETRY_S / 4)
        for address in taken.taken:
            say(f"home has {address}")
        return taken

    async def give_up(self, monitor: Monitor, attempt: str) -> None:
        about = AboutTry(agent=self._agent, monitor=monitor, attempt=attempt)
        await self._ask(monitor, GIVE_UP, about, Nothing, limits.FAILBACK_PATIENCE_S)

    async def adopt(self, monitor: Monitor, attempt: str) -> None:
        about = AboutTry(agent=self._agent, monitor=monitor, attempt=attempt)
        await self._ask(monitor, ADOPT, about, Nothing)

    async def disown(self, monitor: Monitor, attempt: str) -> None:
        about = AboutTry(agent=self._agent, monitor=monitor, attempt=attempt)
        await self._ask(monitor, DISOWN, about, Nothing)

    async def retire(self, monitor: Monitor) -> None:
        await self._ask(monitor, RETIRE, About(agent=self._agent, monitor=monitor), Nothing)

    async def do(self, errand: Errand) -> str:
        """One try: see `errands.Do`."""
        monitor, attempt = errand.monitor, errand.attempt
        address = self._found.get(monitor.uuid) or (await self._find(monitor))[0]
        timeout_s = limits.FAILBACK_CALL_S
        if errand.facts is not None:
            facts = errand.facts
            script = AboutScript(agent=self._agent, monitor=monitor, facts=facts, attempt=attempt)
            ran = await self._calls.ask(address, SCRIPT, monitor.uuid, script, Ran, timeout_s)
            return ran.problem
        assert errand.order is not None
        order = AboutOrder(agent=self._agent, monitor=monitor, order=errand.order, attempt=attempt)
        await self._calls.ask(address, RELEASE, monitor.uuid, order, Nothing, timeout_s)
        return ""
