"""TLS of remote control, from the files that [access] names. Nothing older than TLS 1.3.

`Tls.context` is all the port needs: who makes certificates otherwise gives another object that has it.
"""

import hashlib
import os
import ssl
from typing import Protocol

from replicator.config import Access as Settings
from replicator.errors import ConfigError, ReplicatorError
from replicator.security import pem


class ControlTls(Protocol):
    @property
    def fingerprint(self) -> str:
        """Of the certificate that clients see."""

    def context(self) -> ssl.SSLContext:
        """For the next connection. Raises ReplicatorError if there is none."""


class Tls:
    """Read again when one of the files has changed: certificates are renewed without a restart. A file that
    cannot be used then leaves what was there in force.
    """

    def __init__(self, settings: Settings, own: str = "") -> None:
        """`own`: a file with key and certificate that the agent has anyway, if [access] names none; "": none.

        Raises ConfigError.
        """
        self._certificate = settings.certificate or own
        self._key = settings.key or self._certificate
        self._client_ca = settings.client_ca
        if not self._certificate:
            raise ConfigError("access.listen needs access.certificate, and access.key: PEM files for TLS")
        self._files = [p for p in (self._certificate, self._key, self._client_ca) if p]
        self._stamps = self._look()
        self._fingerprint = ""
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = self._load()
            except ConfigError:
                pass  # half-written, or wrong: the next change is tried again
        return self._context

    @property
    def fingerprint(self) -> str:
        self.context()
        return self._fingerprint

    def _look(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in self._files:
            try:
                state = os.stat(path)
                found.append((state.st_ino, state.st_size, state.st_mtime_ns))
            except OSError:
                found.append(())
        return found

    def _load(self) -> ssl.SSLContext:
        try:
            pem.refuse_public(self._key)
        except ReplicatorError as error:
            raise ConfigError(f"access.key: {error}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # each connection is one request: nothing is resumed
        try:
            context.load_cert_chain(self._certificate, self._key, _no_passphrase)
            shown = fingerprint(_first_certificate(self._certificate))
        except (OSError, ValueError) as error:
            raise ConfigError(f"access.certificate, access.key: cannot be used: {_reason(error)}") from None
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise ConfigError(f"access.client_ca: cannot be used: {_reason(error)}") from None
            context.verify_mode = ssl.CERT_OPTIONAL
            if context.cert_store_stats()["crl"]:
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        self._fingerprint = shown
        return context


def _first_certificate(path: str) -> bytes:
    """The one of the server itself, as DER."""
    with open(path) as file:
        text = file.read()
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERT") :].partition(end)[0] + end)


def _no_passphrase() -> bytes:
    raise ValueError("the key needs a passphrase, and nobody is there to give it")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def certified_user(certificate: dict[str, object] | None) -> str:
    """The user that a verified client certificate names (its one CN); "" if none."""
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    names = [value for part in subject for name, value in part if name == "commonName"]
    return names[0] if len(names) == 1 else ""


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` shows it."""
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(certificate).digest())
