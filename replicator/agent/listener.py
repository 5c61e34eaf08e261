"""The listening port of a target: reads the first line of each socket and hands it to the receiver of that
connection.

Nothing but the line is read here, within a time and a size, and never more than a bounded number of sockets
at a time. What is no greeting is closed with a logged reason.
"""

import errno
import socket
import sys
import traceback
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.agent_calls import Answering
from replicator.agent.door import Door, RefusalLog
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


class ListenError(ReplicatorError):
    """The port cannot be listened on."""


class PortInUseError(ListenError):
    """Another program has it."""


def permitted(address: Address, default_port: int = limits.PORT) -> Address:
    """NT-02: the same host, and a port that an agent may listen on: the default for any other."""
    allowed = limits.PORT_FIRST <= address.port <= limits.PORT_LAST
    return address if allowed else Address(address.host, default_port)


def note_other_port(ring: EventRing, asked: Address, listen: Address) -> None:
    """Say so if the port that was asked for is not permitted. `listen`: where is listened instead."""
    if asked != permitted(asked):
        first, last = limits.PORT_FIRST, limits.PORT_LAST
        ring.add(events.PORT_OUT_OF_RANGE, port=asked.port, listen=listen, first=first, last=last)


async def open_listeners(address: Address) -> list[trio.SocketListener]:
    """Listen on all addresses of `address.host`; on `[::]` for IPv4 as well. Raises ListenError."""
    try:
        host = None if address.host == "::" else address.host
        return await trio.open_tcp_listeners(address.port, host=host, backlog=limits.LISTEN_BACKLOG)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"cannot listen on {address}: the port is in use; choose another one with --listen HOST:PORT"
            ) from error
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error


class Greeter:
    """Accepts the sockets of sources, and of agents that ask something. `adopt` takes over each one of a
    source that said which connection it carries; `answering`: who answers calls, by their purpose.
    """

    def __init__(
        self,
        adopt: Adopt,
        answering: Mapping[str, Answering],
        ring: EventRing,
        peers: Peers | None = None,
        pairing: Pairing | None = None,
    ) -> None:
        """`peers` None: everybody speaks plain text."""
        self._peers = peers
        self._pairing = pairing
        self._adopt = adopt
        self._answering = answering
        self._ring = ring
        self._free = trio.Semaphore(limits.GREETINGS_WAITING)
        self._calls: Counter[str] = Counter()  # under way, by purpose
        self._door = Door()
        self._refusals = RefusalLog()

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
        peer, host, reason = "?", "?", ""
        try:
            host, port = stream.socket.getpeername()[:2]
            peer = str(Address(host, port))
            channel, greeting, data, reason = await self._listen_to(stream, host)
            if greeting is not None:
                reason = await self._hand_over(stream, channel, greeting, data, peer)
        except (NotTrusted, ChannelRefused) as error:
            if self._peers is None or self._peers.is_news(peer, str(error)):
                reason = str(error)
        except (ReplicatorError, ProtocolError) as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = f"did not say who it is within {limits.GREETING_TIMEOUT_S:.0f} s"
        except (OSError, trio.BrokenResourceError) as error:
            reason = f"connection lost: {error}"
        except Exception:  # a bug; whoever found it must not take the agent, and all its connections, down
            traceback.print_exc(file=sys.stderr)
            reason = "unexpected error: a bug of the agent; its log has the details"
        finally:
            if reason:
                self._refused(host, peer, reason)
            await trio.aclose_forcefully(stream)

    async def _listen_to(
        self, stream: trio.SocketStream, host: str
    ) -> tuple[Channel, Greeting | None, bytes, str]:
        """Who is there, the first line, all that was read, and why there is none. Ends what was begun in
        `_accept`.
        """
        channel = Channel(stream, server=True)
        try:
            if not self._door.enter(host):
                reason = f"{limits.GREETINGS_PER_ADDRESS} others from there have not said what they want"
                return channel, None, b"", reason
            try:
                with trio.fail_after(limits.GREETING_TIMEOUT_S):
                    if self._peers is not None:
                        channel = await self._peers.door.open(stream)
                return channel, *await _read_greeting(channel.stream)
            finally:
                self._door.leave(host)
        finally:
            self._free.release()

    def _refused(self, host: str, peer: str, reason: str) -> None:
        refusal = self._refusals.note(host, reason, trio.current_time())
        if refusal is not None:
            also = (
                f" (and {refusal.unlogged} more from there since the last one told)"
                if refusal.unlogged
                else ""
            )
            self._ring.add(events.PEER_REFUSED, peer=peer, reason=refusal.reason + also)

    async def _hand_over(
        self, stream: trio.SocketStream, channel: Channel, greeting: Greeting, data: bytes, peer: str
    ) -> str:
        """Returns why the socket is of no use; empty if it was handed over. `data`: all that was read."""
        try:
            canonical = str(uuid.UUID(greeting.connection_uuid))
        except ValueError:
            canonical = ""
        if canonical != greeting.connection_uuid:
            raise RemoteProtocolError(f"{greeting.connection_uuid!r} is not a connection")
        channel.rest += data[data.index(b"\n") + 1 :]
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
        answer = self._answering.get(greeting.purpose)
        if answer is not None:
            if self._calls[greeting.purpose] >= limits.AGENT_CALLS:
                return f"{limits.AGENT_CALLS} others ask for {greeting.purpose} at this moment"
            self._calls[greeting.purpose] += 1
            try:
                return await answer(canonical, channel)
            finally:
                self._calls[greeting.purpose] -= 1
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


async def _read_greeting(stream: trio.abc.ReceiveStream) -> tuple[Greeting | None, bytes, str]:
    """Within a time and a size, however slowly it comes."""
    data = b""
    with trio.move_on_after(limits.GREETING_TIMEOUT_S):
        while True:
            chunk = await stream.receive_some(limits.GREETING_BYTES - len(data))
            if not chunk:
                return (
                    None,
                    b"",
                    "closed within its first line" if data else "closed before it said what it wants",
                )
            data += chunk
            found = split_greeting(data)
            if found is not None:
                return found[0], data, ""
    return None, b"", f"did not say what it wants within {limits.GREETING_TIMEOUT_S:.0f} s"
