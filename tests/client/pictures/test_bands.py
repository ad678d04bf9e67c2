"""Bands and intervals against slow loops over scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from client.pictures import bands
from client.pictures.bands import GRID, OneClass, precision_recall_band, roc_band, wilson
from dipro_model.metrics import bootstrap, resamples
from dipro_model.vocabulary import Task


def draw(num_samples: int = 60, num_patients: int = 40, seed: int = 0, *, decimals: int = 6) -> OneClass:
    generator = np.random.default_rng(seed)
    positive = generator.random(num_samples) < 0.3
    scores = np.round(1 / (1 + np.exp(-generator.normal(size=num_samples) - positive)), decimals)
    return OneClass(positive=positive, scores=scores, patients=generator.integers(0, num_patients, num_samples))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "NUM_RESAMPLES", 40)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("decimals", [6, 1])
def test_the_roc_band_equals_a_loop_over_scikit_learn(decimals: int) -> None:
    own = draw(decimals=decimals)
    curves, areas = [], []
    for weights in np.concatenate(list(resamples(own.patients, num_resamples=40, seed=0))):
        x, y, _ = roc_curve(own.positive, own.scores, sample_weight=weights, drop_intermediate=False)
        curves.append([_on_lines(each, x, y) for each in GRID])
        areas.append(roc_auc_score(own.positive, own.scores, sample_weight=weights))
    band = roc_band(own)
    np.testing.assert_allclose([band.low, band.high], np.quantile(curves, [0.025, 0.975], axis=0), atol=1e-9)
    np.testing.assert_allclose(band.area, np.quantile(areas, [0.025, 0.975]))


def _on_lines(at: float, x: np.ndarray, y: np.ndarray) -> float:
    """Height of the polyline at a place, the top of a vertical piece."""
    here = y[np.isclose(x, at, atol=1e-12)]
    if len(here):
        return here.max()
    after = int(np.argmax(x > at))
    share = (at - x[after - 1]) / (x[after] - x[after - 1])
    return y[after - 1] + share * (y[after] - y[after - 1])


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("decimals", [6, 1])
def test_the_precision_recall_band_equals_a_loop_over_scikit_learn(decimals: int) -> None:
    own = draw(decimals=decimals)
    curves, areas = [], []
    for weights in np.concatenate(list(resamples(own.patients, num_resamples=40, seed=0))):
        drawn = weights > 0
        precision, recall, thresholds = precision_recall_curve(
            own.positive[drawn], own.scores[drawn], sample_weight=weights[drawn]
        )
        strictest = [np.flatnonzero(recall[:-1] >= at - 1e-12).max() for at in GRID[1:]]
        assert len(thresholds) == len(recall) - 1
        curves.append(precision[strictest])
        areas.append(average_precision_score(own.positive, own.scores, sample_weight=weights))
    band = precision_recall_band(own, trapezoid=False)
    np.testing.assert_allclose([band.low[1:], band.high[1:]], np.quantile(curves, [0.025, 0.975], axis=0), atol=1e-9)
    np.testing.assert_allclose(band.area, np.quantile(areas, [0.025, 0.975]))


def test_intervals_of_areas_are_those_of_the_table() -> None:
    own = draw()
    table = bootstrap(
        Task.MORTALITY,
        own.positive.astype(np.int8),
        own.scores.astype(np.float32)[:, None, None],
        own.patients,
        metrics=("auroc", "auprc"),
        num_resamples=1000,
        seed=0,
    )
    own = OneClass(positive=own.positive, scores=own.scores.astype(np.float32).astype(float), patients=own.patients)
    assert roc_band(own).area == pytest.approx((table["auroc"].low, table["auroc"].high))
    assert precision_recall_band(own, trapezoid=False).area == pytest.approx((table["auprc"].low, table["auprc"].high))


@pytest.mark.usefixtures("few_resamples")
def test_one_patient_has_no_band() -> None:
    own = draw()
    alone = OneClass(positive=own.positive, scores=own.scores, patients=np.zeros(60, int))
    assert np.isnan(roc_band(alone).low).all()
    assert np.isnan(precision_recall_band(alone, trapezoid=True).area).all()


@pytest.mark.usefixtures("few_resamples")
def test_there_is_no_band_where_most_resamples_lack_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the draws of two patients about half lack one of them.
    own = OneClass(positive=np.array([True, False]), scores=np.array([0.7, 0.4]), patients=np.array([0, 1]))
    outcomes = set()
    for seed in range(6):
        monkeypatch.setattr(bands, "SEED", seed)
        both = (np.concatenate(list(resamples(own.patients, num_resamples=40, seed=seed))) > 0).all(axis=1)
        has_band = 2 * both.sum() >= 40
        assert np.isnan(roc_band(own).high).all() == (not has_band)
        assert np.isnan(precision_recall_band(own, trapezoid=False).low).all() == (not has_band)
        outcomes.add(bool(has_band))
    assert outcomes == {True, False}


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 40), (3, 7), (250, 1000)])
def test_intervals_of_shares_are_wilson_s(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    low, high = wilson(np.array([hits / count]), np.array([count]))
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-6)
