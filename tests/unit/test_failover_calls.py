"""Calls between agents about failover: who answers, and what nobody understands."""

import uuid
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from replicator import limits
from replicator.addresses import Address
from replicator.agent.failover.calls import PURPOSE, Caller, Calls
from replicator.agent.peers import Peers
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError, UsageError
from replicator.security.channel import Channel
from replicator.security.trust import Peer

GROUP = str(uuid.UUID(int=7))
PEER = Peer("u", "beta", "f", False)
THERE = Address("alpha", 1500)


class Body(msgspec.Struct, frozen=True):
    number: int


class Doubled(msgspec.Struct, frozen=True):
    number: int
    of: str


class Pair:
    """Two agents: what the first one asks, the second one answers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.asking = Calls(cast(Peers, self))
        self.answering = Calls(cast(Peers, None))
        self.refused: list[str] = []
        self._nursery = nursery

    async def call(self, address: Address, purpose: str, subject: str) -> Channel:
        assert (address, purpose, subject) == (THERE, PURPOSE, GROUP)
        here, there = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, there)
        return Channel(here, server=False)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        channel = Channel(stream, server=True)
        channel.peer = PEER
        async with stream:
            self.refused.append(await self.answering.serve(GROUP, channel))

    async def ask(self, action: str, body: msgspec.Struct, answer: Any) -> Any:
        return await self.asking.ask(THERE, action, GROUP, body, answer)


@pytest.fixture
async def pair(nursery: trio.Nursery) -> Pair:
    return Pair(nursery)


async def test_a_call_and_its_answer(pair: Pair) -> None:
    seen: list[tuple[str, Caller]] = []

    async def double(group: str, body: Body, caller: Caller) -> Doubled:
        seen.append((group, caller))
        return Doubled(2 * body.number, caller.name)

    pair.answering.register("double", Body, double)
    assert await pair.ask("double", Body(4), Doubled) == Doubled(8, "beta")
    assert seen == [(GROUP, Caller(PEER, ""))]
    assert pair.refused == [""]


@pytest.mark.parametrize("error", [UsageError("odd"), NotPermittedError("no"), ReplicatorError("not now")])
async def test_what_is_refused_is_told(pair: Pair, error: ReplicatorError) -> None:
    async def refuse(group: str, body: Body, caller: Caller) -> None:
        raise error

    pair.answering.register("x", Body, refuse)
    with pytest.raises(ReplicatorError, match=str(error)):
        await pair.ask("x", Body(1), type(None))


async def test_what_nobody_understands(pair: Pair) -> None:
    async def answer(group: str, body: Body, caller: Caller) -> str:
        return "text"

    pair.answering.register("x", Body, answer)
    with pytest.raises(UsageError, match="does not know 'y'"):
        await pair.ask("y", Body(1), str)
    with pytest.raises(ReplicatorError, match="does not understand"):
        await pair.ask("x", Doubled(cast(int, "many"), "z"), str)
    assert "unknown way" in pair.refused[-1]
    with pytest.raises(UnreachableError, match="unknown way"):
        await pair.ask("x", Body(1), Doubled)


@pytest.mark.parametrize(
    "data", [b"{}\n", b"[\n", b"\xff\n", b'{"action":"x","more":1}\n', b"[" * 100_000 + b"\n"]
)
async def test_what_is_no_call_is_refused_with_a_reason(data: bytes) -> None:
    here, there = trio.testing.memory_stream_pair()
    calls = Calls(cast(Peers, None))
    async with here, there:
        await here.send_all(data)
        assert "unknown way" in await calls.serve(GROUP, Channel(there, server=True))
        assert b"does not understand" in await here.receive_some()


async def test_whoever_says_nothing_is_given_up(autojump_clock: object) -> None:
    here, there = trio.testing.memory_stream_pair()
    async with here, there:
        said = await Calls(cast(Peers, None)).serve(GROUP, Channel(there, server=True))
        assert f"within {limits.GREETING_TIMEOUT_S:.0f} s" in said


def test_an_action_has_one_who_answers() -> None:
    async def nothing(group: str, body: Body, caller: Caller) -> None:
        pass

    calls = Calls(cast(Peers, None))
    calls.register("x", Body, nothing)
    with pytest.raises(AssertionError):
        calls.register("x", Body, nothing)
