"""How agents ask one another: a call and its answer, a line of JSON each.

Whoever wants something dials. The first line says the purpose and what it is about (a uuid); the socket may
carry something else afterwards.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent.peers import Peers
from replicator.bounds import MALFORMED
from replicator.errors import ExitCode, ReplicatorError, UnreachableError, UsageError
from replicator.security.channel import Channel, ChannelRefused, Handover
from replicator.security.tls import transport_of

Answering = Callable[[str, Channel], Awaitable[str]]
"""Answers one call about a uuid. Returns what to log if it was refused."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: why not; "": it was done."""

    error: str = ""
    exit_code: int = 1
    result: Any = None


_KINDS: dict[int, type[ReplicatorError]] = {
    ExitCode.USAGE: UsageError,
    ExitCode.UNREACHABLE: UnreachableError,  # "not yet": who asks again may get what it wants
}


class Conversation:
    """A channel after its first line. `rest`: what was read beyond it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.stream = channel.stream
        self.rest = channel.rest

    async def receive_line(self, bytes_max: int = limits.RESTORE_LINE_BYTES) -> bytes:
        """Without its newline. UnreachableError."""
        searched = 0
        while (end := self.rest.find(b"\n", searched)) < 0:
            searched = len(self.rest)
            if searched > bytes_max:
                raise UnreachableError("the other agent says something too long")
            await self._more()
        line = bytes(self.rest[:end])
        del self.rest[: end + 1]
        return line

    async def receive(self, size: int) -> bytes:
        while len(self.rest) < size:
            await self._more()
        data = bytes(self.rest[:size])
        del self.rest[:size]
        return data

    async def _more(self) -> None:
        try:
            chunk = await self.stream.receive_some(65536)
        except trio.BrokenResourceError as error:
            raise UnreachableError(f"the other agent is gone: {error}") from None
        if not chunk:
            raise UnreachableError("the other agent closed the connection")
        self.rest += chunk

    async def send_line(self, value: msgspec.Struct) -> None:
        await self.send(msgspec.json.encode(value) + b"\n")

    async def send(self, data: bytes) -> None:
        """UnreachableError: nobody takes it."""
        try:
            with trio.fail_after(limits.RESTORE_STALL_S):
                await self.stream.send_all(data)
        except trio.TooSlowError:
            raise UnreachableError("the other agent does not listen") from None


@asynccontextmanager
async def calling(
    peers: Peers,
    address: Address,
    purpose: str,
    subject: str,
    call: msgspec.Struct,
    timeout_s: float,
) -> AsyncIterator[tuple[Any, Conversation]]:
    """The result of a call, and the socket. `subject`: a uuid, what it is about. Raises UnreachableError, and
    what the other agent refuses.
    """
    channel = await peers.call(address, purpose, subject)
    async with channel.stream:
        conversation = Conversation(channel)
        try:
            with trio.fail_after(timeout_s):
                await conversation.send_line(call)
                line = await conversation.receive_line()
        except trio.TooSlowError:
            raise UnreachableError(f"{address} did not answer within {timeout_s:.0f} s") from None
        except trio.BrokenResourceError as error:
            raise UnreachableError(f"{address} is gone: {error}") from None
        try:
            answer = msgspec.json.decode(line, type=Answer)
        except MALFORMED:
            raise UnreachableError(f"{address} is no agent that understands this") from None
        if answer.error:
            raise _KINDS.get(answer.exit_code, ReplicatorError)(answer.error)
        yield answer.result, conversation


async def handed_over(peers: Peers, conversation: Conversation) -> tuple[int, bytes, Handover | None]:
    """Socket, what was read of it, and keys, for the process that carries the session that follows. Raises
    UnreachableError.
    """
    channel = conversation.channel
    stream = transport_of(channel.stream)
    assert isinstance(stream, trio.SocketStream)
    try:
        with trio.fail_after(limits.GREETING_TIMEOUT_S):
            handover = await peers.hand_over(channel)
    except (ChannelRefused, OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise UnreachableError(f"the session could not be secured: {error}") from None
    return stream.socket.fileno(), bytes(channel.rest), handover


async def ask(
    peers: Peers,
    address: Address,
    purpose: str,
    subject: str,
    call: msgspec.Struct,
    timeout_s: float,
) -> Any:
    """The result of a call that needs nothing more. Raises as `calling`."""
    async with calling(peers, address, purpose, subject, call, timeout_s) as (result, _):
        return result
