"""Heartbeats between two agents: datagrams once the key is there, calls wherever these get no answer."""

import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
from kit.dtd import free_port

from replicator.addresses import Address
from replicator.agent.core import Core
from replicator.agent.failover.calls import Caller, Calls
from replicator.agent.failover.heartbeats import Begin, Begun, HeartbeatAsker, HeartbeatKeeper
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError, UsageError
from replicator.events import EventRing
from replicator.failover.probes import Silent
from replicator.failovers import Monitor, MonitorSettings, WatchedAddress

GROUP = "11111111-1111-1111-1111-111111111111"
ADDRESS = WatchedAddress(address="127.0.0.1/8", interval_s=1.0)


class Pair:
    """A source that answers heartbeats, and whoever asks for them, without TLS in between."""

    def __init__(self) -> None:
        self.listen = Address("127.0.0.1", free_port())
        self.identity = SimpleNamespace(uuid="source", name="alpha")
        self.events = EventRing(lambda: 0, lambda event: None)
        self.calls = 0
        self.refusal: ReplicatorError | None = None
        self.found: list[str] = []
        self._handler: Callable[..., Awaitable[Begun]]
        self.keeper = HeartbeatKeeper(cast(Core, self), cast(Calls, self))
        self.asker = HeartbeatAsker(cast(Calls, self), self._found)
        self.monitor = Monitor(
            uuid=GROUP,
            name="web",
            settings=MonitorSettings(
                source_host="127.0.0.1", source_port=self.listen.port, addresses=(ADDRESS,)
            ),
        )

    def register(self, action: str, body: type[Begin], handler: Callable[..., Awaitable[Begun]]) -> None:
        self._handler = handler

    async def ask(self, address: Address, action: str, group: str, body: Begin, answer: type[Begun]) -> Any:
        assert (address, group, answer) == (self.listen, GROUP, Begun)
        self.calls += 1
        if self.refusal is not None:
            raise self.refusal
        return await self._handler(group, body, Caller(None, "127.0.0.2"))

    async def _found(self, monitor: Monitor, begun: Begun) -> None:
        self.found.append(begun.agent_name)

    async def beat(self, timeout_s: float = 5.0) -> None:
        await self.asker.ask(self.monitor, ADDRESS, timeout_s)


@pytest.fixture
async def pair(nursery: trio.Nursery) -> Pair:
    made = Pair()
    nursery.start_soon(made.keeper.run)
    return made


async def test_one_call_and_then_datagrams(pair: Pair) -> None:
    for _ in range(5):
        await pair.beat()
    assert pair.calls == 1 and pair.found == ["alpha"]
    assert [event.id for event in pair.events.since()] == [9307]


async def test_a_source_that_has_forgotten_the_key_gets_it_again(pair: Pair) -> None:
    await pair.beat()
    pair.keeper._answerer.unwatch(GROUP)
    began_s = trio.current_time()
    await pair.beat()
    assert pair.calls == 2 and trio.current_time() - began_s > 0.2  # datagrams come first
    await pair.beat()
    assert pair.calls == 2


async def test_a_source_that_does_not_listen_is_called(pair: Pair) -> None:
    """Another program has the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(pair.listen)
        for _ in range(3):
            await pair.beat()
    assert pair.calls == 3
    assert [event.id for event in pair.events.since()] == [9308, 9307]
    await pair.beat()
    await pair.beat()
    assert pair.calls == 4


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (UnreachableError("nobody there"), "nobody there"),
        (NotPermittedError("not paired"), "refuses: not paired"),
    ],
)
async def test_why_there_is_no_answer(pair: Pair, refusal: ReplicatorError, text: str) -> None:
    pair.refusal = refusal
    with pytest.raises(Silent, match=text):
        await pair.beat(0.5)


async def test_another_agent_is_no_sign_of_life(pair: Pair) -> None:
    pair.monitor = msgspec.structs.replace(pair.monitor, source_uuid="somebody")
    for _ in range(2):
        with pytest.raises(Silent, match="another agent answers there: alpha"):
            await pair.beat(0.5)
    pair.monitor = msgspec.structs.replace(pair.monitor, source_uuid="source")
    await pair.beat()


async def test_a_call_that_hangs_is_made_once_at_a_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object) -> None:
        pair.calls += 1
        await trio.sleep_forever()

    monkeypatch.setattr(pair, "ask", hang)
    async with trio.open_nursery() as nursery:

        async def silent() -> None:
            with pytest.raises(Silent, match="no answer within"):
                await pair.beat(0.3)

        for _ in range(4):
            nursery.start_soon(silent)
    assert pair.calls == 1
    with pytest.raises(Silent):
        await pair.beat(0.1)
    assert pair.calls == 2


@pytest.mark.parametrize("key", ["", "00", "x" * 64, "0" * 62])
async def test_keys_that_are_none(pair: Pair, key: str) -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        await pair._handler(GROUP, Begin(key=key), Caller(None, ""))
