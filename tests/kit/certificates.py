"""Certificate authorities that live as long as a test."""

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM
_DAY = datetime.timedelta(days=1)


class Issuer:
    """An authority, for servers named localhost and for people."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._certificate.public_bytes(_PEM))

    def _sign(
        self, name: x509.Name, key: Any, *, authority: bool, days: float = 1, agent_uuid: str = ""
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        if agent_uuid:
            names.append(x509.UniformResourceIdentifier(f"urn:uuid:{agent_uuid}"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + days * _DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def issue(
        self, name: str, file: str = "", *, days: float = 1, agent_uuid: str = ""
    ) -> tuple[Path, x509.Certificate]:
        """A file with certificate and key for `name`, valid for so many days, or an agent's."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), authority=False, days=days, agent_uuid=agent_uuid)
        path = self._directory / (file or f"{name}-by-{self.path.stem}.pem")
        path.touch(0o600)
        path.write_bytes(
            certificate.public_bytes(_PEM)
            + key.private_bytes(
                _PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path, certificate

    def revoke(self, *certificates: x509.Certificate, next_update: datetime.timedelta = _DAY) -> None:
        """Put a list of them behind the authority's own certificate, which is good for so long."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - _DAY)
            .next_update(now + next_update)
        )
        for certificate in certificates:
            one = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(one.revocation_date(now).build())
        crl = builder.sign(self._key, hashes.SHA256())
        self.path.write_bytes(self._certificate.public_bytes(_PEM) + crl.public_bytes(_PEM))
