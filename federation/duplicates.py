"""Whether a patient is at two sites: sites send salted hashes, and the server counts those that it meets twice.

A run draws a salt, each site hashes the identifiers of its patients with it, and the server compares the sorted
hashes. It learns how many patients two sites share, and refuses the run; it is not told which. Two limits.
Identifiers must name the same person at all sites and be written alike: where hospitals number their patients from 1,
equal numbers are other people. And identifiers of few digits, such as MIMIC's, can be found by hashing all of them,
so the hashes hide identifiers from those who do not have the salt and no others; they are to be compared and thrown
away.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

SALT_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}")


class DuplicatePatientsError(ValueError):
    """Patients are at more than one site; names the sites and counts, and no patient."""


def draw_salt() -> bytes:
    """A salt for one run, from the system's source of secrets and not from the run's seed, which others know."""
    return secrets.token_bytes(SALT_BYTES)


def hash_patients(identifiers: Iterable[int | str], salt: bytes) -> tuple[str, ...]:
    """SHA-256 of the salt and each identifier, as hexadecimal digits, sorted, so that the order tells nothing.

    7 and "7" are the same patient. Raises ValueError for a salt of another length than SALT_BYTES.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"expected a salt of {SALT_BYTES} bytes, as draw_salt gives, found {len(salt)}")
    # The salt has one length, so that no identifier can continue another's salt.
    return tuple(sorted({hashlib.sha256(salt + str(name).strip().encode()).hexdigest() for name in identifiers}))


def find_duplicates(hashes: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], int]:
    """How many patients each two sites share, by the sites' names in order; pairs that share none are left out.

    `hashes` are those of `hash_patients` by site, all with one salt. Raises ValueError naming a site whose hashes are
    none, or are not sorted and different.
    """
    for site, own in hashes.items():
        _check(site, own)
    sets = {site: set(own) for site, own in hashes.items()}
    shared = {(first, second): len(sets[first] & sets[second]) for first, second in combinations(sorted(sets), 2)}
    return {sites: count for sites, count in shared.items() if count}


def require_no_duplicates(hashes: Mapping[str, Sequence[str]]) -> None:
    """Refuse sites that share patients. Raises DuplicatePatientsError with the number of patients by pair of sites."""
    shared = find_duplicates(hashes)
    if shared:
        pairs = "; ".join(f"{first} and {second} share {count}" for (first, second), count in shared.items())
        raise DuplicatePatientsError(
            f"expected every patient at one site, found some at two: {pairs}. A patient who trains at one site and is "
            "tested at another makes scores too good; leave them out at one of the sites and prepare its cohort again, "
            "or set federation.check_duplicates=false where equal identifiers are different people"
        )


def _check(site: str, hashes: Sequence[str]) -> None:
    malformed = sum(not isinstance(text, str) or _HASH.fullmatch(text) is None for text in hashes)
    if malformed:
        raise ValueError(
            f"{site}: expected SHA-256 hashes of 64 hexadecimal digits, found {malformed} others among {len(hashes)}; "
            "hash the patients with hash_patients"
        )
    if any(first >= second for first, second in pairwise(hashes)):
        raise ValueError(f"{site}: expected sorted hashes, each once; send what hash_patients gives")
