"""How a sender reaches its target: by a channel that proves who is there, and a session on that."""

import errno
from collections.abc import Awaitable, Callable

import trio

from replicator.addresses import Address
from replicator.net.engine import encode_greeting
from replicator.security.channel import Introduction, go_on, introduce, secure
from replicator.security.settings import Successor
from replicator.sender.arguments import SenderArguments

Connect = Callable[[str, int], Awaitable[trio.abc.HalfCloseableStream]]


class Dialler:
    """`dial` in place of `World.connect`."""

    def __init__(self, arguments: SenderArguments, connect: Connect) -> None:
        self._arguments = arguments
        self._connect = connect

    async def dial(self, host: str, port: int) -> trio.abc.HalfCloseableStream:
        """Raises OSError, and ReplicatorError if one of both sides refuses the other."""
        stream = await self._connect(host, port)
        if not isinstance(stream, trio.SocketStream):
            return stream
        try:
            return await self._secured(stream, Address(host, port))
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)
            raise OSError(errno.ECONNRESET, "the connection broke") from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _secured(self, stream: trio.SocketStream, address: Address) -> trio.abc.HalfCloseableStream:
        arguments, settings = self._arguments, self._arguments.security
        channel = await secure(stream, address, settings)
        if channel.peer is None:
            return stream
        successor = Successor.read(settings)
        mine = Introduction(
            uuid=arguments.agent_uuid,
            name=arguments.agent_name,
            successor=successor.certificate,
            proof=successor.proof,
        )
        await introduce(channel, encode_greeting(arguments.connection_uuid), mine)
        return await go_on(channel, settings)
