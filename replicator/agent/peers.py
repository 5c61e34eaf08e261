"""Other agents: who this one is to them, which of them it trusts, and how a socket of theirs is let in."""

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address, parse_host_port
from replicator.agent.state import AgentIdentity
from replicator.config import Config
from replicator.errors import ReplicatorError, UnreachableError
from replicator.events import EventRing
from replicator.net.engine import encode_greeting
from replicator.paths import Home
from replicator.security import pem
from replicator.security.channel import (
    Channel,
    ChannelRefused,
    Door,
    Handover,
    Introduction,
    check_introduction,
    dial,
    hand_over,
    introduce,
)
from replicator.security.settings import SecuritySettings, Successor
from replicator.security.tls import TlsStream
from replicator.security.trust import KnownCertificate, KnownPeer, Peer, TrustStore

PURPOSE = "introduce"
NO_CONNECTION = "00000000-0000-0000-0000-000000000000"
EVERYBODY = ("0.0.0.0/0", "::/0")
_SUCCESSOR = b"replicator successor 1\0"


def load_certificates() -> Any:
    """Loaded when it is needed: a tenth of a second, and most agents that start need none of it."""
    return import_module("replicator.security.certificates")


def settings_of(home: Home, config: Config, *, insecure: bool) -> SecuritySettings:
    """`insecure`: plain text with everybody, but paired agents, which are spoken to in TLS."""
    security = config.security
    return SecuritySettings(
        identity=home.credentials,
        trust=home.trust,
        ca=security.ca,
        certificate=security.certificate,
        key=security.key,
        allow_plain=(*security.allow_plain, *(EVERYBODY if insecure else ())),
        loopback_plain=security.loopback_plain,
        insecure=insecure,
    )


def make_identity(home: Home, identity: AgentIdentity) -> str | None:
    """At the first start: a key and its certificate. Returns the fingerprint if they were made now."""
    if os.path.exists(home.credentials):
        return None
    try:
        credentials: bytes = load_certificates().make(identity.uuid, identity.name)
        pem.write_secret(home.credentials, credentials)
    except OSError as error:
        raise ReplicatorError(f"{home.credentials}: cannot be written: {error.strerror}") from None
    return fingerprint_of(credentials.decode())


def fingerprint_of(text: str) -> str:
    return pem.fingerprint(pem.der_of(text))


class PeerView(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    fingerprint: str
    address: str
    added: float
    revoked: float
    restores_all: bool
    certificates: int


class IdentityView(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    fingerprint: str  # of the certificate that is shown
    until: float  # it is valid, in seconds since the epoch
    certificate: str  # PEM
    by_authority: bool  # it is the configured one
    next_fingerprint: str  # of the one that paired agents are being told of; "": none
    waiting_for: tuple[str, ...]  # names of those that do not know it yet
    plain: tuple[str, ...]  # with whom plain text is spoken


class Peers:
    """Of one agent. Nobody else writes what is trusted."""

    def __init__(
        self,
        home: Home,
        identity: AgentIdentity,
        settings: SecuritySettings,
        ring: EventRing,
        port: Callable[[], int],
    ) -> None:
        """`port`: where this agent listens."""
        self.settings = settings
        self.store = TrustStore(settings.trust)
        self.door = Door(settings)
        self.identity = identity
        self.home = home
        self.ring = ring
        self.port = port
        self.drop: Callable[[str], Awaitable[None]] = _nobody  # ends the sessions of an agent
        self.changed = trio.Event()  # who is revoked, or what is shown; then replaced
        self._refusals: dict[tuple[str, str], float] = {}
        self._signed: dict[
            str, bytes
        ] = {}  # by uuid: certificates (DER) of the authority's that were accepted
        self._told: dict[str, str] = {}  # by uuid: digest of the newest certificate of ours that it knows

    def check_files(self) -> None:
        """Raises ReplicatorError if a file cannot be used: at the start, and not with the first peer."""
        self.door.check_files()

    # --- channels ---

    def introduction(self, uuid: str = "") -> Introduction:
        """What is said to the agent of that uuid."""
        successor = Successor.read(self.settings)
        known = next((peer for peer in self._paired() if peer.uuid == uuid), None)
        return Introduction(
            uuid=self.identity.uuid,
            name=self.identity.name,
            port=self.port(),
            successor=successor.certificate,
            proof=successor.proof,
            knows=pem.digest(pem.der_of(known.certificates[-1].pem)) if known else "",
        )

    def _paired(self) -> list[KnownPeer]:
        return [peer for peer in self.store.all() if peer.certificates and not peer.revoked]

    async def call(self, address: Address, purpose: str, connection: str = NO_CONNECTION) -> Channel:
        """A channel to the agent at an address, after its first line. Raises UnreachableError."""
        greeting = encode_greeting(connection, purpose)
        try:
            with trio.fail_after(limits.CONNECT_TIMEOUT_S):
                channel = await dial(address, self.settings)
                try:
                    if channel.peer is None:
                        await channel.stream.send_all(greeting)
                    else:
                        mine = self.introduction(channel.peer.uuid)
                        await self._hear(channel, await introduce(channel, greeting, mine))
                except BaseException:
                    await trio.aclose_forcefully(channel.stream)
                    raise
                return channel
        except trio.BrokenResourceError:
            raise UnreachableError(f"{address} is gone") from None
        except (OSError, trio.TooSlowError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no answer"
            raise UnreachableError(f"no agent answers at {address}: {reason}") from None
        except ChannelRefused as error:
            raise UnreachableError(str(error)) from None

    async def answer(self, channel: Channel) -> None:
        """Of the side that was dialled, after the first line of the other one. Raises ChannelRefused."""
        assert channel.peer is not None
        theirs = await channel.receive(Introduction)
        check_introduction(channel, theirs)
        await self._hear(channel, theirs)
        await channel.send(self.introduction(channel.peer.uuid))

    async def hand_over(self, channel: Channel) -> Handover | None:
        """What another process needs to go on with the channel's socket; None: nothing, in plain text."""
        if channel.peer is None:
            return None
        credentials: bytes = await trio.to_thread.run_sync(
            partial(
                load_certificates().make,
                self.identity.uuid,
                self.identity.name,
                limits.SESSION_CERTIFICATE_DAYS,
            )
        )
        return await hand_over(channel, credentials.decode())

    async def _hear(self, channel: Channel, theirs: Introduction) -> None:
        """Remember what a peer has said of certificates."""
        assert channel.peer is not None
        self._told[channel.peer.uuid] = theirs.knows
        if channel.peer.by_authority and isinstance(channel.stream, TlsStream):
            self._signed.pop(channel.peer.uuid, None)
            self._signed[channel.peer.uuid] = channel.stream.peer_certificate
            if len(self._signed) > limits.SIGNED_REMEMBERED:
                del self._signed[next(iter(self._signed))]
        if theirs.successor and not channel.peer.by_authority:
            await trio.to_thread.run_sync(self._take_successor, channel.peer.uuid, theirs)

    def _take_successor(self, uuid: str, theirs: Introduction) -> None:
        known = self.store.find(uuid)
        if fingerprint_of(theirs.successor) in {each.fingerprint for each in known.certificates}:
            return
        certificates = load_certificates()
        certificates.check(theirs.successor, uuid)
        new = pem.certificate_of(theirs.successor)
        signed = _SUCCESSOR + pem.der_of(new)
        if not any(certificates.is_signed(each.pem, theirs.proof, signed) for each in known.certificates):
            raise ChannelRefused(
                f"{known.name} says that it has a new certificate, and its old key did not sign it"
            )
        until = time.time() + 2 * limits.RENEWAL_DAYS * 86400
        old = [msgspec.structs.replace(each, until=each.until or until) for each in known.certificates[-2:]]
        known = msgspec.structs.replace(known, certificates=(*old, KnownCertificate(pem=new)))
        self.store.save(known)
        self.ring.add(events.PEER_RENEWED, name=known.name, fingerprint=known.fingerprint)

    def is_news(self, peer: str, reason: str) -> bool:
        """Whether this refusal is to be logged: a stranger who knocks all day is told of once an hour."""
        key, now = (peer.rpartition(":")[0], reason), trio.current_time()
        if now < self._refusals.get(key, -1.0):
            return False
        while len(self._refusals) >= limits.REFUSALS_KEPT:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[key] = now + limits.REFUSAL_AGAIN_S
        return True

    async def after_adoption(self, peer: Peer) -> None:
        """A peer that was revoked while its session was handed over."""
        known = next((each for each in self.store.all() if each.uuid == peer.uuid), None)
        if known is not None and known.revoked:
            await self.drop(peer.uuid)

    # --- what people ask for ---

    def view(self) -> IdentityView:
        path = self.settings.credentials[0]
        try:
            with open(path) as file:
                certificate = pem.certificate_of(file.read())
        except OSError as error:
            raise ReplicatorError(f"{path}: {error.strerror}") from None
        successor = Successor.read(self.settings).certificate
        return IdentityView(
            uuid=self.identity.uuid,
            name=self.identity.name,
            fingerprint=fingerprint_of(certificate),
            until=pem.valid_until(certificate),
            certificate=certificate,
            by_authority=bool(self.settings.certificate),
            next_fingerprint=fingerprint_of(successor) if successor else "",
            waiting_for=tuple(peer.name for peer in self._untold()),
            plain=self.settings.allow_plain,
        )

    def peers(self) -> list[PeerView]:
        return [view_of(peer) for peer in self.store.all()]

    def trust(self, peer: KnownPeer) -> None:
        """Paired: what was known of an agent of this uuid counts no more."""
        self.store.save(peer)

    def revoke(self, key: str) -> KnownPeer:
        peer = msgspec.structs.replace(self.store.find(key), revoked=time.time())
        self.store.save(peer)
        fingerprint = pem.short(peer.fingerprint)
        self.ring.add(events.REVOKED, name=peer.name, fingerprint=fingerprint)
        return peer

    def grant(self, key: str, *, restores_all: bool) -> KnownPeer:
        """Whether a peer may read all copies that are kept here, as the successor of a lost host has to."""
        peer = msgspec.structs.replace(self.store.find(key), restores_all=restores_all)
        self.store.save(peer)
        what = (
            "restore from all copies that are kept here"
            if restores_all
            else "restore from its own copies only"
        )
        self.ring.add(events.GRANTED, name=peer.name, what=what)
        return peer

    # --- renewal ---

    def renew(self) -> IdentityView:
        """Make a new key and certificate; it is shown once all paired agents know it."""
        if self.settings.certificate:
            raise ReplicatorError(
                "this agent shows the certificate of [security] certificate: replace that file"
            )
        certificates = load_certificates()
        with open(self.home.credentials, "rb") as file:
            old = file.read()
        new: bytes = certificates.make(self.identity.uuid, self.identity.name)
        certificate = pem.certificate_of(new.decode())
        proof = certificates.sign(old, _SUCCESSOR + pem.der_of(certificate))
        pem.write_secret(self.home.next_credentials, new)
        Successor(certificate=certificate, proof=proof, since=time.time()).write(self.settings)
        self.ring.add(events.RENEWAL_BEGINS, fingerprint=fingerprint_of(certificate))
        return self.view()

    def wake(self) -> None:
        """Something is to be told."""
        former, self.changed = self.changed, trio.Event()
        former.set()

    def _untold(self) -> list[KnownPeer]:
        successor = Successor.read(self.settings).certificate
        if not successor:
            return []
        wanted = pem.digest(pem.der_of(successor))
        return [peer for peer in self._paired() if self._told.get(peer.uuid) != wanted]

    async def run(self, targets: Callable[[], list[Address]]) -> None:
        """Tell paired agents of a new certificate, and show it then. Until cancelled. `targets`: where else
        agents are that may be told.
        """
        visited_s = trio.current_time()
        while True:
            changed = self.changed
            if trio.current_time() >= visited_s + limits.VISIT_S:
                visited_s = trio.current_time()
                for target in targets():  # which may have a new certificate themselves
                    await self._tell(str(target))
            successor = Successor.read(self.settings)
            if successor.certificate:
                addresses = {peer.address for peer in self._untold() if peer.address}
                for address in addresses | {str(target) for target in targets()}:
                    await self._tell(address)
                old = time.time() > successor.since + limits.RENEWAL_DAYS * 86400
                if old or not self._untold():
                    await trio.to_thread.run_sync(self._show_new, successor)
            await self._end_revoked()
            with trio.move_on_after(limits.RENEWAL_RETRY_S):
                await changed.wait()

    async def _end_revoked(self) -> None:
        """Sessions of agents whose authority has revoked them meanwhile."""
        for uuid, certificate in list(self._signed.items()):
            objection = await trio.to_thread.run_sync(self.door.objection, certificate)
            if objection:
                del self._signed[uuid]
                self.ring.add(events.REVOKED_BY_AUTHORITY, uuid=uuid, reason=objection)
                await self.drop(uuid)

    async def _tell(self, address: str) -> None:
        for _ in range(2):  # the second time it says that it knows
            try:
                channel = await self.call(parse_host_port(address), PURPOSE)
            except ReplicatorError:
                return  # it is asked again, or dials us
            await trio.aclose_forcefully(channel.stream)
            if not self._untold():
                return

    def _show_new(self, successor: Successor) -> None:
        try:
            os.replace(self.home.next_credentials, self.home.credentials)
        except FileNotFoundError:
            pass  # it was done, and only this was not
        Successor.remove(self.settings)
        self.ring.add(events.RENEWED, fingerprint=fingerprint_of(successor.certificate))


async def _nobody(uuid: str) -> None:
    pass


def view_of(peer: KnownPeer) -> PeerView:
    return PeerView(
        uuid=peer.uuid,
        name=peer.name,
        fingerprint=peer.fingerprint,
        address=peer.address,
        added=peer.added,
        revoked=peer.revoked,
        restores_all=peer.restores_all,
        certificates=len(peer.certificates),
    )
