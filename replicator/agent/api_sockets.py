"""Where the control API can be reached: the Unix socket in the home directory, and a port for other hosts.

Each accepted connection is told who is at its other end before a byte of it is read: `request.state.peer` of
every request. Everybody may connect to the Unix socket, as an agent is visible and can be pinged without
access (SC-03); what they may do is the gate's affair.
"""

import errno
import os
import socket
import ssl
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from replicator import events, limits
from replicator.access import LoginRequiredError, check_user
from replicator.addresses import Address, parse_host_port
from replicator.agent.audit import Sparing
from replicator.agent.control_tls import ControlTls, certified_user
from replicator.agent.gate import Gate, Peer
from replicator.agent.listener import note_other_port, open_listeners, permitted
from replicator.agent.throttle import network
from replicator.errors import ReplicatorError, UsageError
from replicator.events import EventRing
from replicator.unix_sockets import peer_credentials, socket_address

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Meet = Callable[[trio.SocketStream], Awaitable[tuple[Stream, Peer]]]
"""What to serve of an accepted connection, and who is there. Raises ReplicatorError, OSError."""

_NOBODY = 2**32 - 1  # loginuid of a process that no login has started


class ApiSockets:
    """Serves `app`, an ASGI application, until `stop` returns."""

    def __init__(self, app: Any, config: HypercornConfig, gate: Gate, ring: EventRing) -> None:
        self._app = ASGIWrapper(app)
        self._config = config
        self._gate = gate
        self._ring = ring
        self._context = WorkerContext(None)
        self._clients: Counter[object] = Counter()
        self._streams: set[trio.SocketStream] = set()
        self._closed = Sparing(limits.AUDIT_REFUSED_QUIET_S)

    async def serve(
        self,
        path: str,
        remote: tuple[str, ControlTls] | None,
        stop: Callable[[], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """`path`: of the Unix socket. `remote`: address of the port for other hosts, and its TLS; or none."""
        async with trio.open_nursery() as ending:
            async with trio.open_nursery() as clients:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept, open_socket(path), self._meet_local, clients)
                    if remote is not None:
                        meet = self._meet_remote(remote[1])
                        for listener in await self._open_port(*remote):
                            accepting.start_soon(self._accept, listener, meet, clients)
                    task_status.started()
                    await stop()
                    accepting.cancel_scope.cancel()
                await self._context.terminated.set()
                ending.start_soon(self._end, clients.cancel_scope)
            ending.cancel_scope.cancel()

    async def _end(self, clients: trio.CancelScope) -> None:
        """Answers under way have a moment. Sending is shielded from being cancelled, so who does not read
        what they asked for is closed.
        """
        await trio.sleep(limits.API_GRACE_S)
        for stream in list(self._streams):
            await trio.aclose_forcefully(stream)
        clients.cancel()

    async def _open_port(self, listen: str, tls: ControlTls) -> list[trio.SocketListener]:
        asked = parse_host_port(listen)
        address = permitted(asked, limits.CONTROL_PORT)
        note_other_port(self._ring, asked, address)
        try:
            listeners = await open_listeners(address)
        except ReplicatorError as error:  # on this host the agent can still be used
            self._ring.add(events.REMOTE_CONTROL_FAILED, reason=str(error))
            return []
        port = listeners[0].socket.getsockname()[1]
        self._gate.control = str(Address(address.host, port))
        self._gate.tls = tls
        self._ring.add(events.REMOTE_CONTROL, listen=self._gate.control, fingerprint=tls.fingerprint)
        return listeners

    async def _accept(self, listener: trio.SocketListener, meet: Meet, clients: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        raise
                    await trio.sleep(limits.ACCEPT_PAUSE_S)
                else:
                    clients.start_soon(self._serve_one, stream, meet)

    async def _serve_one(self, stream: trio.SocketStream, meet: Meet) -> None:
        """One connection. Whoever has too many of them, and is not root, is closed at once."""
        who = "?"
        try:
            who, whose = _side(stream)
            if any(self._clients[key] >= most for key, most in whose):
                raise UsageError("too many connections at a time")
            self._clients.update(key for key, _ in whose)
            self._streams.add(stream)
            try:
                met, peer = await meet(stream)
                await TCPServer(
                    self._app,
                    self._config,
                    self._context,
                    ConnectionState({"peer": peer}),
                    met,  # type: ignore[arg-type]  # its own serve() gives it both kinds
                ).run()
            finally:
                self._streams.discard(stream)
                self._clients.subtract(key for key, _ in whose)
                self._clients += Counter()  # forgets those that have none
        except ReplicatorError as error:
            self._tell(who, str(error))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it is gone
        except Exception:  # a bug: of one connection, and not of all
            traceback.print_exc()
        finally:
            await trio.aclose_forcefully(stream)

    def _tell(self, who: str, reason: str) -> None:
        if self._closed.say(who, trio.current_time()):
            self._ring.add(events.CONTROL_CLOSED, peer=who, reason=reason)

    async def _meet_local(self, stream: trio.SocketStream) -> tuple[Stream, Peer]:
        peer = peer_credentials(stream.socket)
        return stream, await self._gate.local(peer.uid, f"local ({origin_of(peer.pid)})")

    def _meet_remote(self, tls: ControlTls) -> Meet:
        async def meet(stream: trio.SocketStream) -> tuple[Stream, Peer]:
            address = str(stream.socket.getpeername()[0])
            encrypted = trio.SSLStream(stream, tls.context(), server_side=True, https_compatible=True)
            try:
                with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
                    await encrypted.do_handshake()
            except trio.TooSlowError:
                raise LoginRequiredError("no TLS within the time for it") from None
            except trio.BrokenResourceError as error:
                cause = error.__cause__
                reason = (
                    getattr(cause, "reason", None) or "closed"
                    if isinstance(cause, ssl.SSLError)
                    else "closed"
                )
                raise LoginRequiredError(f"no TLS: {reason}") from None
            user = certified_user(encrypted.getpeercert())
            return encrypted, Peer(address=address, certified=check_user(user) if user else "")

        return meet


def open_socket(path: str) -> trio.SocketListener:
    """A new Unix socket that everybody may connect to; one that was left there goes."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(path) as address:
            listening.bind(address)
            os.chmod(address, 0o666)
        listening.listen(128)
        return trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    except BaseException:
        listening.close()
        raise


def origin_of(pid: int) -> str:
    """What is known of a process beside its user: its id, and who had logged in before they became that user
    (sudo, su). For people to read; nothing is decided by it.
    """
    try:
        with open(f"/proc/{pid}/loginuid") as file:
            login = int(file.read())
    except (OSError, ValueError):
        login = _NOBODY
    return f"pid {pid}" if login == _NOBODY else f"pid {pid}, login uid {login}"


def _side(stream: trio.SocketStream) -> tuple[str, list[tuple[object, int]]]:
    """(the other side in words, what counts its connections and how many there may be)."""
    if stream.socket.family == socket.AF_UNIX:
        uid = peer_credentials(stream.socket).uid
        return f"uid {uid}", [] if uid == 0 else [(uid, limits.API_CLIENTS_OF_ONE)]
    address = str(stream.socket.getpeername()[0])
    return address, [
        (network(address), limits.API_CLIENTS_OF_ONE),
        ("remote", limits.API_CLIENTS_REMOTE),
    ]
