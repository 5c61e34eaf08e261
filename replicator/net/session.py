"""A session over a stream: the engine with a socket, heartbeats and an orderly end.

One task reads (`receive`), any task may send: sends are serialised and keep the order in which they were
called. `heartbeat` runs beside both. Nothing is buffered here beyond the frame that is arriving: a reader
that does not call `receive` holds the peer up (back-pressure), and that time does not count as the peer's
silence. All waiting follows trio's clock.
"""

import socket
from collections import deque
from collections.abc import AsyncIterator

import trio

from replicator import limits
from replicator.bounds import one_line
from replicator.errors import RemoteProtocolError
from replicator.net import congestion
from replicator.net.buffers import joined
from replicator.net.engine import Buffer, Data, Engine, Event, Role
from replicator.net.frames import Bye, Disconnect, Frame, Ping
from replicator.net.transmission import Transmission
from replicator.security.tls import TlsError, TlsStream, transport_of

_SO_SNDBUFFORCE = 32  # socket(7): beyond net.core.wmem_max; not named by Python


class SessionEnded(Exception):
    """A session is over; the text says why, for a person."""


class PeerLeft(SessionEnded):
    """The peer said BYE: the end was meant."""


class ConnectionLost(SessionEnded):
    """The stream ended or broke."""


class KeysUsed(SessionEnded):
    """The keys have encrypted as much as they are to. The next session has new ones."""


class PeerSilent(SessionEnded):
    """Nothing was heard for too long."""


def tune_socket(stream: trio.abc.Stream, congestion_control: str = "") -> None:
    """Options of a session's socket; other streams are left alone. `congestion_control` "": the host's."""
    stream = transport_of(stream)
    if isinstance(stream, trio.SocketStream) and stream.socket.family in (socket.AF_INET, socket.AF_INET6):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a record must not wait for the next
        # Heartbeats keep the entry of a NAT gateway alive; these find a dead peer where none are sent.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limits.KEEPALIVE_IDLE_S)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, limits.KEEPALIVE_INTERVAL_S)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, limits.KEEPALIVE_PROBES)
        # What was sent and is not acknowledged for so long will not be: the system's own patience is 15
        # minutes, in which a send that waits for room would not hear that the session is over.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limits.UNACKNOWLEDGED_MS)
        _widen(stream)
        if congestion_control:
            congestion.use(stream, congestion_control)  # the agent has looked whether it can be


def _widen(stream: trio.SocketStream) -> None:
    """A send buffer that takes several pieces of a mirror.

    By itself it grows with the window, which stays small on a short line: every piece would go in a dozen
    calls with a wake-up each.
    """
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        try:
            stream.setsockopt(socket.SOL_SOCKET, option, limits.SEND_BUFFER_BYTES)
            return
        except OSError:
            continue  # without CAP_NET_ADMIN the system's maximum has to do


class Session:
    """Frames over `stream`. The creator runs `heartbeat()` in a nursery of its own and ends with
    `close()`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        engine: Engine,
        *,
        heartbeat_s: float = limits.HEARTBEAT_S,
        silence_s: float = limits.PEER_SILENCE_S,
        first_bytes: bytes = b"",
        congestion_control: str = "",
    ) -> None:
        """`first_bytes`: what somebody has already read from the stream. `congestion_control`: see
        `tune_socket`.
        """
        tune_socket(stream, congestion_control)
        self.engine = engine
        self.sent_bytes = 0
        self.received_bytes = 0
        self._transmission: Transmission | None = None
        self._stream = stream
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._first_bytes = first_bytes
        self._events: deque[Event] = deque()
        self._send_lock = trio.StrictFIFOLock()
        self._last_sent = trio.current_time()
        self._waiting_since: float | None = None  # the reader waits for the peer since then
        self._read_scope: trio.CancelScope | None = None
        self._ended: SessionEnded | RemoteProtocolError | None = None
        self._reader_done = trio.Event()
        self._reading = False

    @property
    def peer_uuid(self) -> str:
        """The agent that has proved to be there; "": nobody has, in plain text."""
        return self._stream.peer_uuid if isinstance(self._stream, TlsStream) else ""

    @property
    def keys_are_used(self) -> bool:
        """Whether it is time for another session. Only the source sees to that: nearly all is sent by it."""
        if not isinstance(self._stream, TlsStream) or self.engine.role is not Role.SOURCE:
            return False
        return self._stream.is_used_up

    async def greet(self, connection_uuid: str, purpose: str = "replicate") -> None:
        """The source's first words."""
        async with self._send_lock:
            await self._write(self.engine.greet(connection_uuid, purpose))

    def use(self, transmission: Transmission, *, packing: bool) -> None:
        """From here on frames are written as it says. `packing`: the peer understands PACKED."""
        transmission.begin(self._stream, packing=packing)
        self._transmission = transmission

    async def send(self, frame: Frame, data: Data | None = None) -> int:
        """Send `frame` (with the bulk data behind it), after everything sent before. Returns how many bytes
        compression has saved of it.

        Returns when the stream has taken the bytes; `data` may be changed then. Raises `SessionEnded`.
        Raises `KeysUsed`
        before the frame; then the session can be closed in good order.
        Cancelling it in the middle of a frame ends the session, because the peer could not tell where the
        next one starts.
        """
        async with self._send_lock:
            if self._ended is not None:
                raise SessionEnded(str(self._ended)) from self._ended
            if self.keys_are_used and not isinstance(frame, Ping | Disconnect):
                raise KeysUsed("the keys of the session have been used for long enough")
            # Taking the lock has let others run. A cancellation that came meanwhile is heard here, where
            # nothing is lost by it, and not with the frame begun.
            await trio.lowlevel.checkpoint_if_cancelled()
            return await self._write(self.engine.send(frame, data), frame)

    async def receive(self) -> Event:
        """The next event, PING excepted. For one task only.

        Raises `SessionEnded` (`PeerLeft`, `ConnectionLost`, `PeerSilent`) or `RemoteProtocolError`.
        Cancelling it loses nothing.
        """
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Bye):
                    raise self._end(PeerLeft(one_line(event.reason)))
                if not isinstance(event, Ping):
                    return event
            if self._ended is not None:
                raise self._ended
            if self.engine.failure is not None:
                raise self._end(self.engine.failure)
            try:
                self._events.extend(await self._read())
            except RemoteProtocolError as error:
                raise self._end(error) from None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """All events; ends when the peer says BYE, and raises as `receive` does for any other end."""
        while True:
            try:
                event = await self.receive()
            except PeerLeft:
                return
            yield event

    async def heartbeat(self) -> None:
        """Send PING when nothing else was sent, and end a session whose peer is silent: then `receive`
        raises.

        Returns when the session has ended.
        """
        while self._ended is None:
            now = trio.current_time()
            if self._waiting_since is not None and now >= self._waiting_since + self._silence_s:
                self._end(PeerSilent(f"nothing was heard from the peer for {self._silence_s:g} s"))
                if self._read_scope is not None:
                    self._read_scope.cancel()
                return
            if now >= self._last_sent + self._heartbeat_s and not self._send_lock.locked():
                # While a send is under way the peer hears us, or does not read: a PING could change neither.
                self._last_sent = now
                if self.engine.may_send(Ping):
                    try:
                        await self.send(Ping())
                    except SessionEnded:
                        return  # the reader finds out by itself
            silent_from = now if self._waiting_since is None else self._waiting_since
            ping_at = now if self._send_lock.locked() else self._last_sent
            await trio.sleep_until(min(ping_at + self._heartbeat_s, silent_from + self._silence_s))

    async def close(self, reason: str, *, linger: bool = True) -> None:
        """End the session: BYE if that is still possible, then the stream. Takes at most `CLOSE_TIMEOUT_S`.

        `linger`: wait for the peer to close as well; otherwise what it still sends may destroy the BYE.

        The reader, if another task is reading, gets what the peer had sent before it heard us, then
        `SessionEnded`.
        """
        with trio.move_on_after(limits.CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            try:
                if self.engine.may_send(Bye) and not isinstance(self._ended, ConnectionLost):
                    async with self._send_lock:
                        bye = Bye(reason[:1000])
                        await self._write(self.engine.send(bye), bye)
                        if isinstance(self._stream, trio.abc.HalfCloseableStream):
                            await self._stream.send_eof()
                    if linger:
                        await self._linger()
            except (SessionEnded, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer is gone: there is nobody to tell
        if self._ended is None:
            self._end(SessionEnded(reason))
        if self._read_scope is not None:
            self._read_scope.cancel()
        await trio.aclose_forcefully(self._stream)

    async def _linger(self) -> None:
        """Wait until the peer has closed: closing a socket with unread bytes would destroy our BYE on its
        way.
        """
        if self._reading:
            await self._reader_done.wait()
            return
        self._end(SessionEnded("the session was closed"))  # a reader that comes now must not read beside us
        while await self._stream.receive_some(limits.RECEIVE_BYTES):
            pass

    async def _read(self) -> list[Event]:
        """What the next bytes complete."""
        if self.engine.has_more:
            return self.engine.receive(b"")
        if self._first_bytes:
            first, self._first_bytes = self._first_bytes, b""
            return self.engine.receive(first)
        # The body of a large frame goes straight to where it belongs.
        missing = self.engine.missing
        self._waiting_since = trio.current_time()
        self._reading = True
        data: Buffer = b""
        count = 0
        try:
            with trio.CancelScope() as self._read_scope:
                if missing is None or len(missing) < limits.RECEIVE_BYTES:
                    data = await self._stream.receive_some(limits.RECEIVE_BYTES)
                    count = len(data)
                elif isinstance(self._stream, TlsStream):
                    count = await self._stream.receive_into(missing)
                elif isinstance(self._stream, trio.SocketStream):
                    count = await self._stream.socket.recv_into(missing)
                else:
                    data = await self._stream.receive_some(limits.RECEIVE_BYTES)
                    count = len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise self._end(ConnectionLost(_reason(error))) from error
        finally:
            if missing is not None:
                missing.release()  # the engine may have to make the buffer larger
            self._waiting_since = None
            self._reading = False
            self._read_scope = None
        if self._ended is not None:  # while we waited: by `heartbeat` or `close`
            raise self._ended
        if not count:
            where = " in the middle of a frame" if self.engine.in_frame else ""
            raise self._end(ConnectionLost(f"the peer closed the connection{where}"))
        self.received_bytes += count
        return self.engine.receive(data) if data else self.engine.received_in_place(count)

    async def _write(self, buffers: list[Buffer], frame: Frame | None = None) -> int:
        """Under the lock. After a failure in the middle of a frame nothing more can be said."""
        whole = False
        before = self.sent_bytes
        try:
            if self._transmission is not None and not isinstance(frame, Bye | Ping):
                await self._transmission.write(self.engine, buffers, self._write_buffer)
            else:
                for buffer in joined(buffers):
                    await self._write_buffer(buffer)
            whole = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._end(ConnectionLost(_reason(error))) from error
        finally:
            if not whole and self._ended is None:  # cancelled
                self._end(ConnectionLost("a send was given up in the middle of a frame"))
        self._last_sent = trio.current_time()
        return sum(map(len, buffers)) - (self.sent_bytes - before)

    async def _write_buffer(self, buffer: Buffer) -> None:
        await self._stream.send_all(buffer)
        self.sent_bytes += len(buffer)

    def _end(self, reason: SessionEnded | RemoteProtocolError) -> SessionEnded | RemoteProtocolError:
        """Note why the session is over; the first reason stays. Returns it, for `raise`."""
        if self._ended is None:
            self._ended = reason
        self._reader_done.set()
        return self._ended


def _reason(error: BaseException) -> str:
    if isinstance(error, TlsError):
        return f"the connection broke: {error}"
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return f"the connection broke: {cause.strerror}"
    return "the connection broke"
