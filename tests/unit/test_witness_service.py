"""An agent as a witness: who may ask, and that no answer leaves before what it depends on is on the disk."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from replicator import events, limits
from replicator.agent.core import NotFoundError
from replicator.agent.failover import witness_service
from replicator.agent.failover.calls import Caller
from replicator.agent.failover.witness_service import (
    PROMOTED,
    RENEW,
    STATUS,
    VOTE,
    WITHDRAW,
    Ask,
    WitnessService,
)
from replicator.agent.failover.witnesses import AgentWitness, check
from replicator.agent.state import StateError
from replicator.errors import ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.failover.lease import Renew, lapse_s
from replicator.failover.witness import Ballot, Tell, Withdraw, WitnessRefusedError
from replicator.failovers import Promotion
from replicator.paths import Home

G, S, T = "5a" * 16, "source", "target"
SOURCE, TARGET, STRANGER = (Caller(SimpleNamespace(uuid=n, name=n), "") for n in (S, T, "x"))  # type: ignore[arg-type]
RENEWAL = Renew(agent=S, other=T, epoch=0, lease_s=3.0, enforced=True, holds_lease=True)
BALLOT = Ballot(agent=T, candidate=T, owner=S, parent_epoch=0, epoch=1, attempt="1", lease_s=3.0, armed=True)
RECORD = Promotion(group=G, epoch=1, parent_epoch=0, owner=T, owner_name="beta")


class Agent:
    """A witness that can be restarted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 10.0
        self.start()

    def start(self) -> None:
        self.handlers: dict[str, Callable[..., Awaitable[Any]]] = {}
        self.told: list[int] = []
        self.ring = EventRing(lambda: 0, lambda event: self.told.append(event.id))
        core: Any = SimpleNamespace(home=Home(str(self.path)), events=self.ring)
        self.service = WitnessService(core, self, lambda: self.now_s)  # type: ignore[arg-type]

    def register(self, action: str, body: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[action] = handler

    async def ask(self, action: str, body: object, caller: Caller) -> Any:
        return await self.handlers[action](G, body, caller)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_a_group_from_its_first_lease_to_another_owner(agent: Agent) -> None:
    assert (await agent.ask(RENEW, RENEWAL, SOURCE)).granted
    assert not (await agent.ask(VOTE, BALLOT, TARGET)).given
    agent.now_s += lapse_s(3.0)
    assert (await agent.ask(VOTE, BALLOT, TARGET)).given
    view = agent.service.find(G[:6])
    assert (view.owner, view.epoch, view.candidate, view.lease_left_s) == (S, 0, T, 0.0)
    await agent.ask(PROMOTED, Tell(agent=T, promotion=RECORD), TARGET)
    answer = await agent.ask(RENEW, RENEWAL, SOURCE)
    assert not answer.granted and answer.promotion == RECORD
    (view,) = agent.service.list()
    assert (view.owner, view.epoch, view.candidate, view.seen_s) == (T, 1, "", 0.0)
    assert (await agent.ask(STATUS, Ask(), SOURCE)).epoch == 1
    ids = [event.id for event in (events.WITNESS_GROUP, events.WITNESS_VOTED, events.WITNESS_LEARNED)]
    assert agent.told == ids


async def test_what_it_has_answered_outlives_a_restart(agent: Agent) -> None:
    await agent.ask(RENEW, RENEWAL, SOURCE)
    agent.now_s += lapse_s(3.0)
    assert (await agent.ask(VOTE, BALLOT, TARGET)).given
    agent.start()
    assert not (await agent.ask(RENEW, RENEWAL, SOURCE)).granted
    await agent.ask(WITHDRAW, Withdraw(agent=T, attempt="1"), TARGET)
    agent.start()
    assert (await agent.ask(RENEW, RENEWAL, SOURCE)).granted


async def test_what_cannot_be_saved_is_not_answered(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    await agent.ask(RENEW, RENEWAL, SOURCE)
    agent.now_s += lapse_s(3.0)

    def full(path: str, value: object) -> None:
        raise StateError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(witness_service, "save_document", full)
        with pytest.raises(StateError):
            await agent.ask(VOTE, BALLOT, TARGET)
    assert (await agent.ask(RENEW, RENEWAL, SOURCE)).granted  # there is no vote


async def test_nobody_speaks_for_another_agent(agent: Agent) -> None:
    await agent.ask(RENEW, RENEWAL, SOURCE)
    for action, body in (
        (RENEW, RENEWAL),
        (VOTE, BALLOT),
        (PROMOTED, Tell(agent=T, promotion=RECORD)),
        (WITHDRAW, Withdraw(agent=T, attempt="1")),
        (STATUS, Ask()),
    ):
        with pytest.raises(WitnessRefusedError):
            await agent.ask(action, body, STRANGER)
    plain = Caller(None, "127.0.0.1")
    assert (await agent.ask(RENEW, RENEWAL, plain)).granted  # believed, as the configuration says


async def test_a_promotion_is_of_the_group_that_is_asked_about(agent: Agent) -> None:
    other = msgspec.structs.replace(RECORD, group="other")
    with pytest.raises(UsageError):
        await agent.ask(PROMOTED, Tell(agent=T, promotion=other), TARGET)


async def test_a_group_is_forgotten_when_nobody_asks_about_it_any_more(agent: Agent) -> None:
    await agent.ask(RENEW, RENEWAL, SOURCE)
    with pytest.raises(ReplicatorError, match="remove its monitor"):
        await agent.service.forget(G)
    agent.now_s += limits.WITNESS_SEEN_S
    assert (await agent.service.forget(G)).group == G
    agent.start()
    assert agent.service.list() == []
    for group in (G, ""):
        with pytest.raises(NotFoundError):
            agent.service.find(group)


def test_a_damaged_file_is_no_empty_one(agent: Agent) -> None:
    (agent.path / "witness.json").write_text("{")
    with pytest.raises(StateError):
        agent.start()
    (agent.path / "witness.json").write_text('{"version": 99}')
    with pytest.raises(ReplicatorError, match="newer release"):
        agent.start()


async def test_a_witness_is_asked_as_an_agent_asks(agent: Agent) -> None:
    """The client's actions and answers are those of the service."""

    class Calls:
        async def ask(
            self, address: object, action: str, group: str, body: Any, answer: type, timeout_s: float = 0.0
        ) -> Any:
            said = msgspec.json.decode(msgspec.json.encode(body), type=type(body))
            caller = TARGET if said.agent == T else SOURCE
            return msgspec.convert(msgspec.to_builtins(await agent.ask(action, said, caller)), answer)

    client = AgentWitness(Calls(), None)  # type: ignore[arg-type]
    assert (await client.renew(G, RENEWAL)).granted
    assert not (await client.vote(G, BALLOT)).given
    assert (await client.promoted(G, Tell(agent=T, promotion=RECORD))).epoch == 1
    assert (await client.withdraw(G, Withdraw(agent=T, attempt="1"))).promotion == RECORD
    await client.watch(G)


@pytest.mark.parametrize("name", ["host", "host:1500", "etcd://a:2379,b/prefix", "etcds://[::1]/p"])
def test_how_a_witness_is_named(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    "name", ["", "a:b:c", "etcd://", "etcd://host:2379", "etcd:///prefix", "etcd://a:x/p"]
)
def test_how_it_is_not(name: str) -> None:
    with pytest.raises(UsageError):
        check(name)
