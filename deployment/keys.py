"""Keys on disk: made on the curve that Flower takes, private ones readable by their owner alone."""

import os
import secrets
import stat
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate

from federation.files import PARTIAL

Key = TypeVar("Key", ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)


class KeyFileError(ValueError):
    """A key file that cannot be used; says why and what to do."""


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new private key on NIST P-384: Flower refuses Ed25519 for nodes, and one kind of key is enough."""
    return ec.generate_private_key(ec.SECP384R1())


def write_secret(path: Path, content: bytes) -> None:
    """Replace a file that only its owner may read, from its first byte on."""
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, *, for_node: bool = False) -> None:
    """Write a private key without a passphrase: PKCS 8, or for a SuperNode OpenSSH's form, which Flower reads."""
    form = serialization.PrivateFormat.OpenSSH if for_node else serialization.PrivateFormat.PKCS8
    write_secret(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def keep_shared_secret(path: Path) -> None:
    """Draw a secret that processes of one machine know each other by, where there is none yet."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32).encode())


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key that `write_key` wrote. Raises KeyFileError where others may read it too."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: expected a private key, cannot read it ({error.strerror})") from None
    if mode & 0o077:
        raise KeyFileError(f"{path}: expected mode 0600, found {mode:04o}; others may have read it: make a new one")
    try:
        load = serialization.load_ssh_private_key if b"OPENSSH" in content else serialization.load_pem_private_key
        key = load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(
            f"{path}: expected a private key in PEM without a passphrase, found something else"
        ) from None
    return _on_curve(path, key, ec.EllipticCurvePrivateKey)


def node_public_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """A node's public key as `flwr supernode register` reads it."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def read_node_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read what `node_public_key` gave. Raises KeyFileError."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{path}: expected a node's public key, cannot read it ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{path}: expected a public key in OpenSSH's form, found something else") from None
    return _on_curve(path, key, ec.EllipticCurvePublicKey)


def header_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """A node's public key in the form that its SuperNode sends with every request, before base64."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(certificate: Certificate) -> str:
    """SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _on_curve(path: Path, key: object, kind: type[Key]) -> Key:
    if not isinstance(key, kind) or getattr(key, "curve", ec.SECP384R1()).name != ec.SECP384R1().name:
        raise KeyFileError(f"{path}: expected a key on the curve P-384, found another kind; make one with dipro-fed")
    return key
