"""The keys of one round: agreed on by X25519, everything else derived by HKDF-SHA256 for one purpose each.

What two sites derive depends on the run, the round, the attempt and the keys of all its sites: whoever was told another
list of sites derives other masks, which cancel nothing.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.secure.errors import SecureError

KEY_BYTES = 32
_NONCE_BYTES = 12


def new_key() -> bytes:
    """A private X25519 key, which is any 32 random bytes; also what a self mask is made of."""
    return secrets.token_bytes(KEY_BYTES)


def public_key(private: bytes) -> bytes:
    """The public X25519 key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(seed: bytes) -> bytes:
    """What shows later that a seed of 32 random bytes is the one that was meant, and says nothing about it before."""
    return _derived(seed, b"", "commitment")


def self_mask_seed(seed: bytes, digest: bytes) -> bytes:
    """Seed of the mask that only the site itself adds."""
    return _derived(seed, digest, "self mask")


def pair_mask_seed(private: bytes, peer: bytes, digest: bytes, sites: tuple[str, str]) -> bytes:
    """Seed of the mask that two sites share: one adds it, the other takes it away. Raises SecureError."""
    return _derived(_agreed(private, peer, sites), digest, "pair mask", *sorted(sites))


def seal(content: bytes, private: bytes, peer: bytes, digest: bytes, sites: tuple[str, str]) -> bytes:
    """Encrypt for another site what the first of `sites` says to the second (AES-256-GCM). Raises SecureError."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _sealing(private, peer, digest, sites).encrypt(nonce, content, None)


def unseal(sealed: bytes, private: bytes, peer: bytes, digest: bytes, sites: tuple[str, str]) -> bytes:
    """What the first of `sites` sealed for the second. Raises SecureError where it did not, or it was changed."""
    nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _sealing(private, peer, digest, sites).decrypt(nonce, content, None)
    except (InvalidTag, ValueError):
        raise SecureError(
            f"{sites[0]}: expected shares that it sealed for {sites[1]} in this round, found something else"
        ) from None


def _sealing(private: bytes, peer: bytes, digest: bytes, sites: tuple[str, str]) -> AESGCM:
    return AESGCM(_derived(_agreed(private, peer, sites), digest, "shares", *sites))


def _agreed(private: bytes, peer: bytes, sites: tuple[str, str]) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:  # a point of low order, with which everybody agrees on zero
        raise SecureError(f"{' and '.join(sites)}: expected public X25519 keys, found one that is none") from None


def _derived(secret: bytes, digest: bytes, *purpose: str) -> bytes:
    # Each part with its length before it, so that no two lists of parts are the same bytes.
    info = b"dipro-fed secure aggregation 1" + b"".join(
        len(part).to_bytes(4) + part for part in (each.encode() for each in purpose)
    )
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=digest, info=info).derive(secret)
