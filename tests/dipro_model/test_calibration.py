"""Brier score and expected calibration error against scikit-learn, slow loops and cases whose answer is known."""

import numpy as np
import pytest
import sklearn.metrics as sk

from dipro_model import weighted
from dipro_model.metrics import CALIBRATION, bootstrap, output_shape, score
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task


def draw(task: Task, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities in tenths, so that many lie on the edge of a bin."""
    generator = np.random.default_rng(seed)
    num_outputs, num_classes = output_shape(task)
    tenths = generator.multinomial(
        10, np.full(max(2, num_classes), 1 / max(2, num_classes)), (num_samples, num_outputs)
    )
    probabilities = tenths[:, :, :num_classes] / 10
    if task is Task.DISEASE_PROGRESSION:
        return generator.integers(0, NOT_MENTIONED + 1, (num_samples, num_outputs)), probabilities
    return generator.integers(0, max(2, num_classes), num_samples), probabilities


def slow_ece(happened: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """Bin by bin, as Guo et al. write it: bins (m/10, (m+1)/10], weighted by their share of the samples."""
    total = 0.0
    for m in range(10):
        inside = (predicted > m / 10) & (predicted <= (m + 1) / 10) | ((predicted == 0) & (m == 0))
        if weights[inside].sum() > 0:
            confidence = np.average(predicted[inside], weights=weights[inside])
            accuracy = np.average(happened[inside], weights=weights[inside])
            total += weights[inside].sum() / weights.sum() * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_death_equals_scikit_learn_and_the_slow_loop(seed: int) -> None:
    labels, probabilities = draw(Task.MORTALITY, 80, seed)
    found = score(Task.MORTALITY, labels, probabilities)
    risk = probabilities[:, 0, 0]
    assert found["brier"].value == pytest.approx(sk.brier_score_loss(labels, risk), abs=1e-12)
    assert found["ece"].value == pytest.approx(slow_ece(labels == 1, risk, np.ones(80)), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_several_classes_equal_scikit_learn_and_the_slow_loop(seed: int) -> None:
    labels, probabilities = draw(Task.LENGTH_OF_STAY, 80, seed)
    found = score(Task.LENGTH_OF_STAY, labels, probabilities)
    four = probabilities[:, 0]
    brier = sk.brier_score_loss(labels, four, labels=[0, 1, 2, 3], scale_by_half=False)
    assert found["brier"].value == pytest.approx(brier, abs=1e-12)
    right = four.argmax(axis=1) == labels
    assert found["ece"].value == pytest.approx(slow_ece(right, four.max(axis=1), np.ones(80)), abs=1e-12)


def test_every_disease_is_scored_on_its_own_labels_and_the_mean_is_their_mean() -> None:
    labels, probabilities = draw(Task.DISEASE_PROGRESSION, 80, seed=1)
    labels[:, DISEASES.index("pneumonia")] = NOT_MENTIONED
    found = score(Task.DISEASE_PROGRESSION, labels, probabilities)
    for name in CALIBRATION:
        values = []
        for k, disease in enumerate(DISEASES[:-1]):
            known = labels[:, k] != NOT_MENTIONED
            truth, three = labels[known, k], probabilities[known, k]
            expected = {
                "brier": sk.brier_score_loss(truth, three, labels=[0, 1, 2], scale_by_half=False),
                "ece": slow_ece(three.argmax(axis=1) == truth, three.max(axis=1), np.ones(len(truth))),
            }
            assert found[f"{name}/{disease}"].value == pytest.approx(expected[name], abs=1e-12)
            values.append(expected[name])
        assert found[name].value == pytest.approx(np.mean(values), abs=1e-12)
        assert found[name].reason == "mean without pneumonia: undefined there"
        assert found[f"{name}/pneumonia"].reason == "no sample has a label"


def test_no_label_at_all_is_undefined_with_that_reason() -> None:
    labels, probabilities = draw(Task.DISEASE_PROGRESSION, 8, seed=1)
    found = score(Task.DISEASE_PROGRESSION, np.full_like(labels, NOT_MENTIONED), probabilities)
    assert {found[name].reason for name in CALIBRATION} == {"no disease has a label"}
    assert found["f1"].reason == "no disease has labels of at least two classes"


def test_by_hand() -> None:
    """Risks 0.05 and 0.15 and 0.95: gaps |0.05 - 0|, |0.15 - 1|, |0.95 - 1|, a third each."""
    found = score(Task.MORTALITY, np.array([0, 1, 1]), np.array([0.05, 0.15, 0.95]).reshape(3, 1, 1))
    assert found["ece"].value == pytest.approx((0.05 + 0.85 + 0.05) / 3)
    assert found["brier"].value == pytest.approx((0.05**2 + 0.85**2 + 0.05**2) / 3)


def test_gaps_of_one_bin_cancel_and_of_two_bins_do_not() -> None:
    """Within a bin, means are compared: one death among five at risk 0.2 is perfect, whoever it is."""
    same = np.full((5, 1, 1), 0.2)
    assert score(Task.MORTALITY, np.array([0, 0, 1, 0, 0]), same)["ece"].value == pytest.approx(0)
    apart = np.array([0.1, 0.1, 0.6, 0.1, 0.1]).reshape(5, 1, 1)
    assert score(Task.MORTALITY, np.array([0, 0, 1, 0, 0]), apart)["ece"].value == pytest.approx((4 * 0.1 + 0.4) / 5)


def test_a_true_risk_is_nearly_calibrated_and_a_doubled_one_is_off_by_its_excess() -> None:
    generator = np.random.default_rng(0)
    risk = generator.uniform(0, 0.5, 40_000)
    labels = (generator.random(40_000) < risk).astype(int)
    honest, doubled = (score(Task.MORTALITY, labels, each.reshape(-1, 1, 1)) for each in (risk, 2 * risk))
    assert honest["ece"].value == pytest.approx(0, abs=0.01)
    # The expected Brier score of a true risk is the mean of p (1 - p): here 1/4 - 1/12.
    assert honest["brier"].value == pytest.approx(1 / 6, abs=0.003)
    assert doubled["ece"].value == pytest.approx(0.25, abs=0.01)
    assert doubled["brier"].value > honest["brier"].value


def test_a_weight_is_a_repetition() -> None:
    """A resample's value is that of the samples written out as often as they were drawn."""
    generator = np.random.default_rng(3)
    happened, predicted, times = generator.random(40) < 0.5, generator.random(40), generator.integers(0, 4, 40)
    rows = np.repeat(np.arange(40), times)
    weighted_once = weighted.expected_calibration_error(happened, predicted, times[None].astype(float))
    written_out = weighted.expected_calibration_error(happened[rows], predicted[rows], np.ones((1, len(rows))))
    assert weighted_once == pytest.approx(written_out, abs=1e-12)
    assert weighted_once == pytest.approx(slow_ece(happened, predicted, times.astype(float)), abs=1e-12)


def test_the_interval_of_the_calibration_error_holds_its_value_and_about_the_truth() -> None:
    """Risks twice too high: the true error is 2 / 12. Percentiles of 100 samples would often lie above the value."""
    generator = np.random.default_rng(0)
    covered = 0
    for repeat in range(200):
        risk = generator.uniform(0, 1 / 3, 100)
        labels = (generator.random(100) < risk).astype(int)
        arguments = (Task.MORTALITY, labels, (2 * risk).reshape(-1, 1, 1))
        value = score(*arguments)["ece"].value
        found = bootstrap(*arguments, np.arange(100), metrics=["ece"], num_resamples=200, seed=repeat)["ece"]
        assert value is not None
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= value <= found.high
        covered += found.low <= 1 / 6 <= found.high
    assert 0.85 <= covered / 200 <= 0.99


def test_the_interval_of_a_true_risk_reaches_down_to_zero_more_often_than_not() -> None:
    """The true error is 0; the value never is, and no percentile of the resamples either."""
    generator = np.random.default_rng(1)
    reached = 0
    for repeat in range(100):
        risk = generator.beta(1, 4, 150)
        labels = (generator.random(150) < risk).astype(int)
        arguments = (Task.MORTALITY, labels, risk.reshape(-1, 1, 1), np.arange(150))
        reached += bootstrap(*arguments, metrics=["ece"], num_resamples=200, seed=repeat)["ece"].low == 0
    assert reached > 50
