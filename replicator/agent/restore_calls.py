"""What agents say to one another about restores, before data flows: see `agent_calls.py`.

Whoever gets the data dials, as sources do: so it works through the same tunnel as the connection did. After
`attach` the socket carries an ordinary session in the other direction, after `inventory` a list of objects.
"""

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from replicator import limits
from replicator.addresses import Address
from replicator.agent import agent_calls
from replicator.agent.agent_calls import Conversation
from replicator.agent.peers import Peers
from replicator.bounds import MALFORMED
from replicator.errors import UnreachableError
from replicator.mirror.inventory import Item
from replicator.repset import ReplicationSet
from replicator.restores import Root
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


class RestoreConversation(Conversation):
    """With lists of objects."""

    async def send_items(self, items: list[Item]) -> None:
        """Some of them; none: these were all."""
        data = msgspec.msgpack.encode(items)
        await self.send(_LENGTH.pack(len(data)) + data)

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
) -> AsyncIterator[tuple[Any, RestoreConversation]]:
    """The result of a call, and the socket. Raises UnreachableError, and what the other agent refuses."""
    async with agent_calls.calling(peers, address, PURPOSE, copy, call, timeout_s) as (result, conversation):
        yield result, RestoreConversation(conversation.channel)


async def ask(
    peers: Peers, address: Address, copy: str, call: Call, timeout_s: float = limits.RESTORE_CALL_S
) -> Any:
    """The result of a call that needs nothing more. Raises as `calling`."""
    return await agent_calls.ask(peers, address, PURPOSE, copy, call, timeout_s)


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
