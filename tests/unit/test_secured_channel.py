"""Handshakes with real ssl, over streams in memory: who is let in, and what a session carries."""

import os
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from kit.certificates import Issuer
from kit.simulation import MockedClock

from replicator import limits, plain
from replicator.agent.local_peer import is_ours
from replicator.errors import ReplicatorError
from replicator.net.engine import Engine, Role, State
from replicator.net.frames import PieceBatch, Ping
from replicator.net.session import KeysUsed, PeerLeft, Session
from replicator.net.transmission import Transmission
from replicator.security import certificates, pem, tls
from replicator.security.bundled import Context
from replicator.security.channel import Door
from replicator.security.pairing import PairHello, Window, new_nonce, normal_code, proofs
from replicator.security.settings import SecuritySettings
from replicator.security.tls import TlsError, TlsStream
from replicator.security.trust import KnownCertificate, KnownPeer, NotTrusted, TrustStore, judge
from replicator.transmission import Limit

ALPHA = "11111111-1111-4111-8111-111111111111"
BETA = "22222222-2222-4222-8222-222222222222"


def made(uuid: str, name: str = "agent", days: float = 10) -> str:
    return certificates.make(uuid, name, days).decode()


Pair = Callable[..., tuple[TlsStream, TlsStream]]


@pytest.fixture(params=["bundled", "Python's", "dials bundled", "dialled bundled"])
def pair_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Sessions by either library, and by both: the other agent may have another one."""

    def session(credentials: str, trusts: str, *, server: bool) -> tls.AnyContext:
        bundled_here = request.param in ("bundled", "dialled bundled" if server else "dials bundled")
        with monkeypatch.context() as patch, pem.as_file(credentials) as path:
            if not bundled_here:
                patch.setitem(sys.modules, "replicator.security.bundled", None)
            context = tls.session_context(path, None, pem.certificate_of(trusts), server=server)
        assert isinstance(context, Context) == bundled_here
        return context

    return partial(_pair_of, session)


def ssl_context(credentials: str, trusts: str, *, server: bool) -> tls.AnyContext:
    """Of the first channel."""
    with pem.as_file(credentials) as path:
        make = tls.server_context if server else tls.client_context
        return make(path, None, pem.certificate_of(trusts))


def _pair_of(
    context: Callable[..., tls.AnyContext],
    client: str,
    server: str,
    client_trusts: str,
    server_trusts: str,
    expected: bytes = b"",
) -> tuple[TlsStream, TlsStream]:
    """Both ends of a stream in memory. Credentials and certificates in PEM."""
    near, far = trio.testing.memory_stream_pair()
    one, other = context(client, client_trusts, server=False), context(server, server_trusts, server=True)
    return (
        TlsStream(near, one, server=False, expected=expected),
        TlsStream(far, other, server=True),
    )


async def test_bytes_arrive_both_ways_at_once_whatever_the_sizes(pair_of: Pair) -> None:
    alpha, beta = made(ALPHA), made(BETA)
    one, other = pair_of(alpha, beta, beta, alpha, pem.der_of(beta))
    sent = os.urandom(3 * limits.TLS_WRITE_BYTES + 17)
    back = os.urandom(100_001)
    found = {}

    async def talk(stream: TlsStream, data: bytes) -> None:
        await stream.send_all(memoryview(data)[:5])
        await stream.send_all(memoryview(data)[5:])

    async def hear(stream: TlsStream, size: int) -> None:
        buffer = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            filled += await stream.receive_into(buffer[filled : filled + 70_000])
        found[stream] = bytes(buffer)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for step in ((talk, one, sent), (talk, other, back)):
                nursery.start_soon(*step)
            nursery.start_soon(hear, other, len(sent))
            nursery.start_soon(hear, one, len(back))
        assert found == {other: sent, one: back}
        assert other.peer_certificate == pem.der_of(alpha)
        await one.send_eof()
        assert await other.receive_some(10) == b""


async def test_another_session_follows_on_the_same_transport() -> None:
    alpha, beta = made(ALPHA), made(BETA)
    one, other = _pair_of(ssl_context, alpha, beta, beta, alpha)
    rest = []

    async def leave(stream: TlsStream) -> None:
        rest.append(await stream.unwrap())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, one)
            nursery.start_soon(leave, other)
        assert rest == [b"", b""]
        await one.transport.send_all(b"hello")
        assert await other.transport.receive_some(10) == b"hello"


def sessions_of(one: TlsStream, other: TlsStream) -> tuple[Session, Session]:
    """In the middle of their life."""
    source, target = Engine(Role.SOURCE), Engine(Role.TARGET)
    source.state = target.state = State.OPEN
    return Session(one, source), Session(other, target)


async def at_once(function: Any) -> Any:
    return function()


@pytest.mark.parametrize(("rate", "size"), [(100_000, 100_000), (2_000, 100_000)])
async def test_a_limit_holds_for_what_tls_adds_to_the_data(
    rate: int, size: int, pair_of: Pair, autojump_clock: Any
) -> None:
    """Small pieces of a slow limit are records of their own: a twelfth of it is heads and seals."""
    alpha, beta = made(ALPHA), made(BETA)
    one, other = pair_of(alpha, beta, beta, alpha)
    source, target = sessions_of(one, other)
    transmission = Transmission(MockedClock(), at_once)  # a clock that jumps does not wait for threads
    transmission.limiter.set_limits(Limit(rate), None, None)
    source.use(transmission, packing=False)

    async def hear() -> None:
        while True:
            await target.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        await source.send(PieceBatch(), b"")
        written, began_s = one.written_bytes, trio.current_time()
        for _ in range(10 * rate // size or 1):
            await source.send(PieceBatch(), bytes(size))
        took_s = trio.current_time() - began_s
        nursery.cancel_scope.cancel()
    went = one.written_bytes - written
    assert went > size * 1.001
    assert went / took_s == pytest.approx(rate, rel=0.03)


async def test_a_session_ends_in_good_order_before_its_keys_have_encrypted_too_much(
    pair_of: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TLS_KEY_BYTES", 300_000)
    alpha, beta = made(ALPHA), made(BETA)
    source, target = sessions_of(*pair_of(alpha, beta, beta, alpha))
    heard = 0

    async def hear() -> None:
        nonlocal heard
        with pytest.raises(PeerLeft):
            while True:
                _, data = await target.receive()
                heard += len(data)
        await target.close("")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            with pytest.raises(KeysUsed):
                for _ in range(100):
                    await source.send(PieceBatch(), bytes(40_000))
            await source.send(Ping())
            await source.close("")
    assert heard == 320_000


@pytest.mark.parametrize("who", ["server", "client", "other certificate", "expired", "older TLS"])
async def test_who_is_not_trusted_gets_nowhere(who: str, pair_of: Pair) -> None:
    alpha, beta = made(ALPHA), made(BETA)
    stranger = made(BETA, "mallory")
    if who == "server":
        one, other = pair_of(alpha, stranger, beta, alpha)
    elif who == "client":
        one, other = pair_of(stranger, beta, beta, alpha)
    elif who == "other certificate":
        one, other = pair_of(alpha, beta, beta, alpha, pem.der_of(stranger))
    elif who == "expired":
        old = made(ALPHA, days=-0.5)
        one, other = pair_of(old, beta, beta, old)
    else:
        one, other = pair_of(alpha, beta, beta, alpha)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pem.as_file(alpha) as path:
            context.load_cert_chain(path)
        one = TlsStream(one.transport, context, server=False)
    heard: list[bytes] = []
    failed: list[str] = []

    async def talk(stream: TlsStream) -> None:
        try:
            await stream.send_all(b"secret")
            heard.append(await stream.receive_some(10))
        except trio.BrokenResourceError as error:
            failed.append(str(error))
        await stream.aclose()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, one)
            nursery.start_soon(talk, other)
    assert b"secret" not in heard and failed, "nothing is believed before both are known"


async def tapped(
    pair_of: Pair,
) -> tuple[TlsStream, TlsStream, trio.abc.ReceiveStream, trio.abc.SendStream]:
    """Two ends that know each other, where the first sends to from now on, and the way to the other."""
    alpha, beta = made(ALPHA), made(BETA)
    one, other = pair_of(alpha, beta, beta, alpha)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.handshake)
        nursery.start_soon(other.handshake)
    near, far = trio.testing.memory_stream_pair()
    through, one.transport = one.transport, near
    return one, other, far, through


async def test_what_was_changed_on_its_way_is_not_believed(pair_of: Pair) -> None:
    with trio.fail_after(10):
        one, other, far, through = await tapped(pair_of)
        await one.send_all(b"x" * 1000)
        data = bytearray(await far.receive_some(5000))
        data[500] ^= 1
        await through.send_all(data)
        for _ in range(2):
            with pytest.raises(TlsError):
                await other.receive_some(1000)


async def test_what_came_before_a_change_arrives(pair_of: Pair) -> None:
    with trio.fail_after(10):
        one, other, far, through = await tapped(pair_of)
        for data in (b"good", b"worse"):
            await one.send_all(data)
        both = bytearray(await far.receive_some(5000))
        both[-1] ^= 1
        await through.send_all(both)
        assert await other.receive_some(1000) == b"good"
        with pytest.raises(TlsError):
            await other.receive_some(1000)


def test_a_context_of_what_cannot_be_used(tmp_path: Path) -> None:
    own, damaged = tmp_path / "own.pem", tmp_path / "damaged.pem"
    own.write_text(made(ALPHA))
    damaged.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    good = pem.certificate_of(made(BETA))
    for certificate, key, anchor in (
        (damaged, None, good),
        (own, damaged, good),
        (own, None, ""),
        (tmp_path / "missing", None, good),
    ):
        with pytest.raises(ssl.SSLError):
            Context(str(certificate), key and str(key), anchor, server=True)


async def test_one_certificate_of_an_authority_is_trusted_and_no_other(pair_of: Pair, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path, "authority")
    alpha, beta, other_one = (issuer.issue(name)[0].read_text() for name in ("alpha", "beta", "gamma"))
    for shown, trusted in ((beta, True), (other_one, False)):
        one, other = pair_of(alpha, shown, beta, alpha)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:

                async def dialled(stream: TlsStream) -> None:
                    with suppress(TlsError):
                        await stream.handshake()

                nursery.start_soon(dialled, other)
                if trusted:
                    await one.handshake()
                else:
                    with pytest.raises(TlsError, match="is not known"):
                        await one.handshake()


async def test_reasons_are_those_that_people_know(pair_of: Pair) -> None:
    """Both libraries spell them in the same way."""
    alpha, beta = made(ALPHA), made(BETA)
    one, other = pair_of(alpha, made(BETA), beta, alpha)
    failed: dict[TlsStream, str] = {}

    async def talk(stream: TlsStream) -> None:
        try:
            await stream.handshake()
            await stream.receive_some(10)
        except TlsError as error:
            failed[stream] = str(error)
        await stream.aclose()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, one)
            nursery.start_soon(talk, other)
    assert failed[one].startswith("its certificate is not known: "), failed
    assert failed[other] == "the other agent does not know this one: pair them (dtctl pair)", failed


def judged(text: str, known: list[KnownPeer], *, authority: bool = False, **parsed: object) -> str:
    return judge(pem.der_of(text), parsed, known, authority=authority).name


def test_a_judgement() -> None:
    alpha, new, stranger = made(ALPHA, "alpha"), made(ALPHA, "alpha"), made(BETA, "beta")
    known = KnownPeer(
        uuid=ALPHA, name="alpha", certificates=(KnownCertificate(pem=pem.certificate_of(alpha)),)
    )
    assert judged(alpha, [known]) == "alpha"
    with pytest.raises(NotTrusted, match="not paired"):
        judged(stranger, [known])
    with pytest.raises(NotTrusted, match="revoked"):
        judged(alpha, [msgspec.structs.replace(known, revoked=1.0)])
    replaced = (
        KnownCertificate(pem=pem.certificate_of(alpha), until=time.time() - 1),
        KnownCertificate(pem=pem.certificate_of(new)),
    )
    renewed = msgspec.structs.replace(known, certificates=replaced)
    assert judged(new, [renewed]) == "alpha"
    with pytest.raises(NotTrusted, match="replaced"):
        judged(alpha, [renewed])
    # By an authority: the certificate says who it is.
    names = {"subjectAltName": (("URI", f"urn:uuid:{BETA}"),), "subject": ((("commonName", "beta"),),)}
    assert judged(stranger, [known], authority=True, **names) == "beta"
    with pytest.raises(NotTrusted, match="revoked"):
        judged(stranger, [KnownPeer(uuid=BETA, name="b", revoked=1.0)], authority=True, **names)
    with pytest.raises(NotTrusted, match="names no agent"):
        judged(stranger, [known], authority=True)


def test_certificates_of_agents_only() -> None:
    alpha = made(ALPHA)
    certificates.check(alpha, ALPHA)
    for uuid in (BETA, "../../etc/x", ALPHA.upper() + "x"):
        with pytest.raises(certificates.CertificateError):
            certificates.check(alpha, uuid)
    with pytest.raises(certificates.CertificateError):
        certificates.check("no certificate", ALPHA)
    der = pem.der_of(alpha)
    version = der.index(bytes.fromhex("a003020102")) + 4
    strange = ssl.DER_cert_to_PEM_cert(der[:version] + b"\x22" + der[version + 1 :])
    with pytest.raises(certificates.CertificateError, match="version"):
        certificates.check(strange, ALPHA)
    assert not certificates.is_signed(strange, "", b"this")
    signature = certificates.sign(alpha.encode(), b"this")
    assert certificates.is_signed(alpha, signature, b"this")
    assert not certificates.is_signed(alpha, signature, b"that")
    assert not certificates.is_signed(made(ALPHA), signature, b"this")
    assert pem.valid_until(alpha) == pytest.approx(time.time() + 10 * 86400, abs=100)


def test_secrets_are_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (tmp_path / "secret.new").write_text("of a crash")
    (tmp_path / "secret.new").chmod(0o644)
    former = os.umask(0)
    try:
        pem.write_secret(str(path), b"x")
    finally:
        os.umask(former)
    assert path.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["secret"]


def test_a_key_that_everybody_can_read_is_none(tmp_path: Path) -> None:
    own = tmp_path / "identity.pem"
    own.write_bytes(made(ALPHA).encode())
    own.chmod(0o640)  # the group may be one of those who back it up
    certificate, key = tmp_path / "agent.pem", tmp_path / "agent.key"
    settings = SecuritySettings(identity=str(own), trust=str(tmp_path / "trust"))
    Door(settings).check_files()
    own.chmod(0o644)
    with pytest.raises(ReplicatorError, match=f"chmod o= {own}"):
        Door(settings).check_files()
    # One that the organisation's authority has signed: the certificate is no secret, its key is.
    text = made(ALPHA)
    certificate.write_text(pem.certificate_of(text))
    key.write_text(text)
    certificate.chmod(0o644)
    key.chmod(0o600)
    theirs = SecuritySettings(
        identity=str(own), trust=str(tmp_path / "trust"), certificate=str(certificate), key=str(key)
    )
    Door(theirs).check_files()
    key.chmod(0o604)
    with pytest.raises(ReplicatorError, match=f"chmod o= {key}"):
        Door(theirs).check_files()


def test_peers_are_found_by_what_a_person_knows(tmp_path: Path) -> None:
    store = TrustStore(str(tmp_path / "trust"))
    assert store.all() == []
    for uuid, name in ((ALPHA, "alpha"), (BETA, "beta")):
        certificate = KnownCertificate(pem=pem.certificate_of(made(uuid)))
        store.save(KnownPeer(uuid=uuid, name=name, certificates=(certificate,)))
    for key in ("beta", BETA, store.find("beta").fingerprint[:11].lower()):
        assert store.find(key).uuid == BETA
    with pytest.raises(Exception, match="known: alpha, beta"):
        store.find("gamma")
    stamp = store.stamp()
    store.save(msgspec.structs.replace(store.find("beta"), revoked=1.0))
    assert store.stamp() != stamp


async def test_another_users_program_on_this_host_is_known() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(30):
        async with listener:
            port = listener.socket.getsockname()[1]
            code = "import os, socket; os.setuid({}); s = socket.socket(); "
            code += "s.connect(('127.0.0.1', {})); s.recv(1)"
            for uid in {os.geteuid(), 65534 if os.geteuid() == 0 else os.geteuid()}:
                program = await trio.lowlevel.open_process([sys.executable, "-c", code.format(uid, port)])
                async with await listener.accept() as stream:
                    own, peer = stream.socket.getsockname(), stream.socket.getpeername()
                    assert is_ours(own, peer) is (uid == os.geteuid())
                    assert not is_ours(own, ("127.0.0.1", 1))
                await program.wait()


# --- pairing ---


def test_proofs_are_of_both_certificates_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAIRING_WORK", 2)
    code = Window().open(0.0)
    alpha = PairHello(uuid=ALPHA, name="alpha", certificate=made(ALPHA), nonce=new_nonce())
    beta = PairHello(uuid=BETA, name="beta", certificate=made(BETA), nonce=new_nonce())
    mallory = msgspec.structs.replace(beta, certificate=made(BETA))
    fair = proofs(code, alpha, beta)
    assert proofs(code.lower().replace("-", " "), alpha, beta) == fair
    assert fair.dialling != fair.dialled, "what one side said is no proof of the other"
    others = [
        proofs(code, alpha, mallory),
        proofs(code, mallory, beta),
        proofs(code, beta, alpha),
        proofs(Window().open(0.0), alpha, beta),
        proofs(code, msgspec.structs.replace(alpha, nonce=new_nonce()), beta),
    ]
    said = {fair.dialling, fair.dialled}
    assert not any({other.dialling, other.dialled} & said for other in others)


def test_a_code_is_typed_by_people() -> None:
    assert normal_code(" abcd-efgh jklm\n") == "ABCDEFGHJKLM"
    for wrong in ("ABCD-EFGH", "ABCD-EFGH-JKL0", ""):
        with pytest.raises(Exception, match="no pairing code") as caught:
            normal_code(wrong)
        assert not wrong or wrong not in str(caught.value)


def test_a_window_closes() -> None:
    window = Window()
    assert window.code(0.0) == ""
    code = window.open(100.0)
    assert window.code(100.0 + limits.PAIRING_OPEN_S - 1) == code
    assert window.code(100.0 + limits.PAIRING_OPEN_S) == "" == window.code(101.0), "once over, it is over"
    window.open(0.0)
    pauses_s = [window.wrong() for _ in range(limits.PAIRING_TRIES)]
    assert pauses_s == sorted(pauses_s) and window.code(1.0) == ""


@pytest.mark.parametrize(
    ("own", "peer", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.2", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("127.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "10.1.2.3", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "nonsense", False),
    ],
)
def test_plain_text_needs_a_name_or_a_loopback(own: str, peer: str, allowed: bool) -> None:
    named = ("10.1.0.0/16", "fe80::/64", "backup")
    assert plain.is_allowed(named, True, own, peer) is allowed
    assert plain.is_allowed(named, True, own, peer, "Backup") is True
    assert plain.is_allowed((), False, own, peer) is False
