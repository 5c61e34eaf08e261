"""A receiver's offers to a sender on the same host: files without a name (see `mirror/local_copy.py`)."""

import os
import socket
from collections.abc import Callable

import msgspec
import trio

from replicator.bounds import MALFORMED
from replicator.mirror.local_copy import MESSAGE_BYTES, OFFERED, Wanted, address, ancillary, is_ours


async def serve_offers(connection_uuid: str, offer: Callable[[Wanted], int | None]) -> None:
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
                nursery.start_soon(_serve, client, offer)


async def _serve(client: trio.socket.SocketType, offer: Callable[[Wanted], int | None]) -> None:
    with client:
        try:
            if not is_ours(client):
                return
            while data := await client.recv(MESSAGE_BYTES):
                descriptor = offer(msgspec.msgpack.decode(data, type=Wanted))
                if descriptor is None:
                    await client.send(b"-")
                else:
                    await client.sendmsg([OFFERED], ancillary(descriptor))
        except (OSError, *MALFORMED):
            pass  # it is none of ours, or has gone
