"""Pairing with another agent: of the side that shows the code, and of the side where it is typed."""

import time
from functools import partial

import msgspec
import trio

from replicator import events, limits
from replicator.addresses import Address
from replicator.agent.peers import NO_CONNECTION, Peers, fingerprint_of, load_certificates
from replicator.errors import ReplicatorError, UnreachableError
from replicator.net.engine import encode_greeting
from replicator.security import pem, tls
from replicator.security.channel import Channel, ChannelRefused
from replicator.security.pairing import (
    PURPOSE,
    PairHello,
    PairingError,
    PairProof,
    Proofs,
    Window,
    is_equal,
    new_nonce,
    normal_code,
    proofs,
)
from replicator.security.tls import TlsError, TlsStream
from replicator.security.trust import KnownCertificate, KnownPeer
from replicator.world import connect_tcp


class PairingView(msgspec.Struct, frozen=True, kw_only=True):
    """`code` only in the answer to who opened it."""

    open: bool
    seconds_left: float = 0.0
    code: str = ""


class Pairing:
    """Of one agent."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._window = Window()
        self._opened_s = 0.0
        self._trying = 0  # others that try now

    # --- the side that shows the code ---

    def open(self) -> PairingView:
        self._opened_s = trio.current_time()
        code = self._window.open(self._opened_s)
        self._peers.ring.add(events.PAIRING_OPENED, minutes=limits.PAIRING_OPEN_S / 60)
        return msgspec.structs.replace(self.view(), code=code)

    def close(self) -> PairingView:
        if self._window.code(trio.current_time()):
            self._window.close()
            self._peers.ring.add(events.PAIRING_CLOSED, reason="by request")
        return self.view()

    def view(self) -> PairingView:
        if not self._window.code(trio.current_time()):
            return PairingView(open=False)
        left_s = self._opened_s + limits.PAIRING_OPEN_S - trio.current_time()
        return PairingView(open=True, seconds_left=left_s)

    async def answer(self, stream: trio.SocketStream, rest: bytes, peer: str) -> None:
        """Of a socket whose first line asks for it. Raises ChannelRefused: it is not open."""
        if not self._window.code(trio.current_time()):
            raise ChannelRefused("it wants to be paired, and pairing is not open: dtctl pair --show")
        if self._trying >= limits.PAIRING_TRIES:
            raise ChannelRefused("it wants to be paired while others are being paired")
        self._trying += 1
        try:
            try:
                with trio.fail_after(limits.PAIRING_TIMEOUT_S):
                    known = await self._answer(stream, rest, peer)
            except (ReplicatorError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                reason = "it took too long" if isinstance(error, trio.TooSlowError) else str(error)
                self._peers.ring.add(events.PAIRING_FAILED, peer=peer, reason=reason)
                if not self._window.code(trio.current_time()):
                    self._peers.ring.add(
                        events.PAIRING_CLOSED, reason="too many wrong codes, or its time is over"
                    )
                return
        finally:
            self._trying -= 1
        self._paired(known, peer)
        self._peers.ring.add(events.PAIRING_CLOSED, reason="the code was used")

    async def _answer(self, stream: trio.SocketStream, rest: bytes, peer: str) -> KnownPeer:
        context = tls.unverified_server_context(self._peers.settings.identity, None)
        channel = Channel(TlsStream(stream, context, server=True, first_bytes=rest), server=True)
        theirs = await channel.receive(PairHello)
        mine = self._hello()
        await channel.send(mine)
        said = await channel.receive(PairProof)
        expected = await _proofs(self._window.code(trio.current_time()), theirs, mine)
        certificates = await trio.to_thread.run_sync(load_certificates)
        certificates.check(theirs.certificate, theirs.uuid)
        if not self._window.code(trio.current_time()):
            raise PairingError("pairing was closed meanwhile")
        if not is_equal(said.proof, expected.dialling):
            await trio.sleep(self._window.wrong())
            await channel.send(PairProof(error="wrong code"))
            raise PairingError("wrong code")
        if not certificates.is_signed(theirs.certificate, said.signature, expected.transcript):
            raise PairingError("it has not the key of the certificate that it shows")
        if theirs.uuid == self._peers.identity.uuid:
            raise PairingError("that is this same agent")
        self._window.close()  # used, whatever becomes of it
        await channel.send(PairProof(proof=expected.dialled))
        if (await channel.receive(PairProof)).error:
            raise PairingError("the other agent gave up")
        known = _known(theirs, peer.rpartition(":")[0])
        await trio.to_thread.run_sync(self._peers.trust, known)
        await channel.send(PairProof())
        return known

    # --- the side where it is typed ---

    async def pair(self, address: Address, code: str) -> KnownPeer:
        """Raises ReplicatorError."""
        code = normal_code(code)
        try:
            with trio.fail_after(limits.PAIRING_TIMEOUT_S):
                known = await self._pair(address, code)
        except trio.TooSlowError:
            raise UnreachableError(
                f"no answer of {address} within {limits.PAIRING_TIMEOUT_S:.0f} s"
            ) from None
        except (ChannelRefused, trio.BrokenResourceError) as error:
            reason = (
                str(error) if isinstance(error, TlsError | ChannelRefused) else "it closed the connection"
            )
            hint = "is its pairing open? There: dtctl pair --show"
            raise PairingError(f"not paired with {address}: {reason}; {hint}") from None
        except OSError as error:
            raise UnreachableError(f"no agent answers at {address}: {error.strerror or error}") from None
        self._paired(known, str(address))
        return known

    async def _pair(self, address: Address, code: str) -> KnownPeer:
        stream = await connect_tcp(address.host, address.port)
        async with stream:
            await stream.send_all(encode_greeting(NO_CONNECTION, PURPOSE))
            secured = TlsStream(stream, tls.unverified_client_context(), server=False)
            channel = Channel(secured, server=False)
            mine = self._hello()
            await channel.send(mine)
            theirs = await channel.receive(PairHello)
            if theirs.uuid == mine.uuid:
                raise PairingError(f"not paired: {address} is this same agent")
            if pem.der_of(theirs.certificate) != secured.peer_certificate:
                raise PairingError(f"not paired: somebody stands between this host and {address}")
            certificates = await trio.to_thread.run_sync(load_certificates)
            certificates.check(theirs.certificate, theirs.uuid)
            expected = await _proofs(code, mine, theirs)
            signature = certificates.sign(self._credentials(), expected.transcript)
            await channel.send(PairProof(proof=expected.dialling, signature=signature))
            said = await channel.receive(PairProof)
            if said.error:
                raise PairingError(f"not paired: {said.error[:200]}")
            if not is_equal(said.proof, expected.dialled):
                await channel.send(PairProof(error="it does not know the code"))
                raise PairingError(f"not paired: what answers at {address} does not know the code")
            await channel.send(PairProof())
            await channel.receive(PairProof)
            known = _known(theirs, address.host)
            known = msgspec.structs.replace(known, address=str(address))
            await trio.to_thread.run_sync(self._peers.trust, known)
            return known

    # --- both ---

    def _credentials(self) -> bytes:
        with open(self._peers.settings.identity, "rb") as file:
            return file.read()

    def _hello(self) -> PairHello:
        identity = self._peers.identity
        certificate = pem.certificate_of(self._credentials().decode())
        return PairHello(
            uuid=identity.uuid,
            name=identity.name,
            certificate=certificate,
            nonce=new_nonce(),
            port=self._peers.port(),
        )

    def _paired(self, known: KnownPeer, where: str) -> None:
        fingerprint = fingerprint_of(known.certificates[-1].pem)
        self._peers.ring.add(events.PAIRED, name=known.name, fingerprint=fingerprint, peer=where)


async def _proofs(code: str, dialling: PairHello, dialled: PairHello) -> Proofs:
    if not code:
        raise PairingError("pairing was closed meanwhile")
    return await trio.to_thread.run_sync(partial(proofs, code, dialling, dialled))


def _known(hello: PairHello, host: str) -> KnownPeer:
    return KnownPeer(
        uuid=hello.uuid,
        name=" ".join(c for c in hello.name[: limits.NAME_CHARS].split() if c.isprintable()) or hello.uuid,
        certificates=(KnownCertificate(pem=pem.certificate_of(hello.certificate)),),
        address=str(Address(host.strip("[]"), hello.port)) if 0 < hello.port < 65536 else "",
        added=time.time(),
    )
