"""Probes: what counts as a sign of life, and what says nothing of the source."""

import errno
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from kit import machine
from kit.certificates import Issuer

from replicator.failover import probes
from replicator.failover.probes import Silent, Unable, internet_checksum, probe
from replicator.failovers import Check, CheckKind

LOCAL = "127.0.0.1"


async def ask(kind: CheckKind, argument: str = "", address: str = LOCAL, timeout_s: float = 10.0) -> None:
    await probe(Check(kind, argument), address, {"REPLICATOR_ADDRESS": address}, timeout_s)


@asynccontextmanager
async def serving(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A port whose every connection is answered so."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def http(text: bytes, *, then_wait: bool = False) -> Callable[[trio.SocketStream], Awaitable[None]]:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for at in range(len(text)):  # byte by byte: nobody promises whole lines
            await stream.send_all(text[at : at + 1])
        if then_wait:
            await trio.sleep_forever()

    return answer


@pytest.mark.skipif(not machine.is_root(), reason="raw sockets need root")
@pytest.mark.parametrize("address", [LOCAL, "::1"])
async def test_ping(address: str) -> None:
    await ask(CheckKind.PING, address=address)


@pytest.mark.skipif(not machine.is_root(), reason="raw sockets need root")
async def test_the_reply_to_another_s_ping_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw sockets get whatever comes."""
    other = probes._echo(8, bytes(16), checksum=True)
    monkeypatch.setattr(probes, "_echo", lambda *_, **__: other)
    with pytest.raises(Silent, match="no answer within"):
        await ask(CheckKind.PING, timeout_s=0.2)


def test_checksum() -> None:
    message = probes._echo(8, bytes(range(16)), checksum=True)
    assert internet_checksum(message) == 0
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # RFC 1071, section 3


async def test_tcp() -> None:
    async def nothing(stream: trio.SocketStream) -> None:
        pass

    async with serving(nothing) as port:
        await ask(CheckKind.TCP, str(port))
    with pytest.raises(Silent, match="refused"):
        await ask(CheckKind.TCP, str(port))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n", ""),
        (b"HTTP/1.0 204\r\n", ""),
        (b"HTTP/1.1 399 x\n", ""),
        (b"HTTP/1.1 400 Bad\r\n", "status 400"),
        (b"HTTP/1.1 503 x\r\n", "status 503"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP status"),
        (b"HTTP/1.1\r\n", "no HTTP status"),
        (b"", "no HTTP status"),
        (b"x" * 20_000, "no HTTP status"),
    ],
)
async def test_http(text: bytes, reason: str) -> None:
    async with serving(http(text)) as port:
        asked = f"http://www.example.org:{port}/health?a=1"
        if not reason:
            await ask(CheckKind.HTTP, asked)
        else:
            with pytest.raises(Silent, match=reason):
                await ask(CheckKind.HTTP, asked)


async def test_http_says_what_it_wants() -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")

    async with serving(answer) as port:
        await ask(CheckKind.HTTP, f"http://www.example.org:{port}/health?a=1#part")
    first, *lines = asked[0].decode().split("\r\n")
    assert first == "GET /health?a=1 HTTP/1.1"
    assert f"Host: www.example.org:{port}" in lines and "Connection: close" in lines


async def test_http_that_does_not_answer_is_silent() -> None:
    async with serving(http(b"HTTP/1.1 2", then_wait=True)) as port:
        with pytest.raises(Silent, match=r"no answer within 0\.3 s"):
            await ask(CheckKind.HTTP, f"http://x:{port}/", timeout_s=0.3)


async def test_https_asks_for_life_and_not_for_identity(tmp_path: Path) -> None:
    chain, _ = Issuer(tmp_path, "nobody").issue("elsewhere.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)

    async def answer(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        await secured.receive_some()
        await secured.send_all(b"HTTP/1.1 200 OK\r\n")

    async with serving(answer) as port:
        await ask(CheckKind.HTTP, f"https://www.example.org:{port}/")
    async with serving(http(b"HTTP/1.1 200 OK\r\n")) as port:
        with pytest.raises(Silent, match="broke"):
            await ask(CheckKind.HTTP, f"https://www.example.org:{port}/")


async def test_commands(tmp_path: Path) -> None:
    await ask(CheckKind.COMMAND, 'test "$REPLICATOR_ADDRESS" = 127.0.0.1')
    with pytest.raises(Silent, match="ended with 3"):
        await ask(CheckKind.COMMAND, "exit 3")
    with pytest.raises(Silent, match="killed by SIGTERM"):
        await ask(CheckKind.COMMAND, "kill -TERM $$")
    with pytest.raises(Silent, match="ended with 127"):
        await ask(CheckKind.COMMAND, str(tmp_path / "nothing"))


async def test_a_command_that_hangs_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(Silent, match="no answer within"):
        await ask(CheckKind.COMMAND, f"trap '' TERM; sleep 100 & echo $! > {note}; wait", timeout_s=0.5)
    child, deadline_s = int(note.read_text()), time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline_s
        await trio.sleep(0.02)


async def test_a_fault_of_this_host_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(trio.socket, "socket", fail)
    with pytest.raises(Unable, match="Too many open files"):
        await ask(CheckKind.TCP, "80")
