"""Whole numbers of updates against the mean in double precision, to the bound that the module states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.secure.errors import SecureError
from federation.secure.update_form import Summed, UpdateForm
from federation.selection import Entries, ModelEntries

TOTAL = 40
ENTRIES = ModelEntries(
    trained=Entries(total=TOTAL, runs=((4, 40),)),
    parameters=Entries(total=TOTAL, runs=((4, 30), (36, 40))),
    means=Entries(total=TOTAL, runs=((0, 2), (30, 33))),
    variances=Entries(total=TOTAL, runs=((2, 4), (33, 36))),
    batch_norm=Entries(total=TOTAL, runs=((0, 4), (30, 36))),
)
"""A model of which the first batch norm is frozen."""
TRAINED = ENTRIES.trained.mask()


def _form(**chosen) -> UpdateForm:
    return UpdateForm(
        **{"entries": ENTRIES, "control_size": 0, "pools_moments": False, "largest_change": 4.0, **chosen}
    )


def _updates(num_sites: int, seed: int, scale: float) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """A reference, the weights that sites came to, and their numbers of samples."""
    numbers = np.random.default_rng(seed)
    reference = numbers.normal(0, 1, TOTAL).astype(np.float32)
    reference[2:4], reference[33:36] = 1, np.float32(2500)
    changes = [np.where(TRAINED, np.clip(numbers.normal(0, scale, TOTAL), -3.9, 3.9), 0) for _ in range(num_sites)]
    weights = [(reference + each).astype(np.float32) for each in changes]
    return reference, weights, [int(each) for each in numbers.integers(1, 1000, num_sites)]


def _summed(form: UpdateForm, reference, weights, counts, left: list[int], controls=None) -> Summed:
    total, everyone = form.blank(), sum(counts)
    for site in left:
        control = np.zeros(0, np.float32) if controls is None else controls[site]
        share = counts[site] / everyone
        total.add(form.write(weights[site], reference, control, num_samples=counts[site], share=share))
    samples = sum(counts[site] for site in left)
    return form.read(total, num_sites=len(left), num_samples=samples, share=samples / everyone)


@given(num_sites=st.integers(1, 9), seed=st.integers(0, 1000), scale=st.sampled_from([1e-7, 1e-3, 1.0, 100.0]))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_mean_is_right_to_the_bound(num_sites: int, seed: int, scale: float) -> None:
    form, (reference, weights, counts) = _form(), _updates(num_sites, seed, scale)
    left = list(range(num_sites))[: max(1, num_sites - 2)]
    found = _summed(form, reference, weights, counts, left).change.astype(np.float64)
    changes = [weights[site].astype(np.float64) - reference for site in left]
    expected = np.average(changes, axis=0, weights=[counts[site] for site in left])
    share = sum(counts[site] for site in left) / sum(counts)
    bound = len(left) * form.unit / (2 * share) + np.spacing(np.abs(expected).astype(np.float32))
    assert (np.abs(found - expected) <= bound).all()
    assert not found[~TRAINED].any()


def test_moments_are_those_of_all_samples() -> None:
    """Against samples themselves: means of sites far from zero and from each other, small variances."""
    numbers, counts = np.random.default_rng(7), [30, 50, 20]
    samples = [numbers.normal(300 + 5 * site, 0.1, (count, 5)) for site, count in enumerate(counts)]
    reference = np.zeros(TOTAL, np.float32)
    ENTRIES.means.put(reference, np.full(5, 305, np.float32))
    weights = []
    for each in samples:
        own = reference.copy()
        ENTRIES.means.put(own, each.mean(axis=0).astype(np.float32))
        ENTRIES.variances.put(own, each.var(axis=0).astype(np.float32))
        weights.append(own)
    found = _summed(_form(pools_moments=True), reference, weights, counts, [0, 1, 2]).moments
    assert found is not None
    together = np.concatenate(samples)
    np.testing.assert_allclose(305 + found[0], together.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found[1], together.var(axis=0), rtol=1e-4)


def test_what_goes_beside_the_model_is_summed_by_share_of_all_sites() -> None:
    form, (reference, weights, counts) = _form(control_size=6), _updates(3, 1, 0.1)
    controls = [np.random.default_rng(site).normal(0, 100, 6).astype(np.float32) for site in range(3)]
    found = _summed(form, reference, weights, counts, [0, 2], controls).control
    expected = sum(counts[site] / sum(counts) * controls[site].astype(np.float64) for site in (0, 2))
    np.testing.assert_allclose(found, expected, atol=2e-11)


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 4.001, -1e30])
def test_a_site_sends_no_update_that_no_sum_could_take(wrong: float) -> None:
    reference, (weights,), counts = _updates(1, 3, 0.1)
    for entry, words in ((5, "expected changes of parameters within ±4"), (31, "expected running statistics")):
        spoiled = weights.copy()
        spoiled[entry] = wrong if entry == 5 or abs(wrong) != 4.001 else 1e9
        with pytest.raises(SecureError, match=words):
            _form().write(spoiled, reference, np.zeros(0, np.float32), num_samples=counts[0], share=1.0)


def test_a_sum_that_cannot_be_one_of_updates_is_refused() -> None:
    form, (reference, weights, counts) = _form(), _updates(2, 3, 0.1)
    total = form.blank()
    for site in (0, 1):
        own = form.write(
            weights[site],
            reference,
            np.zeros(0, np.float32),
            num_samples=counts[site],
            share=counts[site] / sum(counts),
        )
        total.add(own)
    said = {"num_sites": 2, "num_samples": sum(counts), "share": 1.0}
    form.read(total, **said)
    total.narrow[7] ^= np.uint32(1 << 31)
    with pytest.raises(SecureError, match="within their range, found numbers beyond"):
        form.read(total, **said)
    total.narrow[7] ^= np.uint32(1 << 31)
    total.add_mask(bytes(32))
    with pytest.raises(SecureError, match="the masks do not cancel"):
        form.read(total, **said)
