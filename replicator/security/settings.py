"""What the processes of an agent have to know to speak to other agents."""

import os
from typing import Self

import msgspec

from replicator.errors import ReplicatorError
from replicator.security import pem


class SecuritySettings(msgspec.Struct, frozen=True, kw_only=True):
    """[security] of the configuration, and where this agent keeps its secrets."""

    identity: str = (
        ""  # file: private key and certificate of this agent; "": it has none, and speaks plain text
    )
    trust: str = ""  # directory of the peers that are trusted
    ca: str = ""  # file: certificates of the organisation's authority; "": none
    certificate: str = ""  # file: certificate by that authority; "": this agent shows its own one
    key: str = ""  # file: its private key
    allow_plain: tuple[str, ...] = ()  # hosts and networks with which plain text is spoken
    loopback_plain: bool = True  # the same of connections that do not leave the host
    insecure: bool = (
        False  # the same of everybody, but of paired agents that are dialled where they said they are
    )

    @property
    def credentials(self) -> tuple[str, str | None]:
        """Files of the certificate that is shown, and of its key; None: in the same file."""
        return (self.certificate, self.key or None) if self.certificate else (self.identity, None)


class Successor(msgspec.Struct, frozen=True, kw_only=True):
    """A file beside the identity: the certificate that this agent will show once its peers know it."""

    certificate: str = ""  # PEM; "": there is none
    proof: str = ""  # signature by the key of the certificate that is shown until then
    since: float = 0.0  # it was made, in seconds since the epoch

    @classmethod
    def read(cls, settings: SecuritySettings) -> Self:
        try:
            with open(settings.identity + ".successor", "rb") as file:
                return msgspec.json.decode(file.read(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.DecodeError) as error:
            raise ReplicatorError(f"{settings.identity}.successor: cannot be used: {error}") from None

    def write(self, settings: SecuritySettings) -> None:
        pem.write_secret(settings.identity + ".successor", msgspec.json.encode(self))

    @staticmethod
    def remove(settings: SecuritySettings) -> None:
        try:
            os.unlink(settings.identity + ".successor")
        except FileNotFoundError:
            pass
