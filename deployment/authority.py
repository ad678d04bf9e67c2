"""The project's own certificate authority: issues, renews and revokes, and remembers what it issued.

Its folder holds the private key (0600), the certificate, a list of what was issued (`issued.json`) and the list of what
was revoked (`revoked.pem`, a CRL that the proxy reads). It never sees a site's private key where the site made its own.
"""

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deployment.keys import fingerprint, make_key, read_key, write_key
from federation.files import write_whole

Role = Literal["server", "proxy", "coordinator", "site"]
"""What a certificate is for; the proxy reads it as the organisational unit."""

_CA_DAYS = 3650
_EARLIER = timedelta(minutes=5)
"""A certificate is valid from a little before it was made, since clocks differ."""
_CRL_DAYS = 3650
"""A list of revocations has no successor until something is revoked; a proxy refuses everybody once it is too old."""
KEY, CERTIFICATE, ISSUED, REVOKED = "authority.key", "authority.pem", "issued.json", "revoked.pem"


class AuthorityError(ValueError):
    """What the authority cannot do, and why."""


@dataclass(frozen=True, kw_only=True)
class Issued:
    """One certificate that was issued."""

    serial: str
    """Hexadecimal."""
    role: Role
    name: str
    fingerprint: str
    """SHA-256, hexadecimal."""
    not_after: str
    """UTC, ISO 8601."""
    revoked: str | None = None
    """When, UTC, ISO 8601; None while it is good."""


class Authority:
    """One project's authority, in its folder."""

    def __init__(self, folder: Path) -> None:
        """Open the authority in a folder. Raises KeyFileError or AuthorityError where it is not whole."""
        self.folder = folder
        self._key = read_key(folder / KEY)
        try:
            self.certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
            self.issued = [Issued(**each) for each in json.loads((folder / ISSUED).read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(
                f"{folder}: expected an authority, cannot read it ({error}); restore the folder"
            ) from None
        if self.certificate.public_key() != self._key.public_key():
            raise AuthorityError(f"{folder}: {KEY} and {CERTIFICATE} do not belong together; restore the folder")

    @classmethod
    def create(cls, folder: Path, project: str) -> "Authority":
        """Make a new authority; its folder must not hold one."""
        if (folder / KEY).exists():
            raise AuthorityError(f"{folder}: expected no authority yet, found one")
        key = make_key()
        name = _subject(project, "authority", f"{project} authority")
        certificate = (
            certificate_builder(name, name, key.public_key(), days=_CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA384())
        )
        write_whole(folder / CERTIFICATE, pem(certificate))
        write_whole(folder / ISSUED, b"[]\n")
        write_key(folder / KEY, key)
        authority = cls(folder)
        authority._write()
        return authority

    @property
    def project(self) -> str:
        """Name of the project that this authority is of."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    def issue(
        self, role: Role, name: str, public_key: ec.EllipticCurvePublicKey, *, days: int, hosts: Sequence[str] = ()
    ) -> x509.Certificate:
        """Certify that this key is the one of `name`, for `days`; `hosts` are names and addresses that dial to it.

        Earlier certificates of the same role and name stay good until they end or are revoked, so that a renewed one
        can be put into place without an interruption.
        """
        usage = ExtendedKeyUsageOID.SERVER_AUTH if role in ("server", "proxy") else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            certificate_builder(_subject(self.project, role, name), self.certificate.subject, public_key, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA384())
        self.issued.append(
            Issued(
                serial=f"{certificate.serial_number:x}",
                role=role,
                name=name,
                fingerprint=fingerprint(certificate),
                not_after=certificate.not_valid_after_utc.isoformat(),
            )
        )
        self._write()
        return certificate

    def revoke(self, role: Role, name: str) -> int:
        """Take back the certificates of this name that are good; how many. Raises AuthorityError where none is."""
        found = [number for number, each in enumerate(self.issued) if self._is_good(each, role, name)]
        if not found:
            raise AuthorityError(f"{self.folder}: expected a certificate of {role} {name} to revoke, found none")
        for number in found:
            self.issued[number] = replace(self.issued[number], revoked=_now().isoformat())
        self._write()
        return len(found)

    def has(self, role: Role, name: str) -> bool:
        """Whether a certificate of this name is good."""
        return any(self._is_good(each, role, name) for each in self.issued)

    def is_revoked(self, role: Role, name: str) -> bool:
        """Whether this name had certificates and has none any more, because they were revoked."""
        own = [each for each in self.issued if (each.role, each.name) == (role, name)]
        return any(each.revoked for each in own) and not self.has(role, name)

    def _is_good(self, each: Issued, role: Role, name: str) -> bool:
        is_over = datetime.fromisoformat(each.not_after) <= _now()
        return (each.role, each.name) == (role, name) and each.revoked is None and not is_over

    def _write(self) -> None:
        """The list of revocations first: if the process ends between the two, more is refused, never less."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _EARLIER)
            .next_update(now + timedelta(days=_CRL_DAYS))
        )
        for each in self.issued:
            if each.revoked is not None:
                entry = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16))
                builder = builder.add_revoked_certificate(
                    entry.revocation_date(datetime.fromisoformat(each.revoked)).build()
                )
        revoked = builder.sign(self._key, hashes.SHA384())
        write_whole(self.folder / REVOKED, revoked.public_bytes(serialization.Encoding.PEM))
        content = json.dumps([asdict(each) for each in self.issued], indent=2) + "\n"
        write_whole(self.folder / ISSUED, content.encode())


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    """A certificate without its extensions, valid from now on."""
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as files hold it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> x509.CertificateSigningRequest:
    """What a site sends in place of its private key: its name and public key, signed with that key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())


def read_request(path: Path, name: str) -> ec.EllipticCurvePublicKey:
    """The public key in a site's request. Raises AuthorityError where it is damaged, of another name or kind of key."""
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        asked = [each.value for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except OSError as error:
        raise AuthorityError(f"{path}: expected a site's signing request, cannot read it ({error.strerror})") from None
    except ValueError:
        raise AuthorityError(f"{path}: expected a signing request in PEM, found something else") from None
    key = request.public_key()
    if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthorityError(f"{path}: expected a request signed with a P-384 key, found another one")
    if key.curve.name != ec.SECP384R1().name:
        raise AuthorityError(f"{path}: expected a request signed with a P-384 key, found one of {key.curve.name}")
    if asked != [name]:
        raise AuthorityError(f"{path}: expected the request of {name}, found one of {', '.join(map(str, asked))}")
    return key


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _subject(project: str, role: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, project),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
