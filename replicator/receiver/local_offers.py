"""A receiver's offers to a sender on the same host: files without a name (see `mirror/local_copy.py`)."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from replicator import limits
from replicator.bounds import MALFORMED
from replicator.mirror.local_copy import MESSAGE_BYTES, OFFERED, Wanted, address, ancillary, peer_of_ours

_KNOWN_S = 3 * limits.DRIFT_GATHER_MAX_S


class OwnProcesses:
    """Whose changes of the copy are ours: this process's, and those of senders that fill files for it."""

    def __init__(self) -> None:
        self._counts = Counter([os.getpid()])

    def __contains__(self, process: object) -> bool:
        return isinstance(process, int) and self._counts[process] > 0

    @asynccontextmanager
    async def joined_by(self, process: int) -> AsyncIterator[None]:
        """It counts until what it has done is known for certain to have been looked at."""
        self._counts[process] += 1
        try:
            yield
        finally:
            await trio.sleep(_KNOWN_S)
            self._counts[process] -= 1


async def serve_offers(
    connection_uuid: str, offer: Callable[[Wanted], int | None], own: OwnProcesses
) -> None:
    """Until cancelled. `offer` lends a descriptor."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with listener:
        try:
            await listener.bind(address(connection_uuid, os.getpid()))
        except OSError:
            return  # it can do without
        listener.listen(4)
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await listener.accept()
                nursery.start_soon(_serve, client, offer, own)


async def _serve(
    client: trio.socket.SocketType, offer: Callable[[Wanted], int | None], own: OwnProcesses
) -> None:
    process = peer_of_ours(client)
    if process is None:
        client.close()
        return
    async with own.joined_by(process):
        with client:
            try:
                while data := await client.recv(MESSAGE_BYTES):
                    descriptor = offer(msgspec.msgpack.decode(data, type=Wanted))
                    if descriptor is None:
                        await client.send(b"-")
                    else:
                        await client.sendmsg([OFFERED], ancillary(descriptor))
            except (OSError, *MALFORMED):
                pass  # it is none of ours, or has gone
