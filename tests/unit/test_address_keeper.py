"""What an agent does about addresses when it starts, and whom it tells of a new owner: with fakes."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.address_keeper import AddressKeeper
from replicator.agent.failover.addresses import GroupAddresses
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.dropping import Dropped, Dropping
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Guards
from replicator.agent.failover.telling import TellingAll
from replicator.agent.failover.witnesses import Witnesses
from replicator.errors import ReplicatorError, UnreachableError
from replicator.failover.addresses import ConflictError
from replicator.failovers import Guard, Monitor, MonitorSettings, Phase, Promotion


def monitor(name: str, phase: Phase, **settings: Any) -> Monitor:
    return Monitor(
        uuid=name, name=name, settings=MonitorSettings(source_host="alpha", **settings), phase=phase
    )


class World:
    """Groups, addresses and events of an agent. `conflicts`: how often that of "web" is in use elsewhere."""

    def __init__(self, *monitors: Monitor, conflicts: int = 0) -> None:
        self.monitors = {m.uuid: m for m in monitors}
        self.conflicts = conflicts
        self.guards: dict[str, Guard] = {}
        self.given_up: set[str] = set()
        self.restored: list[str] = []
        self.told: list[str] = []

    def all(self) -> list[Monitor]:
        return list(self.monitors.values())

    def get(self, uuid: str) -> Monitor | None:
        return self.monitors.get(uuid)

    async def groups(self) -> list[str]:
        return [*self.monitors, *self.guards, "left"]

    async def give_up_all(self, groups: Iterable[str]) -> None:
        self.given_up = set(groups)

    async def restore(self, group: str) -> None:
        if group == "web" and self.conflicts:
            self.conflicts -= 1
            raise ConflictError("10.0.0.5/24 is in use: 02:… answers on eth0")
        self.restored.append(group)

    def add(self, type_: Any, **fields: object) -> None:
        self.told.append(type_.text.format(**fields))

    def keeper(self) -> AddressKeeper:
        core = cast(Core, SimpleNamespace(events=self))
        guards = cast(Guards, SimpleNamespace(get=self.guards.get))
        return AddressKeeper(core, cast(Groups, self), guards, cast(GroupAddresses, self))


async def test_addresses_of_groups_that_are_owned_are_put_up_and_others_go() -> None:
    phases = {phase.name: phase for phase in Phase}
    world = World(*(monitor(name, phase) for name, phase in phases.items()))
    await world.keeper().run()
    assert world.given_up == {*phases} - {"TAKING_OVER", "ACTIVE", "HANDING_BACK"}
    assert sorted(world.restored) == ["ACTIVE", "HANDING_BACK", "left"]  # the other one is its procedure's


@pytest.mark.parametrize("superseded", [False, True])
async def test_a_source_keeps_what_it_took_as_a_target(superseded: bool) -> None:
    """It has stayed the owner, and is watched by the former one now."""
    world = World()
    record = PROMOTION if superseded else None
    world.guards["web"] = Guard(group="web", target_host="10.0.0.2", target_port=1500, superseded=record)
    await world.keeper().run()
    assert (world.given_up, "web" in world.restored) == ({"web"} if superseded else set(), not superseded)


async def test_one_that_is_in_use_is_tried_again(autojump_clock: object) -> None:
    world = World(monitor("web", Phase.ACTIVE), conflicts=3)
    await world.keeper().run()
    assert sorted(world.restored) == ["left", "web"]
    assert trio.current_time() >= 3 * limits.ADDRESS_RETRY_S
    assert len(world.told) == 1 and "02:… answers" in world.told[0]


async def test_who_learns_that_he_does_not_own_it_any_more_tries_no_more(autojump_clock: object) -> None:
    world = World(monitor("web", Phase.ACTIVE), conflicts=10**6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.keeper().run)
        await trio.sleep(3 * limits.ADDRESS_RETRY_S)
        world.monitors["web"] = monitor("web", Phase.IDLE)
    assert "web" not in world.restored


# --- a source that drops addresses ---


class Owner:
    """Calls, guards and addresses of a superseded source. `away`: how often its owner cannot be reached."""

    def __init__(self, here: list[str], away: int = 0) -> None:
        self.here = here
        self.away = away
        self.asked: list[str] = []
        self.handler: Any = None
        self.announced: list[str] = []
        self.superseded: Promotion | None = PROMOTION
        self.given_back = 0

    def register(self, action: str, body: type, handler: Any) -> None:
        self.handler = handler

    async def ask(self, address: Address, action: str, group: str, body: object, answer: Any) -> object:
        await trio.lowlevel.checkpoint()
        if self.away:
            self.away -= 1
            raise UnreachableError("no route to host")
        self.asked.append(f"{action} {group} at {address}")
        return answer(announced=True)

    def get(self, key: str) -> Guard:
        return Guard(group=key, target_host="10.0.0.2", target_port=1500, superseded=self.superseded)

    async def drop(self, group: str, wanted: list[str]) -> list[str]:
        found, self.here = self.here, []
        return found

    async def returned(self, group: str) -> int:
        return self.given_back

    async def set_returned(self, group: str, epoch: int) -> None:
        self.given_back = epoch

    async def put_back(self, group: str, *, forced: bool, say: object) -> None:
        self.here = ["10.0.0.5/24 on eth0"]

    async def announce(self, group: str) -> None:
        self.announced.append(group)

    def dropping(self, world: World) -> Dropping:
        calls, guards = cast(Calls, self), cast(Guards, self)
        return Dropping(calls, cast(Groups, world), guards, cast(GroupAddresses, self))


@pytest.mark.parametrize("away", [0, 3])
async def test_the_owner_is_told_of_dropped_addresses(autojump_clock: object, away: int) -> None:
    owner = Owner(["10.0.0.5/24 on eth0"], away)
    dropping = owner.dropping(World())
    await dropping.superseded("g", ["10.0.0.5/24"])  # before it runs: at the start of an agent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dropping.run)
        await trio.sleep(limits.ADDRESS_RETRY_S * (away + 1))
        assert owner.asked == ["dropped g at 10.0.0.2:1500"]
        await dropping.superseded("g", ["10.0.0.5/24"])  # there is nothing any more
        await trio.sleep(60)
        assert len(owner.asked) == 1
        owner.here = ["10.0.0.5/24 on eth0"]  # the system has put it up again
        await trio.sleep(limits.ADDRESS_RETRY_S + 1)
        assert owner.here == [] and len(owner.asked) == 2
        owner.superseded = None  # a failback
        await trio.sleep(limits.ADDRESS_RETRY_S + 1)
        owner.here = ["10.0.0.5/24 on eth0"]
        await trio.sleep(60)
        assert owner.here != []
        nursery.cancel_scope.cancel()


async def test_what_the_owner_has_given_back_stays_over_a_restart(autojump_clock: object) -> None:
    """On the way home addresses may move before the epoch does."""
    owner = Owner(["10.0.0.5/24 on eth0"])
    async with trio.open_nursery() as nursery:
        dropping = owner.dropping(World())
        nursery.start_soon(dropping.run)
        await dropping.superseded("g", ["10.0.0.5/24"])
        await dropping.put_back("g", forced=False, say=lambda text: None)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    await owner.dropping(World()).superseded("g", ["10.0.0.5/24"])  # of the next agent
    assert owner.here != []
    assert await owner.dropping(World()).drop("g", ["10.0.0.5/24"]) != []  # the owner takes them again
    owner.here = ["10.0.0.5/24 on eth0"]
    await owner.dropping(World()).superseded("g", ["10.0.0.5/24"])
    assert owner.here == []


async def test_a_later_owner_takes_what_an_earlier_one_gave_back() -> None:
    owner = Owner(["10.0.0.5/24 on eth0"])
    owner.given_back = PROMOTION.epoch
    owner.superseded = msgspec.structs.replace(PROMOTION, epoch=PROMOTION.epoch + 2)
    await owner.dropping(World()).superseded("g", ["10.0.0.5/24"])
    assert owner.here == []


@pytest.mark.parametrize("phase", Phase)
async def test_only_an_owner_announces(phase: Phase) -> None:
    owner = Owner([])
    owner.dropping(World(monitor("g", phase)))
    answer = await owner.handler("g", Dropped(), Caller(None, "10.0.0.1"))
    owns = phase in (Phase.TAKING_OVER, Phase.ACTIVE, Phase.HANDING_BACK)
    assert answer.announced is owns
    assert owner.announced == (["g"] if owns else [])


PROMOTION = Promotion(group="g", epoch=1, parent_epoch=0, owner="me", owner_name="beta")


class Witness:
    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.told: list[Promotion] = []

    def at(self, name: str) -> "Witness":
        return self

    async def promoted(self, group: str, tell: Any) -> None:
        if not self.answers:
            await trio.sleep_forever()
        self.told.append(tell.promotion)


@pytest.mark.parametrize("answers", [True, False])
async def test_nobody_waits_for_those_that_are_gone(autojump_clock: object, answers: bool) -> None:
    witness = Witness(answers)
    telling = TellingAll(cast(Witnesses, witness))

    async def refuses(monitor: Monitor, promotion: Promotion) -> None:
        raise UnreachableError("no route to host")

    telling.others = {"the source": refuses}
    said: list[str] = []
    group = monitor("web", Phase.TAKING_OVER, witness="gamma")
    with pytest.raises(ReplicatorError) as caught:
        await telling.tell(group, PROMOTION, said.append)
    assert "the source: no route to host" in str(caught.value)
    assert ("witness gamma: no answer yet" in str(caught.value)) is not answers
    assert said == (["witness gamma knows"] if answers else [])
    assert trio.current_time() <= limits.FAILOVER_TELL_S
    assert witness.told == ([PROMOTION] if answers else [])
