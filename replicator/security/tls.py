"""TLS 1.3 over a trio stream, and the contexts for it.

The cryptography is done between two buffers in memory: by Python's `ssl`, and in sessions by the OpenSSL of
`cryptography` if that can be used (`bundled.py`). This is `trio.SSLStream` for bulk: one call takes all
records that have arrived, into the caller's buffer, and one write to the socket takes many of them.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar, Union

import trio

from replicator import limits
from replicator.security import pem

if TYPE_CHECKING:
    from replicator.security.bundled import Connection, Context, Incoming, Outgoing

T = TypeVar("T")
AnyContext = Union[ssl.SSLContext, "Context"]


class TlsError(trio.BrokenResourceError):
    """A handshake failed, or what came later was not of the peer. The text says why, for a person."""


def server_context(certificate: str, key: str | None, anchors: str) -> ssl.SSLContext:
    """For the side that was dialled. Files of its certificate and key; `anchors`: certificates in PEM of
    which one has to be the peer's, or has to have signed it.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, anchors)


def client_context(certificate: str, key: str | None, anchors: str) -> ssl.SSLContext:
    """The same for the side that dials."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, anchors)


def session_context(certificate: str, key: str | None, anchor: str, *, server: bool) -> AnyContext:
    """For a session, whose peer shows exactly this certificate: by the faster library that is there."""
    try:
        from replicator.security.bundled import Context  # not in agents before their children run
    except ImportError:
        return (server_context if server else client_context)(certificate, key, anchor)
    return Context(certificate, key, anchor, server=server)


def preload() -> None:
    with suppress(ImportError):
        import_module("replicator.security.bundled")


def unverified_server_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """For a pairing, which proves by other means who is there: nobody is asked for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    return context


def unverified_client_context() -> ssl.SSLContext:
    """The other side of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int, certificate: str, key: str | None, anchors: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # whom a certificate has to name is decided by `trust.judge`
    context.verify_mode = ssl.CERT_REQUIRED
    # A certificate that is trusted by itself needs no issuer that is.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # each session proves itself anew
    context.load_cert_chain(certificate, key)
    if anchors:
        context.load_verify_locations(cadata=anchors)
    return context


def opened(
    context: AnyContext, server: bool
) -> "tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO] | tuple[Connection, Incoming, Outgoing]":
    """One end, what has arrived for it, and what it has to send."""
    if isinstance(context, ssl.SSLContext):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return context.wrap_bio(incoming, outgoing, server_side=server), incoming, outgoing
    connection = context.connect()
    return connection, connection.incoming, connection.outgoing


class TlsStream(trio.abc.HalfCloseableStream):
    """The handshake is made by the first call of any other method, or by `handshake`."""

    def __init__(
        self,
        transport: trio.abc.HalfCloseableStream,
        context: AnyContext,
        *,
        server: bool,
        first_bytes: bytes = b"",
        expected: bytes = b"",
        peer_uuid: str = "",
    ) -> None:
        """`first_bytes`: what was read from the transport already. `expected`: the certificate (DER) that the
        peer has to show, besides what the context asks for; b"": any that this accepts. `peer_uuid`: the
        agent that has proved to be there.
        """
        self.transport = transport
        self.peer_uuid = peer_uuid
        self.written_bytes = self.read_bytes = 0
        """Of the transport, ever: with what TLS adds to the data."""
        self._object: ssl.SSLObject | Connection
        self._incoming: ssl.MemoryBIO | Incoming
        self._outgoing: ssl.MemoryBIO | Outgoing
        self._object, self._incoming, self._outgoing = opened(context, server)
        if first_bytes:
            self._incoming.write(first_bytes)
        self._expected = expected
        self._ready = False
        self._opening = trio.Lock()
        self._sending = trio.StrictFIFOLock()
        self._raw = memoryview(bytearray(limits.TLS_READ_BYTES))

    @property
    def is_used_up(self) -> bool:
        """Whether the keys of one direction have encrypted as much as they are to."""
        return max(self.written_bytes, self.read_bytes) >= limits.TLS_KEY_BYTES

    # --- the beginning and the end ---

    async def handshake(self) -> None:
        """Raises TlsError, and BrokenResourceError if the transport broke."""
        async with self._opening:
            if self._ready:
                return
            try:
                await self._converse(self._object.do_handshake)
            except TlsError:
                # The alert that says why is still to be sent.
                with trio.move_on_after(limits.CLOSE_TIMEOUT_S):
                    await self._flush()
                raise
            if self._expected and self.peer_certificate != self._expected:
                raise TlsError("the peer showed another certificate than was agreed on")
            self._ready = True

    @property
    def peer_certificate(self) -> bytes:
        """In DER; b"": none was asked for."""
        return self._object.getpeercert(binary_form=True) or b""

    @property
    def parsed_certificate(self) -> dict[str, object]:
        """As `SSLObject.getpeercert` has it. Not of a session, whose peer shows what was agreed on."""
        assert isinstance(self._object, ssl.SSLObject)
        return dict(self._object.getpeercert() or {})

    async def unwrap(self) -> bytes:
        """Agree with the peer that what follows on the transport is not of this session. Returns what was
        read of it.
        """
        # Nothing follows on a session.
        assert isinstance(self._object, ssl.SSLObject) and isinstance(self._incoming, ssl.MemoryBIO)
        await self.handshake()
        await self._converse(self._object.unwrap)
        return self._incoming.read()

    async def _converse(self, step: Callable[[], T]) -> T:
        """Carry out a step that needs answers of the peer."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._feed():
                    raise TlsError("the peer closed the connection during the handshake") from None
                continue
            except ssl.SSLError as error:
                raise TlsError(reason_of(error)) from error
            await self._flush()
            return result

    # --- data ---

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.handshake()
        view = memoryview(data)
        async with self._sending:
            while len(view):
                try:
                    written = self._object.write(view[: limits.TLS_WRITE_BYTES])
                except ssl.SSLError as error:
                    raise TlsError(reason_of(error)) from error
                view = view[written:]
                await self._drain()

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = memoryview(bytearray(max_bytes or limits.TLS_READ_BYTES))
        return bytes(buffer[: await self.receive_into(buffer)])

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with what is there, at least one byte. Returns how many; 0: the peer has ended."""
        await self.handshake()
        while True:
            filled = 0
            try:
                while filled < len(buffer):
                    count = self._object.read(len(buffer) - filled, buffer[filled:])
                    if not count:
                        break
                    filled += int(count)
            except ssl.SSLWantReadError:
                if not filled:
                    if await self._feed():
                        continue
                    return 0
            except ssl.SSLError as error:
                if not filled:
                    raise TlsError(reason_of(error)) from error
            if self._outgoing.pending and not self._sending.locked():
                await self._flush()  # an answer to a change of keys
            await trio.lowlevel.checkpoint()
            return filled

    async def send_eof(self) -> None:
        """Of the transport: what is read there says by itself whether it is all (no end without a BYE)."""
        async with self._sending:
            await self.transport.send_eof()

    async def aclose(self) -> None:
        await self.transport.aclose()

    # --- the transport ---

    async def _flush(self) -> None:
        async with self._sending:
            await self._drain()

    async def _drain(self) -> None:
        """Under the lock."""
        while self._outgoing.pending:
            data = self._outgoing.read()
            self.written_bytes += len(data)
            await self.transport.send_all(data)

    async def _feed(self) -> bool:
        """Whether more has arrived."""
        if isinstance(self.transport, trio.SocketStream):
            try:
                count = await self.transport.socket.recv_into(self._raw)
            except OSError as error:
                raise trio.BrokenResourceError from error
            self._incoming.write(self._raw[:count])
            self.read_bytes += count
            return bool(count)
        data = await self.transport.receive_some(limits.TLS_READ_BYTES)
        self._incoming.write(data)
        self.read_bytes += len(data)
        return bool(data)


_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "the other agent does not know this one: pair them (dtctl pair)",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other agent does not accept the certificate of this one",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate of this agent has expired: dtctl identity renew",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other agent does not accept the certificate of this one",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other agent asks for a certificate",
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks an older TLS than 1.3",
    "NO_SHARED_CIPHER": "it speaks an older TLS than 1.3",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "HTTP_REQUEST": "it speaks HTTP, and is no agent",
}


def reason_of(error: ssl.SSLError) -> str:
    """One line for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # Of a certificate nobody has told us about, OpenSSL misses the issuer.
        expired = error.verify_code in (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED
        return f"its certificate {'is not valid now' if expired else 'is not known'}: {error.verify_message}"
    return _ALERTS.get(error.reason or "", error.reason or str(error))


def transport_of(stream: trio.abc.Stream) -> trio.abc.Stream:
    """The stream below TLS, if there is TLS."""
    return stream.transport if isinstance(stream, TlsStream) else stream


def anchor(certificate: str) -> str:
    """A certificate as `load_verify_locations` takes it. Raises ReplicatorError if it is none."""
    pem.der_of(certificate)
    return pem.certificate_of(certificate)
