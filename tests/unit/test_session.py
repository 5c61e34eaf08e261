"""Sessions over in-memory links under virtual time, and once over a real socket."""

import random
import socket
from typing import Any

import pytest
import trio
import trio.testing
from kit.links import Link

from replicator import limits
from replicator.errors import LocalProtocolError, RemoteProtocolError
from replicator.net.engine import Engine, Role, State, encode_greeting
from replicator.net.frames import Acknowledge, Greeting, Hello, Mark, MirrorBegin, PieceBatch, Ping, Records
from replicator.net.session import ConnectionLost, PeerLeft, PeerSilent, Session, SessionEnded

ACK = Acknowledge((1,), (1,), (1,), 0, 0)


def pair(link: Link) -> tuple[Session, Session]:
    """A session in the middle of its life."""
    sessions = []
    for stream, role in zip(link.streams(), (Role.SOURCE, Role.TARGET), strict=True):
        engine = Engine(role)
        engine.state = State.OPEN
        sessions.append(Session(stream, engine))
    return sessions[0], sessions[1]


def make_link(**more: Any) -> Link:
    return Link(random.Random(3), **more)


async def test_introduction_over_a_split_link(autojump_clock: Any) -> None:
    link = make_link(split=True, latency_s=0.01)
    near, far = link.streams()
    source, target = Session(near, Engine(Role.SOURCE)), Session(far, Engine(Role.TARGET))
    await source.greet("abc")
    await source.send(Hello(1, "a", "b"))
    assert await target.receive() == Greeting(1, "replicate", "abc")
    assert await target.receive() == Hello(1, "a", "b")
    await target.send(Hello(1, "c", "d"))
    assert await source.receive() == Hello(1, "c", "d")
    assert source.sent_bytes == target.received_bytes > 0


async def test_bytes_that_somebody_has_read_already(autojump_clock: Any) -> None:
    near, far = make_link().streams()
    source = Session(near, Engine(Role.SOURCE))
    await source.greet("abc")
    await source.send(Hello(1, "a", "b"))
    first = await far.receive_some(30)
    target = Session(far, Engine(Role.TARGET), first_bytes=first)
    assert await target.receive() == Greeting(1, "replicate", "abc")
    assert await target.receive() == Hello(1, "a", "b")


async def test_heartbeats_keep_an_idle_session(autojump_clock: Any) -> None:
    link = make_link(latency_s=0.1)
    source, target = pair(link)
    async with trio.open_nursery() as nursery:
        for session in (source, target):
            nursery.start_soon(session.heartbeat)
        with trio.move_on_after(100):
            async with trio.open_nursery() as readers:
                readers.start_soon(source.receive)
                readers.start_soon(target.receive)
        ping_bytes = sum(len(b) for b in open_engine().send(Ping()))
        expected = 100 / limits.HEARTBEAT_S * ping_bytes
        assert expected - 2 * ping_bytes <= link.sent_bytes[0] <= expected + ping_bytes
        nursery.cancel_scope.cancel()


def open_engine() -> Engine:
    engine = Engine(Role.SOURCE)
    engine.state = State.OPEN
    return engine


async def test_no_ping_while_something_else_is_sent(autojump_clock: Any) -> None:
    link = make_link()
    source, target = pair(link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.heartbeat)
        before = link.sent_bytes[0]
        for _ in range(20):
            await trio.sleep(limits.HEARTBEAT_S / 2)
            await source.send(MirrorBegin("m", "full"))
            await target.receive()
        frame_bytes = sum(len(b) for b in open_engine().send(MirrorBegin("m", "full")))
        assert link.sent_bytes[0] - before == 20 * frame_bytes
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_ends_the_session(autojump_clock: Any) -> None:
    link = make_link()
    source, _ = pair(link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.heartbeat)
        began = trio.current_time()
        with pytest.raises(PeerSilent, match="nothing was heard from the peer for 12 s"):
            await source.receive()
        assert trio.current_time() - began == pytest.approx(limits.PEER_SILENCE_S)
        with pytest.raises(SessionEnded):
            await source.send(MirrorBegin("m", "full"))
        with pytest.raises(PeerSilent):
            await source.receive()


async def test_part_of_a_frame_counts_as_a_sign_of_life(autojump_clock: Any) -> None:
    link = make_link()
    near, _ = link.streams()
    _, target = pair(link)
    data = b"".join(bytes(b) for b in open_engine().send(PieceBatch(), bytes(50)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.heartbeat)

        async def drip() -> None:
            for index in range(len(data)):
                await trio.sleep(limits.PEER_SILENCE_S * 0.9)
                await near.send_all(data[index : index + 1])

        nursery.start_soon(drip)
        event = await target.receive()
        assert isinstance(event, tuple) and event[1] == bytes(50)
        nursery.cancel_scope.cancel()


async def test_time_in_which_we_do_not_read_is_not_the_peers_silence(autojump_clock: Any) -> None:
    source, target = pair(make_link())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.heartbeat)
        await source.send(MirrorBegin("m", "full"))
        await trio.sleep(limits.PEER_SILENCE_S * 3)
        assert await target.receive() == MirrorBegin("m", "full")
        nursery.cancel_scope.cancel()


async def test_back_pressure(autojump_clock: Any) -> None:
    """A reader that does not read holds the sender up, without ending the session, and nothing is lost."""
    source, target = pair(make_link(window_bytes=10_000))
    sent = 0
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for number in range(50):
                await source.send(PieceBatch(), bytes([number]) * 1000)
                sent += 1

        async def hear() -> None:
            while True:
                await source.receive()

        nursery.start_soon(send)
        nursery.start_soon(source.heartbeat)
        nursery.start_soon(target.heartbeat)
        nursery.start_soon(hear)
        await trio.sleep(100)
        assert sent < 15
        for number in range(50):
            event = await target.receive()
            assert isinstance(event, tuple) and event[1] == bytes([number]) * 1000
        nursery.cancel_scope.cancel()


async def test_sends_of_several_tasks_do_not_mix(autojump_clock: Any) -> None:
    source, target = pair(make_link(split=True, window_bytes=700, latency_s=0.001))
    got: list[int] = []
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(source.send, PieceBatch(), bytes([number]) * 3_000)
        for _ in range(20):
            event = await target.receive()
            assert isinstance(event, tuple)
            assert len(event[1]) == 3_000 and len(set(event[1])) == 1
            got.append(event[1][0])
    assert sorted(got) == list(range(20))


async def test_a_send_that_is_cancelled_in_the_middle_ends_the_session(autojump_clock: Any) -> None:
    source, target = pair(make_link(window_bytes=1000))
    with trio.move_on_after(1) as scope:
        await source.send(PieceBatch(), bytes(5000))
    assert scope.cancelled_caught
    with pytest.raises(SessionEnded, match="middle of a frame"):
        await source.send(MirrorBegin("m", "full"))
    await source.close("over")
    with pytest.raises(ConnectionLost, match="in the middle of a frame"):
        await target.receive()


async def test_a_send_that_is_cancelled_before_it_begins_harms_nothing(autojump_clock: Any) -> None:
    """So that a task which is stopped while it reports does not cost the peer the BYE."""
    for steps in range(6):
        source, target = pair(make_link())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send, MirrorBegin("m", "full"))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.close, "enough")
            with pytest.raises(PeerLeft, match="enough"):
                while True:
                    assert await target.receive() == MirrorBegin("m", "full")
            await target.close("")


async def test_a_receive_that_is_cancelled_loses_nothing(autojump_clock: Any) -> None:
    source, target = pair(make_link(split=True, latency_s=0.5))
    frames = [Records(0, Mark(n, n), Mark(n + 1, n)) for n in range(30)]
    got: list[object] = []

    async def send() -> None:
        for frame in frames:
            await source.send(frame, b"x" * 100)
            await trio.sleep(0.3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(got) < len(frames):
            with trio.move_on_after(0.1):
                event = await target.receive()
                assert isinstance(event, tuple)
                got.append(event[0])
    assert got == frames


async def test_goodbye(autojump_clock: Any) -> None:
    source, target = pair(make_link(latency_s=0.1))
    await target.send(ACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.close, "the target is being stopped")
        assert [event async for event in source] == [ACK]
        with pytest.raises(PeerLeft, match="being stopped"):
            await source.receive()
        began = trio.current_time()
        await source.close("")
    assert trio.current_time() - began < 0.5, "both know that it is over: nobody waits"


async def test_closing_does_not_depend_on_the_peer(autojump_clock: Any) -> None:
    link = make_link()
    source, _ = pair(link)
    link.stall()
    began = trio.current_time()
    await source.close("enough")
    assert trio.current_time() - began <= limits.CLOSE_TIMEOUT_S
    with pytest.raises(SessionEnded):
        await source.receive()
    await source.close("again")


async def test_closing_while_another_task_reads(autojump_clock: Any) -> None:
    link = make_link()
    source, _ = pair(link)
    link.stall()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(SessionEnded, match="enough"):
                await source.receive()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await source.close("enough")


async def test_a_cut_has_a_reason(autojump_clock: Any) -> None:
    link = make_link()
    source, target = pair(link)
    link.cut_after(10)
    with pytest.raises(ConnectionLost, match="the connection broke"):
        await source.send(MirrorBegin("m", "full"))
    with pytest.raises(ConnectionLost, match="closed the connection in the middle of a frame"):
        await target.receive()
    with pytest.raises(ConnectionLost):
        await source.receive()


async def test_a_violation_is_raised_after_what_was_valid_and_told_to_the_peer(autojump_clock: Any) -> None:
    link = make_link()
    source, target = pair(link)
    near, _ = link.streams()
    good = b"".join(bytes(b) for b in source.engine.send(MirrorBegin("m", "full")))
    await near.send_all(good + b"\xff" * 16)
    assert await target.receive() == MirrorBegin("m", "full")
    with pytest.raises(RemoteProtocolError, match="frame type 255") as caught:
        await target.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.close, f"protocol error: {caught.value}")
        with pytest.raises(PeerLeft, match="protocol error: frame type 255"):
            await source.receive()
        await source.close("")


async def test_our_own_mistakes_send_nothing(autojump_clock: Any) -> None:
    link = make_link()
    source, target = pair(link)
    with pytest.raises(LocalProtocolError):
        await source.send(ACK)
    assert link.sent_bytes == (0, 0)
    await source.send(MirrorBegin("m", "full"))
    assert await target.receive() == MirrorBegin("m", "full")


async def test_over_a_real_socket() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    near = await trio.open_tcp_stream("127.0.0.1", port)
    far = await listeners[0].accept()
    await listeners[0].aclose()
    engines = Engine(Role.SOURCE), Engine(Role.TARGET)
    for engine in engines:
        engine.state = State.OPEN
    source, target = Session(near, engines[0]), Session(far, engines[1])
    assert near.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert far.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    data = random.Random(1).randbytes(3_000_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.send, PieceBatch(), data)
        event = await target.receive()
        assert isinstance(event, tuple) and event[1] == data
        # Unread bytes in the socket of the side that closes must not destroy its BYE.
        await source.send(PieceBatch(), bytes(100_000))
        nursery.start_soon(target.close, "enough")
        with pytest.raises(PeerLeft, match="enough"):
            await source.receive()
        await source.close("")


async def test_a_socket_has_the_congestion_control_that_was_asked_for() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    name = "reno"  # every kernel has it
    near = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
    assert _congestion_control(near) != name
    Session(near, Engine(Role.SOURCE))
    assert _congestion_control(near) != name
    Session(near, Engine(Role.SOURCE), congestion_control=name)
    assert _congestion_control(near) == name
    for closing in (near, *listeners):
        await closing.aclose()


def _congestion_control(stream: trio.SocketStream) -> str:
    return (
        bytes(stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)).rstrip(b"\0").decode()
    )


def test_the_greeting_is_what_engine_and_session_say() -> None:
    assert encode_greeting("abc") == b"REPLICATOR 1 replicate abc\n"
