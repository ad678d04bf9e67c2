"""What is said between two sites and the server so that updates can be masked and unmasked, as JSON; the one door.

In a round: `keys` (every site makes fresh keys), `shares` (every site gives shares of its secrets to its neighbours),
then `train` with a masked update, `confirm` (every site signs who is left) and `unmask` (every site reveals, of each
site, the one share that the sum needs). Everything names run, round and attempt.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.secure.errors import SecureError
from federation.secure.identity import Identity, check_signature

Site = Annotated[str, Field(min_length=1, max_length=64)]
Round = Annotated[int, Field(ge=1)]
Attempt = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
"""Drawn by the server for one try of a round; a run that goes on after a crash tries with another."""
Key = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""32 bytes, hexadecimal."""
Bytes = Annotated[str, Field(pattern="^([0-9a-f]{2})*$", max_length=8192)]
"""Some bytes, hexadecimal."""


class Said(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Said)


class SiteKeys(Said):
    """What a site says of itself at the beginning of a round, signed with its long-term key."""

    site: Site
    run: Annotated[str, Field(pattern="^[A-Za-z0-9]{0,64}$")]
    round: Round
    attempt: Attempt
    mask_key: Key
    """Public X25519 key that its pair masks are agreed with."""
    share_key: Key
    """The same, that shares are sealed with."""
    commitment: Key
    """To the seed of its self mask."""
    certificate: Bytes
    signature: Bytes

    def statement(self) -> bytes:
        """What is signed."""
        return _canonical("keys", self.model_dump(exclude={"certificate", "signature"}))

    def check(self, run: str, server_round: int, attempt: str) -> None:
        """Raises SecureError where these keys are not this site's own of this attempt."""
        found, expected = (self.run, self.round, self.attempt), (run, server_round, attempt)
        if found != expected:
            raise SecureError(
                f"{self.site}: expected keys of run {run}, round {server_round}, attempt {attempt[:8]}, found those of "
                f"run {self.run}, round {self.round}, attempt {self.attempt[:8]}"
            )
        certificate, signature = bytes.fromhex(self.certificate), bytes.fromhex(self.signature)
        check_signature(self.site, certificate, self.statement(), signature)


class KeysStep(Said):
    """Make keys."""

    step: Literal["keys"] = "keys"
    round: Round
    attempt: Attempt


class SharesStep(Said):
    """Give shares to the neighbours among these."""

    step: Literal["shares"] = "shares"
    round: Round
    attempt: Attempt
    keys: tuple[SiteKeys, ...]


class SharesAnswer(Said):
    """What a site gives."""

    parcels: dict[Site, Bytes]
    """By neighbour, sealed for it: a share of the self mask's seed, then one of the private mask key."""


class MaskStep(Said):
    """What travels with the instruction to train: who masks, and what they sealed for this site."""

    round: Round
    attempt: Attempt
    members: tuple[Site, ...]
    parcels: dict[Site, Bytes]


class ConfirmStep(Said):
    """Sign that these are the sites whose masked updates are there."""

    step: Literal["confirm"] = "confirm"
    round: Round
    attempt: Attempt
    survivors: tuple[Site, ...]


class ConfirmAnswer(Said):
    signature: Bytes


class UnmaskStep(Said):
    """Reveal what the sum of the survivors needs, now that these have signed who they are."""

    step: Literal["unmask"] = "unmask"
    round: Round
    attempt: Attempt
    signatures: dict[Site, Bytes]


class UnmaskAnswer(Said):
    """A site's shares, by whose they are."""

    self_masks: dict[Site, Bytes]
    """Of survivors: of the seed of their self mask."""
    mask_keys: dict[Site, Bytes]
    """Of the other members: of their private mask key."""


Step = Annotated[KeysStep | SharesStep | ConfirmStep | UnmaskStep, Field(discriminator="step")]


class Steps(Said):
    """What a site is asked in one visit, in order."""

    steps: tuple[Step, ...]


def read(kind: type[S], text: str, whose: str) -> S:
    """A part of a message from its JSON. Raises SecureError, naming the sender, for anything else."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the message"
        raise SecureError(f"{whose}: {where}: {first['msg']}") from None


def digest_of(keys: Collection[SiteKeys]) -> bytes:
    """SHA-256 of what the sites of an attempt said; everything that is secret in it depends on this."""
    ordered = sorted(keys, key=lambda each: each.site)
    return hashlib.sha256(b"".join(hashlib.sha256(each.statement()).digest() for each in ordered)).digest()


def survivors_statement(digest: bytes, members: Sequence[str], survivors: Sequence[str], terms: str) -> bytes:
    """What a site signs before anything is revealed: whose keys, who masked, who is left, and what they worked on."""
    said = {"keys": digest.hex(), "members": sorted(members), "survivors": sorted(survivors), "terms": terms}
    return _canonical("survivors", said)


def sign_keys(identity: Identity, unsigned: SiteKeys) -> SiteKeys:
    """The same keys with the site's certificate and signature."""
    signature = identity.sign(unsigned.statement()).hex()
    return unsigned.model_copy(update={"certificate": identity.certificate_bytes.hex(), "signature": signature})


def _canonical(what: str, said: Mapping[str, object]) -> bytes:
    return json.dumps({"what": what, **said}, sort_keys=True, separators=(",", ":")).encode()
