"""Lists of revoked certificates of an organisation's authority."""

import datetime
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from kit.certificates import Issuer

from replicator.agent.peers import Peers
from replicator.agent.state import AgentIdentity
from replicator.errors import ReplicatorError
from replicator.events import EventRing
from replicator.paths import Home
from replicator.security.revocation import Revocations, parse
from replicator.security.settings import SecuritySettings

DAY_S = 86400
UUID = "11111111-1111-4111-8111-111111111111"


def test_without_lists_nothing_is_revoked(tmp_path: Path) -> None:
    ours = Issuer(tmp_path, "ours")
    _, certificate = ours.issue("alpha")
    assert parse(ours.path.read_text(), "ca.pem") == Revocations()
    assert parse(ours.path.read_text(), "ca.pem").objection(certificate.public_bytes(Encoding.DER)) == ""


def test_what_is_on_a_list_is_refused_and_nothing_else(tmp_path: Path) -> None:
    ours, theirs = Issuer(tmp_path, "ours"), Issuer(tmp_path, "theirs")
    revoked, good, foreign = (
        issuer.issue(name)[1].public_bytes(Encoding.DER)
        for issuer, name in ((ours, "alpha"), (ours, "beta"), (theirs, "gamma"))
    )
    _, certificate = ours.issue("delta")
    ours.revoke(_parsed(revoked), certificate)
    found = parse(ours.path.read_text() + theirs.path.read_text(), "ca.pem")
    assert found.objection(good) == ""
    assert "revoked by its authority" in found.objection(revoked)
    # An authority that keeps no list could have revoked anything.
    assert "no list" in found.objection(foreign)
    # A list is good for so long; one that is withheld must not bring a revoked one back.
    later = time.time() + 2 * DAY_S
    assert "out of date" in found.objection(good, later)
    assert "cannot be read" in found.objection(b"none")
    assert "revoked by its authority" in found.objection(revoked, later)


def _parsed(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def test_a_list_that_nobody_signed_is_an_error(tmp_path: Path) -> None:
    ours, theirs = Issuer(tmp_path, "ours"), Issuer(tmp_path, "theirs")
    alone = ours.path.read_text()
    _, certificate = theirs.issue("alpha")
    theirs.revoke(certificate)
    text = theirs.path.read_text()
    listed = text[text.index("-----BEGIN X509 CRL") :]
    with pytest.raises(ReplicatorError, match="none of its issuers"):
        parse(alone + listed, "ca.pem")
    for damaged in (listed[:200], listed.replace("M", "N", 5), listed.replace("\n", "", 3)[:-30]):
        with pytest.raises(ReplicatorError, match=r"ca\.pem"):
            parse(text[: text.index("-----BEGIN X509 CRL")] + damaged, "ca.pem")


def test_of_two_lists_the_newer_one_counts(tmp_path: Path) -> None:
    ours = Issuer(tmp_path, "ours")
    _, certificate = ours.issue("alpha")
    ours.revoke(certificate)
    older = ours.path.read_text()
    ours.revoke(next_update=datetime.timedelta(days=2))
    both = ours.path.read_text() + older[older.index("-----BEGIN X509 CRL") :]
    assert parse(both, "ca.pem").objection(certificate.public_bytes(Encoding.DER)) == ""


async def test_sessions_of_an_agent_end_when_its_authority_revokes_it(tmp_path: Path) -> None:
    ours = Issuer(tmp_path, "ours")
    path, certificate = ours.issue("alpha", agent_uuid=UUID)
    settings = SecuritySettings(identity=str(path), trust=str(tmp_path / "trust"), ca=str(ours.path))
    ring = EventRing(time.time_ns, lambda line: None)
    peers = Peers(Home(str(tmp_path)), AgentIdentity(uuid=UUID, name="beta"), settings, ring, lambda: 0)
    dropped: list[str] = []

    async def drop(uuid: str) -> None:
        dropped.append(uuid)

    peers.drop = drop
    peers._signed[UUID] = certificate.public_bytes(Encoding.DER)
    await peers._end_revoked()
    assert dropped == []
    ours.revoke(certificate)
    await peers._end_revoked()
    await peers._end_revoked()
    assert dropped == [UUID]
