"""Lists of revoked certificates (CRL, RFC 5280 5) in the file of an organisation's authority.

OpenSSL could be told to look at them, but then it asks for a list of every certificate, and those of paired
agents have no issuer that could make one. So they are looked at here, after the handshake, for what the
authority has signed.
"""

import re
import time
from dataclasses import dataclass, field
from datetime import UTC
from importlib import import_module
from typing import Any

from replicator.errors import ReplicatorError
from replicator.security import pem

_LIST = re.compile(r"-----BEGIN X509 CRL-----\s[A-Za-z0-9+/=\s]+?-----END X509 CRL-----")


@dataclass(frozen=True)
class Revocations:
    """What one file says. `lists`: of each issuer (its name in DER), serial numbers, and until when the list
    holds, in seconds since the epoch.
    """

    lists: dict[bytes, tuple[frozenset[int], float]] = field(default_factory=dict)

    def objection(self, der: bytes, now: float | None = None) -> str:
        """Why a certificate (DER) that the authority has signed is of no use all the same; "": it is.

        Where there are lists, each issuer needs one that is not over: else whoever withholds the newest one
        would undo a revocation.
        """
        if not self.lists:
            return ""
        try:
            certificate = _x509().load_der_x509_certificate(der)
            issuer, number = certificate.issuer.public_bytes(), certificate.serial_number
        except _malformed() as error:
            return f"cannot be read: {error}"
        serials, until = self.lists.get(issuer, (None, 0.0))
        if serials is None:
            return "there is no list of revoked certificates of its issuer here"
        if number in serials:
            return "is revoked by its authority"
        if until < (time.time() if now is None else now):
            return "the list of revoked certificates of its authority is out of date here"
        return ""


def parse(text: str, path: str) -> Revocations:
    """Of the content of a file with certificates of an authority, and behind them its lists, in PEM. Most
    have none, and then nothing is loaded for it. Raises ReplicatorError.
    """
    blocks = _LIST.findall(text)
    if len(blocks) != text.count("-----BEGIN X509 CRL-----"):
        raise ReplicatorError(f"{path}: a list of revoked certificates in it is damaged")
    if not blocks:
        return Revocations()
    x509 = _x509()
    lists: dict[bytes, tuple[frozenset[int], float]] = {}
    try:
        issuers = [x509.load_pem_x509_certificate(issuer.encode()) for issuer in pem.certificates_in(text)]
        for block in blocks:
            found = x509.load_pem_x509_crl(block.encode())
            by_one = (issuer for issuer in issuers if issuer.subject == found.issuer)
            if not any(found.is_signature_valid(issuer.public_key()) for issuer in by_one):
                raise ReplicatorError(
                    f"{path}: a list of revoked certificates in it is by none of its issuers"
                )
            name, until = found.issuer.public_bytes(), _until(found)
            if name not in lists or lists[name][1] < until:
                lists[name] = (frozenset(entry.serial_number for entry in found), until)
    except _malformed() as error:
        raise ReplicatorError(
            f"{path}: a list of revoked certificates in it cannot be used: {error}"
        ) from None
    return Revocations(lists)


def _until(found: Any) -> float:
    try:
        moment = found.next_update_utc
    except AttributeError:  # cryptography before 42
        moment = found.next_update and found.next_update.replace(tzinfo=UTC)
    return float("inf") if moment is None else float(moment.timestamp())


def _malformed() -> tuple[type[Exception], ...]:
    exceptions = import_module("cryptography.exceptions")
    return ValueError, TypeError, _x509().InvalidVersion, exceptions.UnsupportedAlgorithm


def _x509() -> Any:
    """Loaded when it is needed: a tenth of a second."""
    return import_module("cryptography.x509")
