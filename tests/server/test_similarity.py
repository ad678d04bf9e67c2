"""Cosines from sketches beside those of the whole updates."""

import numpy as np
import pytest

from federation.selection import Entries
from server.similarity import Similarity

SITES = ("east", "north", "south")
SAMPLES = {"east": 30, "north": 100, "south": 7}


def _updates(kind: str, size: int) -> dict[str, np.ndarray]:
    """A common direction and each site's own; `kind` says what they look like."""
    rng = np.random.default_rng(5)
    if kind == "dense":
        common, *own = rng.standard_normal((4, size))
    elif kind == "low rank":  # gradients of a layer: rows are multiples of each other
        rows, columns = rng.standard_normal((4, size // 512)), rng.standard_normal((4, 512))
        common, *own = (np.outer(*each).ravel() for each in zip(rows, columns, strict=True))
    else:  # few entries hold most of the length
        common, *own = rng.standard_t(3, (4, size))
    return {
        site: (common + weight * each).astype(np.float32)
        for site, weight, each in zip(SITES, (0.3, 1, 3), own, strict=True)
    }


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("size", [1 << 16, 3 << 20])
@pytest.mark.parametrize("kind", ["dense", "low rank", "heavy tails"])
def test_cosines_are_those_of_the_whole_updates(kind: str, size: int) -> None:
    updates = _updates(kind, size)
    reference = np.random.default_rng(6).standard_normal(size).astype(np.float32)
    similarity = Similarity(reference, Entries(total=size, runs=((0, size),)))
    for site, update in updates.items():
        similarity.add(site, reference + update, SAMPLES[site])
    names, cosines = similarity.matrix()
    assert names == list(SITES)
    for place, site in enumerate(names):
        expected = [_cosine(updates[site], updates[other]) for other in names[:place]]
        np.testing.assert_allclose(cosines[place], expected, atol=0.06)
    for site, found in similarity.with_others().items():
        others = sum(SAMPLES[other] * updates[other] for other in SITES if other != site)
        assert found == pytest.approx(_cosine(updates[site], others), abs=0.06)


def test_a_site_that_turned_its_update_around_points_against_the_others() -> None:
    size = 5000
    reference, step = np.random.default_rng(7).standard_normal((2, size)).astype(np.float32)
    similarity = Similarity(reference, Entries(total=size, runs=((0, size),)))
    for site, sign in (("a", 1), ("b", 1), ("c", -10)):
        similarity.add(site, reference + np.float32(sign) * step, 10)
    _, cosines = similarity.matrix()
    assert cosines == [[], [pytest.approx(1)], [pytest.approx(-1)] * 2]
    assert similarity.with_others()["c"] == pytest.approx(-1)


def test_entries_that_do_not_count_change_nothing() -> None:
    size, entries = 9000, Entries(total=9000, runs=((10, 4000), (5001, 8999)))
    rng = np.random.default_rng(8)
    reference, one, other = rng.standard_normal((3, size)).astype(np.float32)
    noisy = one + np.where(entries.mask(), 0, 1e6 * rng.standard_normal(size)).astype(np.float32)
    first, second = Similarity(reference, entries), Similarity(reference, entries)
    for similarity, mine in ((first, one), (second, noisy)):
        similarity.add("mine", mine, 1)
        similarity.add("other", other, 1)
    assert first.matrix() == second.matrix()


def test_updates_without_length_or_of_the_greatest_have_a_number() -> None:
    size = 100
    reference = np.full(size, -3e38, np.float32)
    similarity = Similarity(reference, Entries(total=size, runs=((0, size),)))
    similarity.add("idle", reference, 1)
    similarity.add("wild", -reference, 1)
    assert similarity.matrix()[1] == [[], [0.0]]
    alone = Similarity(reference, Entries(total=size, runs=((0, size),)))
    alone.add("only", reference, 1)
    assert (alone.matrix(), alone.with_others()) == ((["only"], [[]]), {})
