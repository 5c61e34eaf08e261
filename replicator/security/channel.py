"""A channel between two agents: a socket on which it is known who is there. Made by whoever dials (`dial`)
and by the agent that was dialled (`Door`); then both introduce themselves.

A session does not stay on it: `hand_over` agrees on keys for that session alone, and the process that carries
it makes a second handshake, on the same socket, with these. So no process needs the key of its agent but the
agent, and those that dial.
"""

import base64
import errno
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import msgspec
import trio

from replicator import limits, plain
from replicator.addresses import Address
from replicator.errors import ReplicatorError
from replicator.security import pem, tls
from replicator.security.revocation import Revocations
from replicator.security.revocation import parse as parse_revocations
from replicator.security.settings import SecuritySettings
from replicator.security.tls import TlsError, TlsStream
from replicator.security.trust import KnownPeer, NotTrusted, Peer, TrustStore, judge
from replicator.world import connect_tcp

T = TypeVar("T", bound=msgspec.Struct)

_HANDSHAKE = b"\x16"  # content type of a TLS record that begins one (RFC 8446 5.1)


class ChannelRefused(ReplicatorError):
    """One of both sides does not want to speak to the other. Trying again helps once a person has changed
    that.
    """

    retry = True


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of both sides. `error`: why the channel is of no use; "": it is."""

    uuid: str = ""
    name: str = ""
    error: str = ""
    port: int = 0  # where this agent listens; 0: not told
    successor: str = ""  # certificate (PEM) that this agent will show soon
    proof: str = ""  # signature of it by the key of the certificate that is shown now
    knows: str = ""  # digest of the newest certificate that is known here of the other side


class _Session(msgspec.Struct, frozen=True):
    """What is shown in the handshake of the session that follows."""

    certificate: str


class Handover(msgspec.Struct, frozen=True):
    """All that another process needs to go on with a socket."""

    server: bool
    credentials: str  # key and certificate of this session, PEM
    peer_certificate: str  # PEM
    peer_uuid: str
    first: str = ""  # what was read already, base64


@dataclass
class Channel:
    """`peer` None: in plain text, and nobody has proved anything."""

    stream: trio.abc.HalfCloseableStream
    server: bool
    peer: Peer | None = None
    rest: bytearray = field(default_factory=bytearray)  # read, and not used yet

    async def send(self, value: msgspec.Struct) -> None:
        await self.stream.send_all(msgspec.json.encode(value) + b"\n")

    async def receive(self, type_: type[T]) -> T:
        """One line. Raises ChannelRefused if it is none of this type, and what the stream raises."""
        while (end := self.rest.find(b"\n")) < 0:
            if len(self.rest) > limits.INTRODUCTION_BYTES:
                raise ChannelRefused("the other agent says something too long")
            chunk = await self.stream.receive_some(limits.INTRODUCTION_BYTES)
            if not chunk:
                raise ChannelRefused("the other agent closed the connection")
            self.rest += chunk
        line = bytes(self.rest[:end])
        del self.rest[: end + 1]
        try:
            return msgspec.json.decode(line, type=type_)
        except msgspec.DecodeError as error:
            raise ChannelRefused(f"the other agent says what nobody understands: {error}") from None


# --- contexts ---


class Contexts:
    """The context of the side that is dialled, made anew when a file that it depends on has changed."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._store = TrustStore(settings.trust)
        self._stamp: object = None
        self._made: _Made | None = None

    def get(self) -> "_Made":
        """Raises ReplicatorError if a file is damaged or not there, and never was another one."""
        stamp = (self._store.stamp(), *map(_stamp, (self._settings.ca, *self._settings.credentials)))
        if self._made is None or stamp != self._stamp:
            try:
                self._made, self._stamp = _make(self._settings, tls.server_context), stamp
            except ReplicatorError:
                if self._made is None:
                    raise
                # Half-written, or wrong: what was there is in force until it can be used.
        return self._made


def _stamp(path: str | None) -> object:
    try:
        state = os.stat(path) if path else None
    except OSError:
        return None
    return state and (state.st_ino, state.st_mtime_ns, state.st_size)


class _Made(NamedTuple):
    context: ssl.SSLContext
    known: list[KnownPeer]
    revocations: Revocations


def _make(settings: SecuritySettings, kind: Callable[[str, str | None, str], ssl.SSLContext]) -> _Made:
    known = TrustStore(settings.trust).all()
    anchors = [tls.anchor(certificate.pem) for peer in known for certificate in peer.certificates]
    certificate, key = settings.credentials
    name, revocations = certificate, Revocations()
    try:
        if settings.ca:
            name = settings.ca
            with open(settings.ca) as file:
                text = file.read()
            revocations = parse_revocations(text, settings.ca)
            anchors += pem.certificates_in(text)
            name = certificate
        return _Made(kind(certificate, key, "".join(anchors)), known, revocations)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else error.reason
        raise ReplicatorError(f"{name}: cannot be used: {reason or error}") from None


# --- dialling ---


async def dial(address: Address, settings: SecuritySettings) -> Channel:
    """A channel to the agent at an address. Raises OSError, ChannelRefused, and ReplicatorError if a file of
    ours is damaged.
    """
    stream = await connect_tcp(address.host, address.port)
    try:
        return await secure(stream, address, settings)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def secure(stream: trio.SocketStream, address: Address, settings: SecuritySettings) -> Channel:
    """The same on a socket that stands."""
    if not settings.identity:
        return Channel(stream, server=False)
    if may_be_plain(stream, settings, address.host) and not _was_paired(address, settings):
        return Channel(stream, server=False)
    made = await trio.to_thread.run_sync(_make, settings, tls.client_context)
    secured = TlsStream(stream, made.context, server=False)
    try:
        await secured.handshake()
        peer = _judge(secured, made, settings)
        if peer.by_authority:
            _check_host(secured, address.host)
    except TlsError as error:
        hint = f": pair with it: dtctl pair {address.host}" if "is not known" in str(error) else ""
        raise ChannelRefused(f"{address}: {error}{hint}") from None
    except NotTrusted as error:
        raise ChannelRefused(f"{address}: {error}") from None
    except trio.BrokenResourceError as error:
        raise broken(error) from None
    return Channel(secured, server=False, peer=peer)


def _was_paired(address: Address, settings: SecuritySettings) -> bool:
    """Whether plain text is spoken for want of a pairing only (`--insecure`), and there is one: so agents get
    from the one to the other without being stopped at the same time.
    """
    if not settings.insecure:
        return False
    paired = (peer for peer in TrustStore(settings.trust).all() if peer.certificates and not peer.revoked)
    return any(peer.address == str(address) for peer in paired)


def broken(error: trio.BrokenResourceError) -> OSError:
    cause = error.__cause__
    return cause if isinstance(cause, OSError) else OSError(errno.ECONNRESET, "the connection broke")


def _judge(stream: TlsStream, made: _Made, settings: SecuritySettings) -> Peer:
    der = stream.peer_certificate
    peer = judge(der, stream.parsed_certificate, made.known, authority=bool(settings.ca))
    if peer.by_authority and (objection := made.revocations.objection(der)):
        raise NotTrusted(f"the certificate of {peer.name} ({pem.short(peer.fingerprint)}): {objection}")
    return peer


def _check_host(stream: TlsStream, host: str) -> None:
    """Everybody whom the authority has signed could answer: it has to be the host that was meant."""
    names = stream.parsed_certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    if not any(kind in ("DNS", "IP Address") and str(name).lower() == host.lower() for kind, name in names):
        raise NotTrusted(f"its certificate does not name {host}: add that to it, as DNS or IP address")


async def introduce(channel: Channel, greeting: bytes, mine: Introduction) -> Introduction:
    """Of the side that dialled: its first line, and who both are. Raises ChannelRefused, OSError."""
    try:
        await channel.stream.send_all(greeting)
        await channel.send(mine)
        theirs = await channel.receive(Introduction)
    except TlsError as error:
        raise ChannelRefused(str(error)) from None
    except trio.BrokenResourceError as error:
        raise broken(error) from None
    if theirs.error:
        raise ChannelRefused(f"the other agent refuses: {theirs.error[:500]}")
    check_introduction(channel, theirs)
    return theirs


def check_introduction(channel: Channel, theirs: Introduction) -> None:
    """Raises ChannelRefused."""
    if channel.peer is not None and theirs.uuid != channel.peer.uuid:
        raise ChannelRefused(f"{channel.peer.name} says that it is another agent ({theirs.uuid[:40]!r})")


def may_be_plain(stream: trio.SocketStream, settings: SecuritySettings, name: str = "") -> bool:
    """`name`: as it was dialled."""
    try:
        own, peer = stream.socket.getsockname()[0], stream.socket.getpeername()[0]
    except OSError:
        return False
    return plain.is_allowed(settings.allow_plain, settings.loopback_plain, own, peer, name)


# --- being dialled ---


class Door:
    """Makes channels of accepted sockets. Without an identity everybody speaks plain text."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._contexts = Contexts(settings)

    def check_files(self) -> None:
        """Raises ReplicatorError, also for a private key that everybody can read."""
        self._contexts.get()
        certificate, key = self._settings.credentials
        pem.refuse_public(key or certificate)

    async def open(self, stream: trio.SocketStream) -> Channel:
        """A stranger is refused here, by the handshake, and costs nothing else. Raises NotTrusted, OSError,
        and BrokenResourceError.
        """
        if await stream.socket.recv(1, socket.MSG_PEEK) != _HANDSHAKE or not self._settings.identity:
            return Channel(stream, server=True)
        made = self._contexts.get()
        secured = TlsStream(stream, made.context, server=True)
        try:
            await secured.handshake()
        except TlsError as error:
            raise NotTrusted(str(error)) from None
        channel = Channel(secured, server=True)
        try:
            channel.peer = _judge(secured, made, self._settings)
        except NotTrusted as error:
            await channel.send(Introduction(error=str(error)))
            # What it says meanwhile is read: a socket that is closed with something unread loses the error.
            with trio.move_on_after(limits.CLOSE_TIMEOUT_S):
                await secured.receive_some()
            raise
        return channel

    def objection(self, certificate: bytes) -> str:
        """What is to be said by now against one (DER) that was accepted as the authority's; "": nothing."""
        return self._contexts.get().revocations.objection(certificate)

    def check_plain(self, stream: trio.SocketStream) -> None:
        """Raises NotTrusted."""
        if self._settings.identity and not may_be_plain(stream, self._settings):
            raise NotTrusted(
                "plain text is refused: it is no agent that was paired, or is configured otherwise"
            )


# --- a session of its own ---


async def hand_over(channel: Channel, credentials: str) -> Handover:
    """Agree on a session with these credentials (PEM, key and certificate) on the same socket. The channel is
    of no more use. Raises ChannelRefused, OSError.
    """
    assert channel.peer is not None and isinstance(channel.stream, TlsStream)
    certificate, first = await _exchange(channel, pem.certificate_of(credentials))
    return Handover(
        channel.server, credentials, certificate, channel.peer.uuid, base64.b64encode(first).decode()
    )


async def _exchange(channel: Channel, certificate: str) -> tuple[str, bytes]:
    assert isinstance(channel.stream, TlsStream)
    try:
        await channel.send(_Session(certificate))
        theirs = await channel.receive(_Session)
        return tls.anchor(theirs.certificate), await channel.stream.unwrap()
    except trio.BrokenResourceError as error:
        raise broken(error) from None


def take_over(transport: trio.abc.HalfCloseableStream, handover: Handover) -> TlsStream:
    """The session that was agreed on. Raises ReplicatorError, ssl.SSLError."""
    with pem.as_file(handover.credentials) as path:
        context = tls.session_context(path, None, handover.peer_certificate, server=handover.server)
    return TlsStream(
        transport,
        context,
        server=handover.server,
        first_bytes=base64.b64decode(handover.first),
        expected=pem.der_of(handover.peer_certificate),
        peer_uuid=handover.peer_uuid,
    )


def _certificate_in(path: str) -> str:
    with open(path) as file:
        return pem.certificate_of(file.read())


async def go_on(channel: Channel, settings: SecuritySettings) -> TlsStream:
    """Hand over to this same process, which dialled and shows the certificate of its agent again."""
    assert channel.peer is not None and isinstance(channel.stream, TlsStream)
    certificate, key = settings.credentials
    shown = await trio.to_thread.run_sync(_certificate_in, certificate)
    theirs, first = await _exchange(channel, shown)
    return TlsStream(
        channel.stream.transport,
        tls.session_context(certificate, key, theirs, server=False),
        server=False,
        first_bytes=first,
        expected=pem.der_of(theirs),
        peer_uuid=channel.peer.uuid,
    )
