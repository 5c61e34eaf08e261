"""Pairing: two agents that share a short code prove to each other that they mean one another's certificates.

The key of both proofs is scrypt(code, salt), and the salt is a hash of both fingerprints and both nonces: a
proof says nothing about any other pair of certificates, so whoever stands between them has nothing to pass
on. A code of 60 bits, gone after one use or ten minutes, cannot be searched in that time from what was heard
(RFC 7914).
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import msgspec

from replicator import limits
from replicator.errors import ReplicatorError, UsageError
from replicator.security import pem

ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without what looks like something else
PURPOSE = "pair"
_GROUP = 4
_LABEL = b"replicator pairing 1"


class PairingError(ReplicatorError):
    """They are not paired; the text says why."""


class PairHello(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str = ""
    name: str = ""
    certificate: str = ""  # PEM
    nonce: str = ""  # 32 bytes in hexadecimal
    port: int = 0  # where it listens
    error: str = ""


class PairProof(msgspec.Struct, frozen=True, kw_only=True):
    proof: str = ""
    signature: str = ""  # of the side that dialled, whose certificate the channel does not show
    error: str = ""


def new_code() -> str:
    """XXXX-XXXX-XXXX."""
    letters = "".join(secrets.choice(ALPHABET) for _ in range(limits.PAIRING_CODE_CHARS))
    return "-".join(letters[i : i + _GROUP] for i in range(0, len(letters), _GROUP))


def normal_code(text: str) -> str:
    """As typed by a person. Raises UsageError without repeating it."""
    code = "".join(c for c in text.upper() if c not in "- \t\n")
    if len(code) != limits.PAIRING_CODE_CHARS or set(code) - set(ALPHABET):
        raise UsageError(
            f"that is no pairing code: it has {limits.PAIRING_CODE_CHARS} letters and digits: XXXX-XXXX-XXXX"
        )
    return code


def new_nonce() -> str:
    return secrets.token_hex(32)


@dataclass(frozen=True)
class Proofs:
    """What each side has to say, and what the side that dialled signs."""

    dialling: str
    dialled: str
    transcript: bytes


def proofs(code: str, dialling: PairHello, dialled: PairHello) -> Proofs:
    """Takes some 50 ms, and 16 MiB, on purpose. Raises ReplicatorError if a certificate is none."""
    parts = []
    for role, hello in ((b"dialling", dialling), (b"dialled", dialled)):
        der = pem.der_of(hello.certificate)
        parts += [role, hashlib.sha256(der).digest(), hello.uuid.encode(), hello.nonce.encode()]
    transcript = b"".join(len(part).to_bytes(4) + part for part in (_LABEL, *parts))
    salt = hashlib.sha256(transcript).digest()
    key = hashlib.scrypt(
        normal_code(code).encode(),
        salt=salt,
        n=limits.PAIRING_WORK,
        r=8,
        p=1,
        maxmem=64 * limits.MIB,
        dklen=32,
    )
    return Proofs(
        hmac.new(key, b"dialling" + transcript, "sha256").hexdigest(),
        hmac.new(key, b"dialled" + transcript, "sha256").hexdigest(),
        transcript,
    )


def is_equal(said: str, expected: str) -> bool:
    return hmac.compare_digest(said.encode(), expected.encode())


class Window:
    """When a code is accepted: for some minutes, once, and until some wrong ones were tried. Pure."""

    def __init__(self) -> None:
        self._code = ""
        self._until_s = 0.0
        self.failures = 0

    def open(self, now_s: float) -> str:
        self._code, self._until_s, self.failures = new_code(), now_s + limits.PAIRING_OPEN_S, 0
        return self._code

    def close(self) -> None:
        self._code = ""

    def code(self, now_s: float) -> str:
        """ "": none is accepted."""
        if now_s >= self._until_s:
            self.close()
        return self._code

    def wrong(self) -> float:
        """Somebody tried another code. Returns how long to wait before that is said."""
        self.failures += 1
        if self.failures >= limits.PAIRING_TRIES:
            self.close()
        return float(limits.PAIRING_PAUSE_S * 2 ** (self.failures - 1))
