"""What agents say to one another about restores, before data flows.

Whoever gets the data dials, as sources do: so it works through the same tunnel as the connection did. The
first line has the purpose "restore" and the copy's uuid; then follow one line of JSON each way. After
`attach` the socket carries an ordinary session in the other direction, after `inventory` a list of objects.
"""

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from replicator import limits
from replicator.addresses import Address
from replicator.agent.peers import Peers
from replicator.bounds import MALFORMED
from replicator.errors import ExitCode, ReplicatorError, UnreachableError, UsageError
from replicator.mirror.inventory import Item
from replicator.repset import ReplicationSet
from replicator.restores import Root
from replicator.security.channel import Channel, ChannelRefused, Handover
from replicator.security.tls import transport_of
from replicator.transmission import TransmissionSettings

PURPOSE = "restore"
ANY_COPY = "00000000-0000-0000-0000-000000000000"
"""In place of a copy's uuid: all of them are meant."""

_LENGTH = struct.Struct("<I")


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request. `action`: see `copy_keeper.py`."""

    action: str
    restore: str = ""
    repset: ReplicationSet | None = None  # of attach and inventory: what of the copy is meant
    roots: tuple[Root, ...] = ()  # the same: of the copy
    places: tuple[str, ...] = ()  # of attach: where each of them goes
    newer: bool = False
    checksum: bool = False
    what: str = ""  # of act: a control call of the sender
    epoch: int = 0
    own: TransmissionSettings = TransmissionSettings()  # of attach and status: how to send, from now on
    target: TransmissionSettings = TransmissionSettings()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: why not; "": it was done."""

    error: str = ""
    exit_code: int = 1
    result: Any = None


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
        await self._send(msgspec.json.encode(value) + b"\n")

    async def _send(self, data: bytes) -> None:
        """UnreachableError: nobody takes it."""
        try:
            with trio.fail_after(limits.RESTORE_STALL_S):
                await self.stream.send_all(data)
        except trio.TooSlowError:
            raise UnreachableError("the other agent does not listen") from None

    # --- lists of objects ---

    async def send_items(self, items: list[Item]) -> None:
        """Some of them; none: these were all."""
        data = msgspec.msgpack.encode(items)
        await self._send(_LENGTH.pack(len(data)) + data)

    async def receive_items(self) -> list[Item]:
        """UnreachableError, and if it is no list of objects."""
        (size,) = _LENGTH.unpack(await self.receive(_LENGTH.size))
        if size > limits.RESTORE_LINE_BYTES:
            raise UnreachableError("the other agent says something too long")
        try:
            return msgspec.msgpack.decode(await self.receive(size), type=list[Item])
        except MALFORMED as error:
            raise UnreachableError(f"the other agent says what nobody understands: {error}") from None


@asynccontextmanager
async def calling(
    peers: Peers, address: Address, copy: str, call: Call, timeout_s: float = limits.RESTORE_CALL_S
) -> AsyncIterator[tuple[Any, Conversation]]:
    """The result of a call, and the socket. Raises UnreachableError, and what the other agent refuses."""
    channel = await peers.call(address, PURPOSE, copy)
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
            raise UnreachableError(f"{address} is no agent that knows restores") from None
        if answer.error:
            kind = UsageError if answer.exit_code == ExitCode.USAGE else ReplicatorError
            raise kind(answer.error)
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
    peers: Peers, address: Address, copy: str, call: Call, timeout_s: float = limits.RESTORE_CALL_S
) -> Any:
    """The result of a call that needs nothing more. Raises as `calling`."""
    async with calling(peers, address, copy, call, timeout_s) as (result, _):
        return result


def in_lists(items: Iterator[Item]) -> Iterator[list[Item]]:
    """In parts that are sent at once; the last one is empty."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if len(part) >= limits.RESTORE_ITEMS:
            yield part
            part = []
    if part:
        yield part
    yield []
