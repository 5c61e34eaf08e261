"""Keys and certificates: made, signed with, looked at (X.509, RFC 5280; EC P-256).

The one module that needs the `cryptography` package. Handshakes do without it, so processes that only move
data never load it.
"""

import base64
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from replicator import limits
from replicator.errors import ReplicatorError

_URN = "urn:uuid:"
_BACKDATED = timedelta(days=1)  # two clocks are seldom one
_ALGORITHM = ec.ECDSA(hashes.SHA256())
_MALFORMED = (ValueError, x509.InvalidVersion, UnsupportedAlgorithm)


class CertificateError(ReplicatorError):
    """A certificate is none, or not one of an agent."""


def make(agent_uuid: str, agent_name: str, days: float = limits.CERTIFICATE_DAYS) -> bytes:
    """A new private key and its self-signed certificate, in PEM. It can sign no other certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, agent_name[:64] or "agent")])
    now = datetime.now(UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_URN + agent_uuid)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def check(certificate: str, agent_uuid: str) -> None:
    """That a certificate (PEM) is one that an agent of this uuid makes. Raises CertificateError.

    It must not be able to sign others: what is trusted is this one agent.
    """
    try:
        if str(UUID(agent_uuid)) != agent_uuid:  # it names a file
            raise ValueError("its uuid is none")
        parsed = x509.load_pem_x509_certificate(certificate.encode())
        constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (*_MALFORMED, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateError(f"that is no certificate of an agent: {error}") from None
    if constraints.ca:
        raise CertificateError("that is the certificate of an authority, and not of an agent")
    if uris != [_URN + agent_uuid]:
        raise CertificateError("that certificate is of another agent")


def sign(credentials: bytes, data: bytes) -> str:
    """The signature of `data` by the private key in `credentials` (PEM), in base64."""
    key = serialization.load_pem_private_key(credentials, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the key is of a kind that agents do not make")
    return base64.b64encode(key.sign(data, _ALGORITHM)).decode()


def is_signed(certificate: str, signature: str, data: bytes) -> bool:
    """Whether `signature` is that of `data` by the key of a certificate (PEM)."""
    try:
        key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(base64.b64decode(signature, validate=True), data, _ALGORITHM)
    except (*_MALFORMED, InvalidSignature):
        return False
    return True
