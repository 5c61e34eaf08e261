"""A former source takes over from an owner that is lost; what that one does when it comes back."""

import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from replicator.agent.core import NotFoundError
from replicator.agent.failover.deposed import Deposed
from replicator.agent.failover.taking_back import TakingBack
from replicator.agent.state import Away
from replicator.errors import ReplicatorError
from replicator.failovers import (
    CopyFork,
    Guard,
    GuardedAddress,
    Lapse,
    Monitor,
    MonitorSettings,
    Phase,
    Promotion,
    Script,
    ScriptKind,
    Take,
)

ME, OWNER, GROUP, CON = (str(uuid.UUID(int=n)) for n in range(1, 5))
RECORD = Promotion(group=GROUP, epoch=3, parent_epoch=2, owner=OWNER, owner_name="beta")
GUARD = Guard(
    group=GROUP, name="web", target_uuid=OWNER, target_name="beta", target_host="10.0.0.6", target_port=1501,
    witness="gamma", lapse=Lapse.SUSPEND, copies=(CON,), epoch=2, superseded=RECORD,
    addresses=(GuardedAddress(address="10.0.0.5/24"),),
)  # fmt: skip
AWAY = Away(connection=CON, copy="r", group=GROUP, epoch=3, told=True)
SCRIPTS = {ScriptKind.POST_FAILOVER: Script(path="/etc/start")}


class Agent:
    """What `TakingBack` and `Deposed` use of one."""

    def __init__(self, *, guards: Sequence[Guard] = (), monitors: Sequence[Monitor] = ()) -> None:
        self.done: list[object] = []
        self.guards_known = list(guards)
        self.monitors_known = list(monitors)
        self.on_superseded: list[Any] = []
        self.identity = SimpleNamespace(uuid=ME)
        self.state = SimpleNamespace(away=(AWAY,))
        self.problem = ""

    # groups and guards
    def all(self) -> tuple[Monitor, ...]:
        return tuple(self.monitors_known)

    def get(self, group: str) -> Monitor | None:
        return next((monitor for monitor in self.monitors_known if monitor.uuid == group), None)

    async def remove(self, group: str) -> None:
        await self._do("remove", group)
        self.monitors_known.clear()

    async def note(self, monitor: Monitor, what: str, text: str) -> None:
        await self._do("note", what)

    @property
    def guards(self) -> Any:
        def find(key: str) -> Guard:
            for guard in self.guards_known:
                if key in (guard.name, guard.group):
                    return guard
            raise NotFoundError(key)

        return SimpleNamespace(
            find=find,
            all=lambda: tuple(self.guards_known),
            get=lambda group: next((g for g in self.guards_known if g.group == group), None),
            on_superseded=self.on_superseded,
        )

    # deeds
    async def adopt(self, monitor: Monitor, guard: Guard) -> None:
        await self._do("adopt", monitor)
        self.monitors_known.append(monitor)

    async def retire(self, guard: Guard) -> None:
        await self._do("retire", guard.group)

    async def now(self, key: str, *, forced: bool, source_is_off: bool) -> str:
        await self._do("now", key, source_is_off)
        return key

    # failback
    async def without_home(self, group: str) -> None:
        if self.problem:
            raise ReplicatorError(self.problem)
        await self._do("without home", group)

    # addresses, promotions, copies
    async def give_up(self, monitor: Monitor, say: object) -> None:
        if self.problem:
            raise ReplicatorError(self.problem)
        await self._do("give up", monitor.name)

    def record(self, group: str) -> Promotion:
        return Promotion(
            group=GROUP, epoch=2, parent_epoch=1, owner=ME, owner_name="me", copies=(_fork("old"),)
        )

    async def discard(self, connection: str) -> None:
        await self._do("discard", connection)

    async def _do(self, *what: object) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append(what)

    def taking_back(self) -> TakingBack:
        me = cast(Any, self)
        return TakingBack(me, self.guards, me, me, me, lambda: SCRIPTS, me)

    def deposed(self) -> Deposed:
        me = cast(Any, self)
        deposed = Deposed(me, self.guards, me, me, me)
        deposed._copies = me
        return deposed


def _fork(connection: str) -> CopyFork:
    return CopyFork(connection=connection, parent_epoch=1)


async def test_a_copy_becomes_the_target_of_its_group_and_fails_over() -> None:
    agent = Agent(guards=[GUARD])
    with pytest.raises(ReplicatorError, match="lost for good, or certainly off") as told:
        await agent.taking_back().now("web", forced=False, source_is_off=False)
    assert "\n" not in str(told.value) and agent.done == []
    await agent.taking_back().now("web", forced=False, source_is_off=True)
    (_, monitor), now = cast(Any, agent.done)
    assert now == ("now", GROUP, True)
    assert (monitor.uuid, monitor.name, monitor.epoch, monitor.phase) == (GROUP, "web", 3, Phase.WATCHING)
    settings = monitor.settings
    assert [address.address for address in settings.taken] == ["10.0.0.5/24"] and not settings.automatic
    assert (settings.witness, settings.lapse, settings.scripts) == ("gamma", Lapse.SUSPEND, SCRIPTS)
    await agent.taking_back().now("web", forced=False, source_is_off=True)  # again: it is a monitor by now
    assert [entry[0] for entry in cast(Any, agent.done)] == ["adopt", "now", "now"]


async def test_an_owner_whose_home_is_lost_in_a_failback() -> None:
    settings = MonitorSettings(source_host="10.0.0.5")
    monitor = Monitor(
        uuid=GROUP, name="web", settings=settings, source_name="alpha", phase=Phase.HANDING_BACK
    )
    agent = Agent(monitors=[monitor])
    with pytest.raises(ReplicatorError, match="alpha is lost for good, or certainly off") as told:
        await agent.taking_back().now("web", forced=False, source_is_off=False)
    assert "--abandon" in str(told.value) and agent.done == []
    agent.problem = "it can be taken back"
    with pytest.raises(ReplicatorError, match="it can be taken back"):
        await agent.taking_back().now("web", forced=False, source_is_off=True)
    agent.problem = ""
    await agent.taking_back().now("web", forced=False, source_is_off=True)
    assert agent.done == [("without home", GROUP), ("now", "web", True)]
    agent.monitors_known = [msgspec.structs.replace(monitor, phase=Phase.ASKING)]
    await agent.taking_back().now("web", forced=False, source_is_off=False)
    assert agent.done[2:] == [("now", "web", False)]


async def test_a_group_without_addresses() -> None:
    agent = Agent(guards=[msgspec.structs.replace(GUARD, addresses=(), lapse=Lapse.NONE)])
    await agent.taking_back().now("web", forced=False, source_is_off=True)
    settings = cast(Any, agent.done)[0][1].settings
    assert settings.take is Take.NONE and settings.addresses == () and settings.lapse is None


async def test_what_is_no_copy_is_not_taken_over() -> None:
    agent = Agent(guards=[GUARD])
    for away in ((), (msgspec.structs.replace(AWAY, told=False),)):
        agent.state.away = away
        with pytest.raises(ReplicatorError, match="dtctl failover open web --even-if-two-masters"):
            await agent.taking_back().now("web", forced=False, source_is_off=True)
    agent = Agent(guards=[msgspec.structs.replace(GUARD, superseded=None)])
    with pytest.raises(ReplicatorError, match="lost it to nobody"):
        await agent.taking_back().now("web", forced=False, source_is_off=True)
    assert agent.done == []


async def test_a_monitor_comes_first() -> None:
    monitor = Monitor(uuid="another", name="web", settings=MonitorSettings(source_host="x"))
    agent = Agent(guards=[GUARD], monitors=[monitor])
    await agent.taking_back().now("web", forced=False, source_is_off=False)
    assert agent.done == [("now", "web", False)]


async def test_its_former_time_as_a_source_ends_with_its_own_promotion_only() -> None:
    agent = Agent(guards=[GUARD])
    await agent.taking_back().before_opening(RECORD)
    assert agent.done == []
    await agent.taking_back().before_opening(msgspec.structs.replace(RECORD, owner=ME, epoch=4))
    assert agent.done == [("retire", GROUP)]


async def run_once(deposed: Deposed) -> None:
    with trio.move_on_after(1):
        await deposed.run()


async def test_an_owner_that_was_superseded_is_no_target_any_more(autojump_clock: object) -> None:
    settings = MonitorSettings(source_host="alpha")
    owner = Monitor(uuid=GROUP, name="web", settings=settings, phase=Phase.ACTIVE, epoch=2)
    agent = Agent(guards=[GUARD], monitors=[owner])
    agent.problem = "the interface is gone"
    await run_once(agent.deposed())
    assert agent.done == []  # tried again
    agent.problem = ""
    await run_once(agent.deposed())
    assert [entry[0] for entry in cast(Any, agent.done)] == ["give up", "discard", "note", "remove"]


@pytest.mark.parametrize("phase", [Phase.WATCHING, Phase.HANDING_BACK, Phase.TAKING_OVER])
async def test_on_the_way_home_the_failback_does_it(autojump_clock: object, phase: Phase) -> None:
    settings = MonitorSettings(source_host="alpha")
    agent = Agent(
        guards=[GUARD], monitors=[Monitor(uuid=GROUP, name="web", settings=settings, phase=phase, epoch=2)]
    )
    await run_once(agent.deposed())
    assert agent.done == []


async def test_a_guard_that_is_not_held_deposes_nobody(autojump_clock: object) -> None:
    settings = MonitorSettings(source_host="alpha")
    owner = Monitor(uuid=GROUP, name="web", settings=settings, phase=Phase.ACTIVE, epoch=2)
    agent = Agent(guards=[msgspec.structs.replace(GUARD, superseded=None)], monitors=[owner])
    await run_once(agent.deposed())
    assert agent.done == []
