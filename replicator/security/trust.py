"""The peers an agent trusts: one file each in `home/trust`, and the judgement of a certificate.

Read anew for each handshake, by every process that makes one, so that what a person has just decided holds at
once.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from replicator.errors import ReplicatorError, UsageError
from replicator.security import pem

_URN = "urn:uuid:"


class NotTrusted(ReplicatorError):
    """The certificate of a peer is not accepted; the text says why, of the peer."""


class KnownCertificate(msgspec.Struct, frozen=True, kw_only=True):
    pem: str
    until: float = (
        0.0  # it was replaced: accepted until then, in seconds since the epoch; 0: as long as it says
    )

    @property
    def fingerprint(self) -> str:
        return pem.fingerprint(pem.der_of(self.pem))


class KnownPeer(msgspec.Struct, frozen=True, kw_only=True):
    """One paired agent, or one that was refused for good."""

    uuid: str
    name: str
    certificates: tuple[KnownCertificate, ...] = ()  # the newest one last; none: only known to be revoked
    address: str = ""  # HOST:PORT where it listens, as far as it is known
    added: float = 0.0
    revoked: float = 0.0  # since when; 0: it is not
    restores_all: bool = False  # it may read all copies that are kept here, and not only its own ones

    @property
    def fingerprint(self) -> str:
        return self.certificates[-1].fingerprint if self.certificates else ""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, proved."""

    uuid: str
    name: str
    fingerprint: str
    by_authority: bool  # signed by the organisation's authority, and not paired
    restores_all: bool = False


class TrustStore:
    """`home/trust`. Blocks for a few small files."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def all(self) -> list[KnownPeer]:
        """By name. Raises ReplicatorError if a file is damaged: whom it was about is not to be guessed."""
        found = []
        for name in self._names():
            path = os.path.join(self.directory, name)
            try:
                with open(path, "rb") as file:
                    found.append(msgspec.json.decode(file.read(), type=KnownPeer))
            except FileNotFoundError:
                continue
            except (OSError, msgspec.DecodeError) as error:
                raise ReplicatorError(
                    f"{path}: damaged ({error}): remove it, and pair that agent again"
                ) from None
        return sorted(found, key=lambda peer: (peer.name, peer.uuid))

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever one of the files does."""
        found = []
        for name in self._names():
            try:
                state = os.stat(os.path.join(self.directory, name))
            except FileNotFoundError:
                continue
            found.append((name, state.st_ino, state.st_mtime_ns))
        return tuple(found)

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.directory) if name.endswith(".json"))
        except FileNotFoundError:
            return []

    def save(self, peer: KnownPeer) -> None:
        """Durably. OSError."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        pem.write_secret(os.path.join(self.directory, f"{peer.uuid}.json"), msgspec.json.encode(peer))

    def find(self, key: str) -> KnownPeer:
        """By uuid, name, or the beginning of the fingerprint. Raises UsageError."""
        peers = self.all()
        wanted = key.upper()
        for matches in (
            [peer for peer in peers if key == peer.uuid],
            [peer for peer in peers if key == peer.name],
            [peer for peer in peers if len(key) >= 8 and peer.fingerprint.startswith(wanted)],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UsageError(f"{key!r} are {len(matches)} agents: name one by its uuid")
        known = ", ".join(peer.name for peer in peers) or "none"
        raise UsageError(f"no agent {key!r} is known here; known: {known}")


def judge(
    der: bytes,
    parsed: dict[str, Any],
    known: Sequence[KnownPeer],
    *,
    authority: bool,
    now: float | None = None,
) -> Peer:
    """Who shows the certificate `der`, whose key and dates (and chain, if it is no known one) the handshake
    has verified. `parsed`: as `SSLObject.getpeercert` has it. `authority`: there is one, and signed ones are
    accepted.

    Raises NotTrusted.
    """
    now = time.time() if now is None else now
    shown = pem.fingerprint(der)
    for peer in known:
        for certificate in peer.certificates:
            if certificate.fingerprint == shown:
                if peer.revoked:
                    raise NotTrusted(f"the certificate of {peer.name} ({pem.short(shown)}) is revoked here")
                if certificate.until and now > certificate.until:
                    raise NotTrusted(
                        f"{peer.name} shows a certificate that it has replaced ({pem.short(shown)})"
                    )
                return Peer(peer.uuid, peer.name, shown, False, peer.restores_all)
    uuids = [value[len(_URN) :] for kind, value in parsed.get("subjectAltName", ()) if value.startswith(_URN)]
    if not authority or len(uuids) != 1:
        why = "is not paired" if not authority else "names no agent (urn:uuid:… as its URI)"
        raise NotTrusted(f"the certificate {pem.short(shown)} {why}")
    same = next((peer for peer in known if peer.uuid == uuids[0]), None)
    if same is not None and same.revoked:
        raise NotTrusted(f"the certificate of {same.name} ({pem.short(shown)}) is revoked here")
    names = [value for row in parsed.get("subject", ()) for kind, value in row if kind == "commonName"]
    grants = same is not None and same.restores_all
    return Peer(uuids[0], names[0] if names else uuids[0], shown, True, grants)
