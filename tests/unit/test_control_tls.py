"""Certificates of remote control: which are used, read again when they change, refused if they are public."""

import os
import ssl
from pathlib import Path

import pytest
from kit.certificates import Issuer

from replicator.agent.control_tls import Tls, certified_user, fingerprint
from replicator.config import Access as Settings
from replicator.errors import ConfigError


@pytest.fixture
def authority(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path, "authority")


def settings(path: Path | str, **more: str) -> Settings:
    return Settings(listen="localhost:1506", certificate=str(path), **more)


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text().partition("-----BEGIN PRIVATE")[0])


def test_nothing_but_tls_1_3(authority: Issuer) -> None:
    path, _ = authority.issue("localhost")
    tls = Tls(settings(path))
    assert tls.context().minimum_version is ssl.TLSVersion.TLSv1_3
    assert tls.context().verify_mode is ssl.CERT_NONE
    assert tls.fingerprint == fingerprint(der(path))


def test_a_certificate_that_the_agent_has_anyway(authority: Issuer) -> None:
    own, _ = authority.issue("agent")
    other, _ = authority.issue("localhost")
    assert Tls(settings(""), str(own)).fingerprint == fingerprint(der(own))
    assert Tls(settings(other), str(own)).fingerprint == fingerprint(der(other))
    with pytest.raises(ConfigError, match=r"needs access\.certificate"):
        Tls(settings(""))


def test_a_renewed_one_is_read_again_and_a_broken_one_is_not(authority: Issuer) -> None:
    path, _ = authority.issue("localhost", "server.pem")
    tls = Tls(settings(path))
    before, first = tls.context(), tls.fingerprint
    assert tls.context() is before
    authority.issue("localhost", "server.pem")
    assert tls.context() is not before and tls.fingerprint == fingerprint(der(path)) != first
    renewed = tls.context()
    whole = path.read_bytes()
    for broken in (b"", b"no certificate", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        assert tls.context() is renewed
    path.unlink()
    assert tls.context() is renewed
    path.touch(0o600)
    path.write_bytes(whole)
    assert tls.context() is not renewed


def test_a_key_that_others_can_read_is_refused(authority: Issuer) -> None:
    path, _ = authority.issue("localhost")
    path.chmod(0o640)
    Tls(settings(path))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod o="):
        Tls(settings(path))


@pytest.mark.parametrize("key", ["none", "authority.pem"])
def test_files_that_cannot_be_used(authority: Issuer, tmp_path: Path, key: str) -> None:
    path, _ = authority.issue("localhost")
    os.chmod(authority.path, 0o600)
    with pytest.raises(ConfigError):
        Tls(settings(path, key=str(tmp_path / key)))
    with pytest.raises(ConfigError, match="client_ca"):
        Tls(settings(path, client_ca=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("subject", "user"),
    [
        (((("commonName", "alice"),),), "alice"),
        (((("organizationName", "x"),), (("commonName", "alice"),)), "alice"),
        (((("commonName", "alice"),), (("commonName", "root"),)), ""),
        ((), ""),
    ],
)
def test_a_certificate_names_one_user(subject: object, user: str) -> None:
    assert certified_user({"subject": subject}) == user
    assert certified_user(None) == ""
