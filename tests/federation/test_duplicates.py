"""Patients at two sites are counted by pair of sites and refused, and no identifier is told."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.duplicates import (
    DuplicatePatientsError,
    draw_salt,
    find_duplicates,
    hash_patients,
    require_no_duplicates,
)

SALT = bytes(range(32))
patients = st.sets(st.integers(0, 40), max_size=12)


@settings(deadline=None, derandomize=True)
@given(north=patients, south=patients, west=patients)
def test_counts_are_those_of_a_slow_loop_over_the_identifiers(north: set, south: set, west: set) -> None:
    sites = {"north": north, "south": south, "west": west}
    expected = {}
    for first, second in (("north", "south"), ("north", "west"), ("south", "west")):
        count = sum(1 for patient in sites[first] for other in sites[second] if patient == other)
        if count:
            expected[first, second] = count
    hashes = {site: hash_patients(own, SALT) for site, own in sites.items()}
    assert find_duplicates(hashes) == expected
    if expected:
        with pytest.raises(DuplicatePatientsError):
            require_no_duplicates(hashes)
    else:
        require_no_duplicates(hashes)


def test_a_hash_is_that_of_salt_and_identifier_and_sorting_hides_the_order() -> None:
    expected = sorted(hashlib.sha256(SALT + text).hexdigest() for text in (b"10000032", b"7"))
    assert list(hash_patients([7, 10000032], SALT)) == expected
    assert hash_patients([10000032, 7, 7], SALT) == hash_patients(["7", " 10000032 "], SALT) == tuple(expected)


def test_another_salt_gives_other_hashes_and_each_run_draws_its_own() -> None:
    first, second = draw_salt(), draw_salt()
    assert first != second
    assert not set(hash_patients(range(50), first)) & set(hash_patients(range(50), second))
    with pytest.raises(ValueError, match="expected a salt of 32 bytes"):
        hash_patients([1], b"short")


def test_the_refusal_names_sites_and_counts_and_no_patient() -> None:
    hashes = {"north": hash_patients([10000032, 10000048], SALT), "south": hash_patients([10000048, 10000055], SALT)}
    with pytest.raises(DuplicatePatientsError, match="north and south share 1") as caught:
        require_no_duplicates(hashes)
    assert not {"10000032", "10000048", "10000055"} & set(str(caught.value).replace(".", " ").split())
    assert not any(text in str(caught.value) for text in hashes["north"])


def test_what_are_no_hashes_or_unsorted_is_refused_by_site() -> None:
    good = hash_patients([1, 2, 3], SALT)
    with pytest.raises(ValueError, match="south: expected SHA-256 hashes of 64 hexadecimal digits, found 1 others"):
        find_duplicates({"north": good, "south": (*good, "10000032")})
    for wrong in (good[::-1], (good[0], *good)):
        with pytest.raises(ValueError, match="south: expected sorted hashes, each once"):
            find_duplicates({"north": good, "south": wrong})
