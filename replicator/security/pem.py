"""What of keys and certificates needs no cryptography: PEM, fingerprints, and files for their owner alone."""

import base64
import hashlib
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.errors import ReplicatorError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+?-----END CERTIFICATE-----\s*")


def certificate_of(text: str) -> str:
    """The first certificate in a PEM text. Raises ReplicatorError if there is none."""
    match = _CERTIFICATE.search(text)
    if match is None:
        raise ReplicatorError("there is no certificate in it")
    return match[0].strip() + "\n"


def certificates_in(text: str) -> list[str]:
    """All of them."""
    return [match[0].strip() + "\n" for match in _CERTIFICATE.finditer(text)]


def der_of(certificate: str) -> bytes:
    """Raises ReplicatorError."""
    try:
        return ssl.PEM_cert_to_DER_cert(certificate_of(certificate).strip())
    except ValueError:
        raise ReplicatorError("that is no certificate") from None


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    return ":".join(f"{byte:02X}" for byte in hashlib.sha256(der).digest())


def valid_until(certificate: str) -> float:
    """In seconds since the epoch."""
    with as_file(certificate_of(certificate)) as path:
        # The only parser of certificates in the standard library; it reads files.
        return float(ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(path)["notAfter"]))  # type: ignore[attr-defined]


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint, for lists and logs."""
    return fingerprint[:23]


def digest(der: bytes) -> str:
    """SHA-256 in base64, for messages."""
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def write_secret(path: str, data: bytes) -> None:
    """Replace the file at `path`, durably, readable by its owner alone from its first byte on. OSError."""
    temporary = path + ".new"
    try:
        os.unlink(temporary)  # of a crash; whatever its mode was
    except FileNotFoundError:
        pass
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def refuse_public(path: str) -> None:
    """Raises ReplicatorError if others than its owner and group can read or write a secret."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ReplicatorError(f"{path}: cannot be used: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ReplicatorError(f"{path}: can be read or written by everybody: chmod o= {path}")


@contextmanager
def as_file(data: str) -> Iterator[str]:
    """A name for `data` that only this process can open: OpenSSL reads keys from files. memfd_create(2)."""
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
