"""Who signed a message: a site's long-term key, its certificate, and the project's authority that vouches for it.

Over a network these are the key and certificate of the site's kit, and the authority's certificate comes with the kit,
never from the server. A certificate that was revoked counts until it ends: sites have no list of revocations.
"""

import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from federation.secure.errors import SecureError

IDENTITY = "identity"
"""Folder, in a site's folder, of the three files of a simulated site."""
KEY, CERTIFICATE, AUTHORITY = "client.key", "client.pem", "authority.pem"
"""Files of a site's kit."""
_DOMAIN = b"dipro-fed secure aggregation 1, signed statement\0"
"""Before everything that is signed: the key also opens TLS connections, whose signatures are of other bytes."""
_ALGORITHM = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A site's own signing key and certificate, and the authority that it takes others' certificates of."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Read the three files. Raises SecureError where one is not what it must be, or others may read the key."""
        key = _private_key(folder / KEY)
        own, authority = _certificate(folder / CERTIFICATE), _certificate(folder / AUTHORITY)
        if own.public_key() != key.public_key():
            raise SecureError(f"{folder / CERTIFICATE}: expected the certificate of {KEY}, found another key's")
        return cls(key=key, certificate=own, authority=authority)

    @property
    def certificate_bytes(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def sign(self, statement: bytes) -> bytes:
        """ECDSA with SHA-384."""
        return self.key.sign(_DOMAIN + statement, _ALGORITHM)

    def check_certificate(self, site: str, certificate: bytes) -> None:
        """Raises SecureError where this is not a certificate that the project's authority gave to this site."""
        found = _parsed(site, certificate)
        try:
            found.verify_directly_issued_by(self.authority)
        except (InvalidSignature, ValueError, TypeError):
            raise SecureError(
                f"{site}: expected a certificate of this project's authority, found one that it did not sign"
            ) from None
        project = _named(self.authority, NameOID.ORGANIZATION_NAME)
        named = tuple(_named(found, each) for each in (NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME))
        if named != (project, "site"):
            raise SecureError(f"{site}: expected a certificate of a site of {project}, found one of {' '.join(named)}")
        if not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
            raise SecureError(f"{site}: expected a certificate that is good now, found one from another time")


def check_signature(site: str, certificate: bytes, statement: bytes, signature: bytes) -> None:
    """Raises SecureError where a statement is not signed with the key of this certificate, or that names another."""
    found = _parsed(site, certificate)
    if (name := _named(found, NameOID.COMMON_NAME)) != site:
        raise SecureError(f"{site}: expected its own certificate, found the one of {name or 'nobody'}")
    key = found.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(signature, _DOMAIN + statement, _ALGORITHM)
    except InvalidSignature:
        raise SecureError(f"{site}: expected a statement signed with its key, found another signature") from None


def _parsed(site: str, certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        raise SecureError(f"{site}: expected a certificate, found {len(certificate)} other bytes") from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise SecureError(f"{path}: expected a certificate, cannot read it ({error.strerror})") from None
    except ValueError:
        raise SecureError(f"{path}: expected a certificate in PEM, found something else") from None


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        mode, content = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise SecureError(f"{path}: expected the site's signing key, cannot read it ({error.strerror})") from None
    if mode & 0o077:
        raise SecureError(f"{path}: expected mode 0600, found {mode:04o}; others may have read it: make a new one")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise SecureError(f"{path}: expected a private key in PEM, found something else") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SecureError(f"{path}: expected a key on an elliptic curve, found another kind")
    return key


def _named(certificate: x509.Certificate, part: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(part)
    return str(found[0].value) if len(found) == 1 else ""
