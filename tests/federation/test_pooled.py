"""Pooled metrics against scikit-learn and the metrics of the union, slow searches, and what may be disclosed."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from dipro_model import weighted
from dipro_model.metrics import metric_names, output_shape, score
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task
from federation.bounds import Placed, auroc, average_precision, trapezoid_precision_recall
from federation.pooled import PooledError, PooledMetric, ScoreCounts, combine, pooled_metrics, summarise
from federation.score_cells import cells, grid, grid_bin, run_of_values, tenth_edges

TASKS = list(Task)
ROUNDING = 1e-12
KINDS = ("random", "realistic", "tied", "skewed", "coarse")

Site = tuple[np.ndarray, np.ndarray]


def draw_site(task: Task, num_samples: int, kind: str, generator: np.random.Generator) -> Site:
    """Labels and probabilities of one site: which of them are hard for bins depends on the kind."""
    num_outputs, num_classes = output_shape(task)
    values = max(2, num_classes)
    shares = np.full(values, 1 / values) if kind == "random" else np.geomspace(1, 0.15, values)
    shape = (num_samples, num_outputs) if task is Task.DISEASE_PROGRESSION else (num_samples,)
    labels = generator.choice(values, p=shares / shares.sum(), size=shape)
    truth = np.eye(values)[labels.reshape(num_samples, num_outputs)]
    if task is Task.DISEASE_PROGRESSION:
        labels = np.where(generator.random(shape) < 0.2, NOT_MENTIONED, labels)
    strength = {"random": 0.0, "realistic": 1.2, "tied": 1.0, "skewed": 6.0, "coarse": 0.5}[kind]
    odds = generator.normal(size=truth.shape) * (3 if kind == "skewed" else 1) + strength * truth
    odds = odds + (np.linspace(0, -5, values) if kind == "skewed" else 0)
    scores = np.exp(odds) / np.exp(odds).sum(axis=-1, keepdims=True)
    if kind == "tied":
        scores = np.round(scores, 1)
    if kind == "coarse":
        scores = np.where(scores > 0.5, 0.75, 0.25)
    return labels, (scores[..., 1:] if num_classes == 1 else scores).astype(np.float32)


def union(sites: list[Site]) -> Site:
    labels, probabilities = zip(*sites, strict=True)
    return np.concatenate(labels), np.concatenate(probabilities)


def pooled(task: Task, sites: list[Site], **how: Any) -> dict[str, PooledMetric]:
    return pooled_metrics(combine([summarise(task, *site, **how) for site in sites]))


def assert_encloses(found: dict[str, PooledMetric], task: Task, sites: list[Site]) -> None:
    """Every metric of the union lies between the bounds, and is undefined where theirs is, for the same reason."""
    expected = score(task, *union(sites))
    assert list(found) == list(metric_names(task))
    for name, metric in found.items():
        value = expected[name].value
        assert (metric.value is None) == (value is None), name
        assert metric.reason == expected[name].reason, name
        if value is not None:
            assert metric.lower is not None
            assert metric.upper is not None
            assert metric.lower - ROUNDING <= value <= metric.upper + ROUNDING, name
            assert metric.value == pytest.approx((metric.lower + metric.upper) / 2)
            assert abs(metric.value - value) <= metric.error + ROUNDING


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [10, 400, 4000])
def test_bounds_enclose_the_value_on_the_union(task: Task, kind: str, bins: int) -> None:
    generator = np.random.default_rng(5)
    sites = [draw_site(task, size, kind, generator) for size in (150, 60, 1, 7)]
    assert_encloses(pooled(task, sites, bins=bins, minimum_cell=1), task, sites)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["random", "realistic", "tied"])
@pytest.mark.parametrize("minimum_cell", [2, 5, 10])
def test_bounds_enclose_the_value_with_protected_cells(task: Task, kind: str, minimum_cell: int) -> None:
    generator = np.random.default_rng(8)
    sites = [draw_site(task, size, kind, generator) for size in (700, 500)]
    found = pooled(task, sites, bins=1000, minimum_cell=minimum_cell)
    assert_encloses(found, task, sites)


def test_realistic_scores_are_pooled_closely() -> None:
    """Five sites, 1,000 patients: the default grid leaves at most 0.001 open."""
    generator = np.random.default_rng(1)
    for task in TASKS:
        sites = [draw_site(task, 200, "realistic", generator) for _ in range(5)]
        for name, metric in pooled(task, sites, minimum_cell=1).items():
            assert metric.error is not None
            assert metric.error < (0.003 if name.startswith("auprc") else 0.001), (task, name)


@pytest.mark.parametrize("seed", range(3))
def test_death_against_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sites = [draw_site(Task.MORTALITY, size, "realistic", generator) for size in (90, 300, 40)]
    labels, risks = union(sites)
    found = pooled(Task.MORTALITY, sites, minimum_cell=1)
    for name, function in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        assert found[name].lower <= function(labels, risks[:, 0, 0]) <= found[name].upper
    assert found["brier"].value == pytest.approx(sk.brier_score_loss(labels, risks[:, 0, 0].astype(float)), abs=1e-12)
    assert found["brier"].error == 0
    assert found["ece"].error == pytest.approx(0, abs=ROUNDING)


def test_decisions_and_calibration_are_exact_with_cells_of_one() -> None:
    generator = np.random.default_rng(4)
    sites = [draw_site(Task.LENGTH_OF_STAY, size, "realistic", generator) for size in (90, 300, 40)]
    labels, probabilities = union(sites)
    predicted = probabilities[:, 0].argmax(axis=1)
    found = {name: each.value for name, each in pooled(Task.LENGTH_OF_STAY, sites, minimum_cell=1).items()}
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predicted), abs=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert found["precision_micro"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert found["ece"] == pytest.approx(score(Task.LENGTH_OF_STAY, labels, probabilities)["ece"].value, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_finer_bins_bring_the_bounds_together(task: Task) -> None:
    generator = np.random.default_rng(2)
    sites = [draw_site(task, 300, "realistic", generator) for _ in range(2)]
    for name in ("auroc", "auprc"):
        errors = [pooled(task, sites, bins=bins, minimum_cell=1)[name].error for bins in (200, 2000, 20000)]
        assert all(finer < 0.3 * coarser for coarser, finer in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("minimum_cell", [1, 4])
def test_the_order_of_the_sites_changes_nothing(task: Task, minimum_cell: int) -> None:
    generator = np.random.default_rng(3)
    counts = [
        summarise(task, *draw_site(task, size, "realistic", generator), minimum_cell=minimum_cell)
        for size in (300, 200, 240, 150)
    ]
    untouched = replace(counts[0], histograms=counts[0].histograms.copy())
    forward, backward = pooled_metrics(combine(counts)), pooled_metrics(combine(counts[::-1]))
    assert forward == backward
    assert pooled_metrics(combine(each for each in counts)) == forward
    assert (counts[0].histograms == untouched.histograms).all()


def test_one_site_alone_and_all_sites_in_one_agree_with_cells_of_one() -> None:
    generator = np.random.default_rng(6)
    sites = [draw_site(Task.DISEASE_PROGRESSION, size, "realistic", generator) for size in (50, 80)]
    apart = combine([summarise(Task.DISEASE_PROGRESSION, *site, minimum_cell=1) for site in sites])
    together = summarise(Task.DISEASE_PROGRESSION, *union(sites), minimum_cell=1)
    assert (apart.histograms == together.histograms).all()
    assert (apart.decisions == together.decisions).all()
    np.testing.assert_allclose(apart.gaps, together.gaps, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_one_class_and_no_label_are_undefined_with_the_reason(task: Task) -> None:
    labels, probabilities = draw_site(task, 12, "random", np.random.default_rng(0))
    one_class = (np.zeros_like(labels), probabilities)
    assert_encloses(pooled(task, [one_class, one_class], minimum_cell=1), task, [one_class, one_class])
    nobody = (labels[:0], probabilities[:0])
    assert_encloses(pooled(task, [nobody], minimum_cell=1), task, [nobody])
    if task is Task.DISEASE_PROGRESSION:
        silent = (np.full_like(labels, NOT_MENTIONED), probabilities)
        silent[0][:6, 2] = [0, 1, 2, 0, 1, 2]
        found = pooled(task, [silent], minimum_cell=1)
        assert_encloses(found, task, [silent])
        assert "atelectasis" in str(found["f1"].reason)


def test_sites_of_one_class_make_a_metric_together() -> None:
    """Weighted means of AUROCs do not exist here; the pooled one does."""
    alive = (np.zeros(3, np.int64), np.array([0.1, 0.2, 0.3]).reshape(-1, 1, 1))
    dead = (np.ones(2, np.int64), np.array([0.25, 0.9]).reshape(-1, 1, 1))
    found = pooled(Task.MORTALITY, [alive, dead], minimum_cell=1)
    assert found["auroc"].value == pytest.approx(5 / 6)
    assert found["auroc"].error == 0


# Bounds against every arrangement that the cells allow.


def arrangements(spans: list[tuple[int, int]]) -> Iterator[tuple[float, ...]]:
    """Scores that place every sample in one of its bins, below, in or above the bin's middle, so that ties happen."""
    choices = [[place + part for place in range(low, high + 1) for part in (0.0, 0.3, 0.6)] for low, high in spans]
    return itertools.product(*choices)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    spans=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 1)), min_size=2, max_size=5),
)
def test_no_arrangement_leaves_the_bounds(spans: list[tuple[bool, int, int]]) -> None:
    positive = np.array([each for each, _, _ in spans])
    if positive.all() or not positive.any():
        return
    low = np.array([each for _, each, _ in spans])
    high = low + np.array([each for _, _, each in spans])
    placed = Placed(
        positive_low=np.bincount(low[positive], minlength=4),
        positive_high=np.bincount(high[positive], minlength=4),
        negative_low=np.bincount(low[~positive], minlength=4),
        negative_high=np.bincount(high[~positive], minlength=4),
    )
    all_scores = np.array(list(arrangements(list(zip(low.tolist(), high.tolist(), strict=True)))))[::7]
    ones = np.ones((1, len(positive)))
    for bound, metric in (
        (auroc, weighted.auroc),
        (average_precision, weighted.average_precision),
        (trapezoid_precision_recall, weighted.trapezoid_precision_recall),
    ):
        lower, upper = bound(placed)
        values = [metric(positive, scores, ones)[0] for scores in all_scores[:200]]
        assert lower - ROUNDING <= min(values)
        assert max(values) <= upper + ROUNDING


def test_the_bounds_of_the_areas_by_hand() -> None:
    """One bin of two positives and two negatives below one positive: what order they have is open."""
    placed = Placed(
        positive_low=np.array([2, 1]),
        positive_high=np.array([2, 1]),
        negative_low=np.array([2, 0]),
        negative_high=np.array([2, 0]),
    )
    assert auroc(placed) == pytest.approx((1 / 3, 1))
    # Worst: + - - + +, precision 1, 2/4, 3/5 at the positives. Best: all positives first.
    assert average_precision(placed) == pytest.approx(((1 + 2 / 4 + 3 / 5) / 3, 1))


def test_tied_positives_can_score_above_any_order_of_them() -> None:
    """100 negatives above 100 positives: one by one 1 - ln 2, tied 1/2; the bound must allow the tie."""
    positives, negatives = np.array([100, 0]), np.array([0, 100])
    placed = Placed(positive_low=positives, positive_high=positives, negative_low=negatives, negative_high=negatives)
    lower, upper = average_precision(placed)
    assert upper == pytest.approx(0.5)
    assert lower == pytest.approx(1 - math.log(2), abs=0.01)
    tied = np.repeat([0.2, 0.8], 100)
    assert upper == pytest.approx(sk.average_precision_score(tied < 0.5, tied))


def test_a_wide_cell_may_gain_by_a_tie_below() -> None:
    """One positive of bins 0 to 2, below ten negatives: tied with 100 positives in bin 0 it has their precision."""
    placed = Placed(
        positive_low=np.array([101, 0, 0, 0]),
        positive_high=np.array([100, 0, 1, 0]),
        negative_low=np.array([0, 0, 0, 10]),
        negative_high=np.array([0, 0, 0, 10]),
    )
    scores = np.repeat([0.1, 0.9], [101, 10])
    assert average_precision(placed).upper == pytest.approx(sk.average_precision_score(scores < 0.5, scores))


def test_a_wide_cell_may_lose_below_negatives() -> None:
    """One positive of bins 0 to 2, below five others; ten negatives in bin 1 may lie above it."""
    placed = Placed(
        positive_low=np.array([1, 0, 0, 5]),
        positive_high=np.array([0, 0, 1, 5]),
        negative_low=np.array([0, 10, 0, 0]),
        negative_high=np.array([0, 10, 0, 0]),
    )
    positive, scores = np.repeat([True, False, True], [5, 10, 1]), np.repeat([0.9, 0.5, 0.1], [5, 10, 1])
    lowest = weighted.trapezoid_precision_recall(positive, scores, np.ones((1, 16)))[0]
    assert trapezoid_precision_recall(placed) == pytest.approx((lowest, 1.0))


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    task=st.sampled_from(TASKS),
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=4),
    bins=st.sampled_from([10, 37, 1000]),
    seed=st.integers(0, 10_000),
)
def test_bounds_enclose_whatever_the_sites(task: Task, kind: str, sizes: list[int], bins: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    sites = [draw_site(task, size, kind, generator) for size in sizes]
    assert_encloses(pooled(task, sites, bins=bins, minimum_cell=1), task, sites)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    task=st.sampled_from(TASKS),
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.integers(20, 90), min_size=1, max_size=3),
    minimum_cell=st.integers(2, 6),
    seed=st.integers(0, 10_000),
)
def test_bounds_enclose_what_sites_disclose(
    task: Task, kind: str, sizes: list[int], minimum_cell: int, seed: int
) -> None:
    """Where a site withholds an output, the metrics are those of the other sites' union."""
    generator = np.random.default_rng(seed)
    sites = [draw_site(task, size, kind, generator) for size in sizes]
    counts = [summarise(task, *site, minimum_cell=minimum_cell, bins=200) for site in sites]
    found = pooled_metrics(combine(counts))
    for output in range(output_shape(task)[0]):
        kept = [site for site, count in zip(sites, counts, strict=True) if not count.withheld[output].any()]
        suffix = f"/{DISEASES[output]}" if task is Task.DISEASE_PROGRESSION else ""
        if not kept or any(count.withheld[output, 1] for count in counts):
            continue
        expected = score(task, *union(kept))
        for name, metric in found.items():
            value = expected[name].value
            if name.endswith(suffix) and ("/" in name) == bool(suffix) and value is not None:
                assert metric.lower - ROUNDING <= value <= metric.upper + ROUNDING, name


# What a site discloses.


def disclosed_numbers(counts: ScoreCounts) -> np.ndarray:
    """Every number of samples that can be read from what a site sends, cell by cell."""
    return counts.histograms[counts.histograms > 0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("minimum_cell", [2, 10])
def test_every_disclosed_count_is_zero_or_reaches_the_minimum(task: Task, kind: str, minimum_cell: int) -> None:
    generator = np.random.default_rng(11)
    shown = 0
    for size in (0, 1, 15, 60, 700):
        counts = summarise(task, *draw_site(task, size, kind, generator), minimum_cell=minimum_cell)
        numbers = disclosed_numbers(counts)
        assert (numbers >= minimum_cell).all()
        shown += numbers.size
        least, most = counts.decisions[..., 0::2], counts.decisions[..., 1::2]
        labels = np.array([counts.labels(output) for output in range(len(counts.withheld))])
        rest = labels.sum(axis=1, keepdims=True) - labels
        if counts.decisions.size:
            # A decision is one of so many values, or one of nobody.
            of_nobody = np.stack([labels, rest], axis=-1) == 0
            assert ((most - least + 1 >= minimum_cell) | of_nobody).all()
        assert (counts.gaps[counts.withheld.any(axis=1)] == 0).all()
        assert (counts.squares[counts.withheld[:, 0] > 0] == 0).all()
    assert shown


def test_cells_count_patients_not_samples() -> None:
    """Eight patients with five samples each are eight, which ten do not suffice for; twelve make one cell."""
    labels = np.repeat([0, 1], 60)
    risks = np.linspace(0.01, 0.99, 120).reshape(-1, 1, 1)
    few = np.concatenate([np.repeat(np.arange(12), 5), np.repeat(np.arange(100, 108), 8)[:60]])
    assert summarise(Task.MORTALITY, labels, risks, patients=few).withheld[0, 0] == 1
    twelve = np.concatenate([np.tile(np.arange(12), 5), np.repeat(np.arange(100, 112), 5)])
    counts = summarise(Task.MORTALITY, labels, risks, patients=twelve)
    assert not counts.withheld.any()
    placed = counts.placed(0, 0)
    assert np.count_nonzero(placed.positive_low) == 1
    assert np.count_nonzero(placed.negative_low) > 1


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    scores=st.lists(st.integers(0, 60), min_size=3, max_size=40),
    minimum=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_cells_hold_their_samples_and_enough_patients(scores: list[int], minimum: int, seed: int) -> None:
    edges, bins = grid(60), np.array(scores)
    patients = np.random.default_rng(seed).integers(0, 12, len(scores))
    if len(set(patients.tolist())) < minimum:
        return
    low, high = cells(edges, bins, patients, minimum)
    assert ((low <= bins) & (bins <= high)).all()
    spans = set(zip(low.tolist(), high.tolist(), strict=True))
    for first, last in spans:
        assert len(set(patients[(low == first) & (high == last)].tolist())) >= minimum
    assert all(after[0] > before[1] for before, after in itertools.pairwise(sorted(spans)))


def test_cells_keep_to_the_tenths_that_have_enough_patients() -> None:
    edges = grid(4000)
    scores = np.concatenate([np.linspace(0.01, 0.09, 30), np.linspace(0.11, 0.19, 30), [0.95]])
    bins = grid_bin(edges, scores)
    low, high = cells(edges, bins, np.arange(61), 10)
    cut = int(np.searchsorted(edges, 0.1))
    assert edges[cut] == 0.1
    assert high[:30].max() == cut
    assert low[30:].min() == cut + 1
    assert high[-1] == len(edges)


def test_a_small_class_withholds_the_output_and_is_named() -> None:
    generator = np.random.default_rng(0)
    large = draw_site(Task.MORTALITY, 600, "realistic", generator)
    risks = generator.random((60, 1, 1))
    small = ((np.arange(60) < 4).astype(np.int64), risks)
    found = pooled(Task.MORTALITY, [large, small], minimum_cell=10)
    expected = score(Task.MORTALITY, *large)
    for name, metric in found.items():
        assert metric.lower - ROUNDING <= expected[name].value <= metric.upper + ROUNDING
        assert "without 1 of 2 sites" in str(metric.reason)
        assert "fewer patients" in str(metric.reason)
    alone = pooled(Task.MORTALITY, [small], minimum_cell=10)
    assert all(each.value is None and "without 1 of 1 sites" in str(each.reason) for each in alone.values())


def test_few_wrong_decisions_withhold_the_calibration_error_only() -> None:
    labels = np.arange(400) % 4
    probabilities = np.full((400, 1, 4), 0.1)
    probabilities[np.arange(400), 0, np.where(np.arange(400) < 3, 3 - labels, labels)] = 0.7
    found = pooled(Task.LENGTH_OF_STAY, [(labels, probabilities)], minimum_cell=10)
    assert found["ece"].value is None
    assert "right or wrong decisions" in str(found["ece"].reason)
    assert found["accuracy"].lower <= 397 / 400 <= found["accuracy"].upper
    assert found["auroc"].value is not None


@pytest.mark.parametrize(("count", "total", "run"), [(0, 0, (0, 0)), (3, 40, (0, 9)), (10, 40, (10, 19))])
def test_runs_of_values_by_hand(count: int, total: int, run: tuple[int, int]) -> None:
    assert run_of_values(count, total, 10) == run


@pytest.mark.parametrize("minimum", [2, 3, 10])
def test_runs_of_values_cover_every_count_with_enough_others(minimum: int) -> None:
    for total in range(minimum, 60):
        runs = {run_of_values(count, total, minimum) for count in range(total + 1)}
        assert all(last - first + 1 >= minimum for first, last in runs)
        assert sorted(value for first, last in runs for value in range(first, last + 1)) == list(range(total + 1))


# The grid.


def test_the_grid_has_the_tenths_of_the_calibration_error_and_is_fine_at_both_ends() -> None:
    edges = grid(4000)
    assert np.isin(tenth_edges(), edges).all()
    assert (np.diff(edges) > 0).all()
    assert 3999 <= len(edges) + 1 <= 4009
    scores = np.random.default_rng(0).random(1000)
    tenths = np.searchsorted(tenth_edges(), scores)
    assert (weighted.bin_of(scores) == tenths).all()
    assert (np.diff(edges) <= 0.0021).all()
    assert grid_bin(edges, np.array([0.0, 1.0])).tolist() == [0, len(edges)]


@pytest.mark.parametrize("bins", [0, 9, 100_001])
def test_absurd_grids_are_refused(bins: int) -> None:
    with pytest.raises(ValueError, match=r"10 to 100,000 score bins"):
        grid(bins)


# Travel and refusals.


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("minimum_cell", [1, 10])
def test_arrays_and_back(task: Task, minimum_cell: int) -> None:
    counts = summarise(task, *draw_site(task, 400, "realistic", np.random.default_rng(0)), minimum_cell=minimum_cell)
    arrays = counts.arrays()
    assert len(arrays) == 5
    assert all(each.ndim == 1 for each in arrays.values())
    assert sum(each.nbytes for each in arrays.values()) < 400_000
    again = ScoreCounts.from_arrays(arrays)
    assert pooled_metrics(again) == pooled_metrics(counts)
    assert (again.histograms == counts.histograms).all()
    both = combine([again, counts])
    assert ScoreCounts.from_arrays(both.arrays()).num_sites == 2


@pytest.mark.parametrize("size", [0, 12, 300])
def test_arrays_travel_as_flower_arrays(size: int) -> None:
    """Empty ones, too: a site of twelve withholds everything."""
    site = draw_site(Task.LENGTH_OF_STAY, size, "realistic", np.random.default_rng(0))
    counts = summarise(Task.LENGTH_OF_STAY, *site, minimum_cell=5)
    record = ArrayRecord({name: Array(each) for name, each in counts.arrays().items()})
    received = ScoreCounts.from_arrays({name: each.numpy() for name, each in record.items()})
    assert pooled_metrics(received) == pooled_metrics(counts)
    assert pooled_metrics(combine([received, counts])).keys() == pooled_metrics(counts).keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"header": np.array([7, 400, 1])}, "a task of"),
        ({"header": np.array([1, 400])}, "3 numbers"),
        ({"header": np.array([1, 3, 1])}, "score bins"),
        ({"counts": np.array([1, 2])}, "rising places"),
        ({"sums": np.full(11, np.nan)}, "finite"),
        ({"sums": np.zeros(4)}, "expected 11 finite numbers"),
        ({"sums": np.zeros(11, np.int64)}, "of another kind: sums"),
        ({"small": np.array([0, 5])}, "sites that withhold"),
        ({"extra": np.zeros(1)}, "found counts, extra"),
    ],
)
def test_arrays_that_no_site_wrote_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    site = draw_site(Task.MORTALITY, 30, "realistic", np.random.default_rng(0))
    arrays = summarise(Task.MORTALITY, *site, minimum_cell=1, bins=400).arrays()
    with pytest.raises(ValueError, match=words):
        ScoreCounts.from_arrays({**arrays, **change})


def test_histograms_and_decisions_that_contradict_each_other_are_refused() -> None:
    site = draw_site(Task.LENGTH_OF_STAY, 60, "realistic", np.random.default_rng(0))
    arrays = summarise(Task.LENGTH_OF_STAY, *site, minimum_cell=1).arrays()
    with pytest.raises(PooledError, match="do not count the same samples"):
        ScoreCounts.from_arrays({**arrays, "counts": arrays["counts"] + 1 * (np.arange(len(arrays["counts"])) == 0)})
    small = arrays["small"].copy()
    small[1] = 500
    with pytest.raises(PooledError, match="decisions do not fit"):
        ScoreCounts.from_arrays({**arrays, "small": small})


def test_different_tasks_or_grids_are_not_added() -> None:
    site = draw_site(Task.MORTALITY, 30, "realistic", np.random.default_rng(0))
    coarse, fine = (summarise(Task.MORTALITY, *site, bins=bins) for bins in (400, 500))
    with pytest.raises(PooledError, match=r"mortality in 400 bins; mortality in 500 bins"):
        combine([coarse, fine])
    with pytest.raises(PooledError, match="found none"):
        combine([])


def test_impossible_scores_are_refused() -> None:
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="diverged"):
        summarise(Task.MORTALITY, labels, np.array([0.1, math.nan]).reshape(-1, 1, 1))
    with pytest.raises(PooledError, match="one patient a sample"):
        summarise(Task.MORTALITY, labels, np.full((2, 1, 1), 0.5), patients=np.arange(3))
    with pytest.raises(PooledError, match="minimum cell of 1"):
        summarise(Task.MORTALITY, labels, np.full((2, 1, 1), 0.5), minimum_cell=0)
