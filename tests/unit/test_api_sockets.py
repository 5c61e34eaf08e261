"""Sockets of the control API: who is there, and that nobody can hold it up."""

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from kit import dtd
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from replicator import events, limits
from replicator.agent.api_sockets import ApiSockets
from replicator.agent.control_tls import ControlTls
from replicator.agent.gate import Gate
from replicator.config import Access as Settings
from replicator.events import Event, EventRing

REQUEST = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


async def _who(request: Request) -> Response:
    caller = request.state.peer.local
    return Response(f"{caller.user} {caller.access.label}")


async def _much(request: Request) -> Response:
    return Response(b"x" * 50_000_000)


class Server:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[Event] = []
        self.stop = trio.Event()
        self.remote: tuple[str, ControlTls] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ring = EventRing(lambda: 0, self.told.append)
        app: Any = Starlette(routes=[Route("/who", _who), Route("/much", _much)])
        sockets = ApiSockets(app, HypercornConfig(), Gate(Settings(), ring), ring)
        async with trio.open_nursery() as nursery:
            await nursery.start(sockets.serve, str(self.path), self.remote, self.stop.wait)
            yield
            self.stop.set()

    async def ask(self, what: bytes) -> trio.SocketStream:
        stream = await trio.open_unix_socket(str(self.path))
        await stream.send_all(REQUEST % what)
        return stream


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "api.sock")


async def test_the_kernel_says_who_is_there(server: Server) -> None:
    async with server.running(), await server.ask(b"who") as stream:
        answer = b""
        while not answer.endswith(b"_ACCESS"):
            part = await stream.receive_some(1000)
            assert part
            answer += part
    if os.geteuid() == 0:
        assert answer.endswith(b"\r\n\r\nroot DT_FULL_ACCESS")


class _Shown:
    fingerprint = "AA:BB"

    def context(self) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


async def test_remote_control_has_no_port_of_the_system(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NT-02 holds for it, too."""
    monkeypatch.setattr(limits, "CONTROL_PORT", dtd.free_port())
    server.remote = "127.0.0.1:1024", _Shown()
    async with server.running():
        await (await trio.open_tcp_stream("127.0.0.1", limits.CONTROL_PORT)).aclose()
    assert [event.id for event in server.told[:2]] == [events.PORT_OUT_OF_RANGE.id, events.REMOTE_CONTROL.id]
    assert str(limits.CONTROL_PORT) in server.told[0].text and "1024 is not from 1025" in server.told[0].text


async def test_a_socket_that_was_left_is_replaced(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(server.path))
    async with server.running(), await server.ask(b"who") as stream:
        assert await stream.receive_some(1000)
    assert server.path.stat().st_mode & 0o777 == 0o666


async def test_who_does_not_read_their_answer_does_not_hold_up_the_end(server: Server) -> None:
    with trio.fail_after(limits.API_GRACE_S + 10):
        async with server.running():
            stream = await server.ask(b"much")
            await stream.receive_some(10)
    await trio.aclose_forcefully(stream)


async def test_the_end_waits_for_nobody_when_nobody_is_there(server: Server) -> None:
    began_s = trio.current_time()
    async with server.running():
        pass
    assert trio.current_time() - began_s < limits.API_GRACE_S
