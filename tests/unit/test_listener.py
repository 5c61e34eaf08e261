"""The listening port: who is let in, who is closed with a reason, and how many may wait."""

import errno
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.listener import Greeter, ListenError, open_listeners
from replicator.errors import ReplicatorError
from replicator.events import Event, EventRing
from replicator.security.channel import Channel

UUID = "6f0e3c52-9d1b-4c55-a8f1-3f6b9c1d2e77"
GREETING = f"REPLICATOR 1 replicate {UUID}\n".encode()


class Door:
    """A listening greeter on a real port, and what it did."""

    def __init__(self) -> None:
        self.adopted: list[tuple[str, bytes]] = []
        self.restores: list[tuple[str, bytes]] = []
        self.events: list[Event] = []
        self.refuse = ""
        self.port = 0
        self.hook: Callable[..., Awaitable[str]] | None = None  # instead of what follows
        self._ring = EventRing(lambda: 0, self.events.append)

    async def adopt(self, uuid: str, descriptor: int, data: bytes, handover: object) -> None:
        if self.hook is not None:
            await self.hook()
        if self.refuse:
            raise ReplicatorError(self.refuse)
        self.adopted.append((uuid, data))

    async def restore(self, uuid: str, channel: Channel) -> str:
        self.restores.append((uuid, bytes(channel.rest)))
        if self.hook is not None:
            return await self.hook()
        return self.refuse

    async def open(self, nursery: trio.Nursery) -> None:
        listeners = await open_listeners(Address("127.0.0.1", 0))
        self.port = listeners[0].socket.getsockname()[1]
        await nursery.start(
            partial(Greeter(self.adopt, {"restore": self.restore}, self._ring).serve, listeners)
        )

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def say(self, *parts: bytes, eof: bool = False) -> None:
        """Say something and wait until the other side has closed."""
        async with await self.connect() as stream:
            with trio.fail_after(10):
                try:
                    for part in parts:
                        await stream.send_all(part)
                        await trio.sleep(0.01)
                    if eof:
                        await stream.send_eof()
                    assert await stream.receive_some(100) == b""
                except trio.BrokenResourceError:
                    pass  # reset: it had not read all we said

    def reasons(self) -> list[str]:
        return [e.text for e in self.events if e.id == events.PEER_REFUSED.id]


@pytest.fixture
async def door(nursery: trio.Nursery) -> Door:
    door = Door()
    await door.open(nursery)
    return door


async def test_a_source_is_handed_over_with_what_it_said(door: Door) -> None:
    await door.say(GREETING)
    await door.say(GREETING[:7], GREETING[7:30], GREETING[30:] + b"more")
    assert door.adopted == [(UUID, GREETING), (UUID, GREETING + b"more")]
    assert door.reasons() == [] and [e.id for e in door.events] == [events.PEER_ACCEPTED.id] * 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "not a replication agent"),
        (b"\0" * limits.GREETING_BYTES, "not a replication agent"),
        (b"REPLICATOR 1 replicate " + b"x" * limits.GREETING_BYTES, "not a replication agent"),
        (b"REPLICATOR 1 replicate ../../../etc/passwd\n", "not a replication agent"),
        (b"REPLICATOR 1 replicate short\n", "is not a connection"),
        (b"REPLICATOR 1 replicate " + UUID.upper().encode() + b"\n", "is not a connection"),
        (b"REPLICATOR 1 dance " + UUID.encode() + b"\n", "purpose"),
        (b"", "closed before"),
        (b"REPLICATOR 1 repl", "closed within"),
    ],
)
async def test_anybody_else_is_closed_with_a_reason(door: Door, said: bytes, words: str) -> None:
    await door.say(said, eof=True)
    assert door.adopted == []
    (reason,) = door.reasons()
    assert words in reason and "127.0.0.1:" in reason


async def test_a_receiver_that_refuses(door: Door) -> None:
    door.refuse = "too many connections"
    await door.say(GREETING)
    assert "too many connections" in door.reasons()[0]


async def test_the_silent_are_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 0.05)
    await door.say(b"REPL")
    assert "did not say what it wants" in door.reasons()[0]


async def test_only_so_many_may_wait(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GREETINGS_WAITING", 2)
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 0.3)
    door = Door()
    await door.open(nursery)
    silent = [await door.connect() for _ in range(2)]
    late = await door.connect()
    await late.send_all(GREETING)
    await trio.sleep(0.1)
    assert door.adopted == []  # it waits in the kernel
    with trio.fail_after(10):
        assert await late.receive_some(1) == b""  # handed over, and closed on this side
    assert door.adopted
    for stream in (*silent, late):
        await stream.aclose()


async def test_a_port_in_use_and_an_address_of_another_host() -> None:
    (listener,) = await open_listeners(Address("127.0.0.1", 0))
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(ListenError, match="in use"):
            await open_listeners(Address("127.0.0.1", port))
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        await open_listeners(Address("192.0.2.1", 0))


async def test_a_restore_is_answered_with_what_follows_its_first_line(door: Door) -> None:
    await door.say(f"REPLICATOR 1 restore {UUID}\n".encode() + b'{"action"')
    assert door.restores == [(UUID, b'{"action"')]
    assert not door.adopted and not door.events
    door.refuse = "not now"
    await door.say(f"REPLICATOR 1 restore {UUID}\n".encode())
    assert door.reasons()[0].endswith("not now")


async def test_one_address_leaves_room_for_others(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GREETINGS_PER_ADDRESS", 3)
    door = Door()
    await door.open(nursery)
    silent = [await door.connect() for _ in range(3)]
    await trio.testing.wait_all_tasks_blocked(0.05)
    await door.say(GREETING)  # a fourth of the same address is closed at once, whatever it says
    assert door.adopted == [] and "3 others from there" in door.reasons()[0]
    async with await trio.open_tcp_stream("127.0.0.1", door.port, local_address="127.0.0.2") as other:
        await other.send_all(GREETING)
        with trio.fail_after(10):
            assert await other.receive_some(1) == b""
    assert len(door.adopted) == 1
    for stream in silent:
        await stream.aclose()


async def test_a_byte_at_a_time_does_not_buy_time(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GREETING_TIMEOUT_S", 0.3)
    async with await door.connect() as stream:
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            for byte in GREETING * 10:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.05)
    assert door.adopted == [] and "did not say what it wants" in door.reasons()[0]


@pytest.mark.parametrize("purpose", ["replicate", "restore"])
async def test_a_bug_found_by_a_stranger_takes_nobody_else_down(
    door: Door, purpose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*arguments: object) -> str:
        raise RecursionError("too deep")

    door.hook = fail
    await door.say(f"REPLICATOR 1 {purpose} {UUID}\n".encode() + b"bug")
    assert "bug of the agent" in door.reasons()[0]
    assert "too deep" in capsys.readouterr().err
    door.hook = None
    await door.say(GREETING)
    assert door.adopted


async def test_restores_do_not_hold_the_door(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was understood waits elsewhere, and not for ever many."""
    monkeypatch.setattr(limits, "GREETINGS_WAITING", 1)
    monkeypatch.setattr(limits, "AGENT_CALLS", 1)
    door = Door()
    done = trio.Event()

    async def wait(*arguments: object) -> str:
        await done.wait()
        return ""

    door.hook = wait
    await door.open(nursery)
    ask = f"REPLICATOR 1 restore {UUID}\n".encode()
    async with await door.connect() as slow:
        await slow.send_all(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await door.say(ask)
        assert "others ask for restore" in door.reasons()[0]
        door.hook = None
        await door.say(GREETING)
        assert door.adopted
        done.set()


async def test_no_descriptors_left_is_survived(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, left = trio.SocketListener.accept, [errno.EMFILE, errno.ENFILE]

    async def fail(listener: trio.SocketListener) -> trio.SocketStream:
        if left:
            raise OSError(left.pop(), "no")
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", fail)
    monkeypatch.setattr(limits, "ACCEPT_PAUSE_S", 0.01)
    for _ in range(2):  # the first accept was under way
        await door.say(GREETING)
    assert len(door.adopted) == 2
