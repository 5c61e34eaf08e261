"""The listening port of a target: finds out who is there, reads the first line of each socket and hands it to
the receiver of that connection.

Nothing but that is read here, within a time and a size, and never more than a bounded number of sockets at a
time. What is no greeting is closed with a logged reason.
"""

import errno
import socket
import uuid
from collections.abc import Awaitable, Callable

import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent import restore_calls
from replicator.agent.local_peer import is_ours
from replicator.agent.pairing import Pairing
from replicator.agent.peers import PURPOSE as INTRODUCE
from replicator.agent.peers import Peers
from replicator.errors import ProtocolError, RemoteProtocolError, ReplicatorError
from replicator.events import EventRing
from replicator.net.engine import PURPOSE, split_greeting
from replicator.net.frames import Greeting
from replicator.security import pairing
from replicator.security.channel import Channel, ChannelRefused, Handover
from replicator.security.trust import NotTrusted

Adopt = Callable[[str, int, bytes, Handover | None], Awaitable[None]]
"""Hand over the socket of a connection, and what was read from it, to its receiver. Raises ReplicatorError.
"""

Restore = Callable[[str, Channel], Awaitable[str]]
"""Answer what another agent asks about a restore from this copy: see `CopyKeeper.serve`."""


class ListenError(ReplicatorError):
    """The port cannot be listened on."""


async def open_listeners(address: Address) -> list[trio.SocketListener]:
    """Listen on all addresses of `address.host`. Raises ListenError."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"cannot listen on {address}: the port is in use; choose another one with --listen HOST:PORT"
            ) from error
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error


class Greeter:
    """Accepts the sockets of sources, and of those that restore. `adopt` takes over each one of a source that
    said which connection it carries.
    """

    def __init__(
        self,
        adopt: Adopt,
        restore: Restore,
        ring: EventRing,
        peers: Peers | None = None,
        pairing: Pairing | None = None,
    ) -> None:
        """`peers` None: everybody speaks plain text."""
        self._peers = peers
        self._pairing = pairing
        self._adopt = adopt
        self._restore = restore
        self._ring = ring
        self._free = trio.Semaphore(limits.GREETINGS_WAITING)

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled. Closes the listeners."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._accept, listener)
            task_status.started()

    async def _accept(self, listener: trio.SocketListener) -> None:
        async with listener, trio.open_nursery() as nursery:
            while True:
                # Taken before accepting: who comes too many waits in the kernel's backlog.
                await self._free.acquire()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._free.release()
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        raise
                    await trio.sleep(limits.ACCEPT_PAUSE_S)
                else:
                    nursery.start_soon(self._greet, stream)

    async def _greet(self, stream: trio.SocketStream) -> None:
        peer, reason = "?", ""
        try:
            peer = _peer(stream)
            reason = await self._hand_over(stream, peer)
        except (NotTrusted, ChannelRefused) as error:
            if self._peers is None or self._peers.is_news(peer, str(error)):
                reason = str(error)
        except (ReplicatorError, ProtocolError) as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = f"did not say who it is within {limits.GREETING_TIMEOUT_S:.0f} s"
        except (OSError, trio.BrokenResourceError) as error:
            reason = f"connection lost: {error}"
        finally:
            if reason:
                self._ring.add(events.PEER_REFUSED, peer=peer, reason=reason)
            self._free.release()
            await trio.aclose_forcefully(stream)

    async def _hand_over(self, stream: trio.SocketStream, peer: str) -> str:
        """Returns why the socket is of no use; empty if it was handed over."""
        channel = Channel(stream, server=True)
        data = b""
        found: tuple[Greeting, int] | None = None
        with trio.move_on_after(limits.GREETING_TIMEOUT_S):
            if self._peers is not None:
                channel = await self._peers.door.open(stream)
            while found is None:
                chunk = await channel.stream.receive_some(limits.GREETING_BYTES - len(data))
                if not chunk:
                    return "closed within its first line" if data else "closed before it said what it wants"
                data += chunk
                found = split_greeting(data)
        if found is None:
            return f"did not say what it wants within {limits.GREETING_TIMEOUT_S:.0f} s"
        greeting = found[0]
        try:
            canonical = str(uuid.UUID(greeting.connection_uuid))
        except ValueError:
            canonical = ""
        if canonical != greeting.connection_uuid:
            raise RemoteProtocolError(f"{greeting.connection_uuid!r} is not a connection")
        channel.rest += data[found[1] :]
        if greeting.purpose == pairing.PURPOSE and self._pairing is not None and channel.peer is None:
            await self._pairing.answer(stream, bytes(channel.rest), peer)
            return ""
        if self._peers is not None:
            if channel.peer is None:
                self._peers.door.check_plain(stream)
                await _check_local(stream)
            else:
                with trio.fail_after(limits.GREETING_TIMEOUT_S):
                    await self._peers.answer(channel)
            if greeting.purpose == INTRODUCE:
                return ""  # that was all
        if greeting.purpose == restore_calls.PURPOSE:
            return await self._restore(canonical, channel)
        if greeting.purpose != PURPOSE:
            raise RemoteProtocolError(f"purpose {greeting.purpose!r} is not known here")
        await self._carry_on(canonical, stream, channel, data)
        if channel.peer is None and not _is_local(stream):
            self._ring.add(events.PLAIN_SESSION, peer=peer)
        who = f"{channel.peer.name} ({peer})" if channel.peer is not None else peer
        self._ring.add(events.PEER_ACCEPTED, peer=who, connection=canonical)
        return ""

    async def _carry_on(
        self, connection: str, stream: trio.SocketStream, channel: Channel, data: bytes
    ) -> None:
        if self._peers is None or channel.peer is None:
            await self._adopt(connection, stream.socket.fileno(), data, None)
            return
        with trio.fail_after(limits.GREETING_TIMEOUT_S):
            handover = await self._peers.hand_over(channel)
        await self._adopt(connection, stream.socket.fileno(), b"", handover)
        await self._peers.after_adoption(channel.peer)


async def _check_local(stream: trio.SocketStream) -> None:
    """Raises NotTrusted."""
    if not _is_local(stream):
        return
    own, peer = stream.socket.getsockname()[:2], stream.socket.getpeername()[:2]
    here, there = ((str(host).removeprefix("::ffff:"), int(port)) for host, port in (own, peer))
    if not await trio.to_thread.run_sync(is_ours, here, there):
        raise NotTrusted("plain text within this host is spoken with programs of root only")


def _is_local(stream: trio.SocketStream) -> bool:
    return Address(stream.socket.getpeername()[0].removeprefix("::ffff:"), 0).is_loopback


def _peer(stream: trio.SocketStream) -> str:
    host, port = stream.socket.getpeername()[:2]
    return str(Address(host, port))
