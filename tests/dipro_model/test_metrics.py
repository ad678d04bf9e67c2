"""Metrics against slow definitions, hand-computed numbers, scikit-learn, and a case whose interval is known."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from dipro_model import weighted
from dipro_model.metrics import (
    CALIBRATION,
    HEADLINE,
    LOWER_IS_BETTER,
    METRICS,
    MONITOR,
    Interval,
    bootstrap,
    metric_names,
    output_shape,
    score,
)
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task

TASKS = list(Task)


def death(*risks: float) -> np.ndarray:
    """Probabilities of death as [sample, 1, 1]."""
    return np.array(risks, dtype=np.float64).reshape(-1, 1, 1)


def draw(task: Task, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and coarse probabilities, so that ties happen."""
    generator = np.random.default_rng(seed)
    num_outputs, num_classes = output_shape(task)
    probabilities = generator.integers(1, 6, (num_samples, num_outputs, num_classes)).astype(np.float64)
    if num_classes == 1:
        return generator.integers(0, 2, num_samples), probabilities / 8
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    shape = (num_samples, num_outputs) if task is Task.DISEASE_PROGRESSION else (num_samples,)
    return generator.integers(0, 4, shape), probabilities


def is_calibration(name: str) -> bool:
    """Whether a metric, over all diseases or of one, is a calibration error."""
    return name.partition("/")[0] in CALIBRATION


def auroc_by_pairs(positive: np.ndarray, risk: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, a tie counting half."""
    pairs = list(itertools.product(risk[positive], risk[~positive]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def precision_recall_points(positive: np.ndarray, risk: np.ndarray) -> list[tuple[float, float]]:
    """(recall, precision) at every threshold from the strictest, after (0, 1)."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(risk), reverse=True):
        called = risk >= threshold
        points.append(((called & positive).sum() / positive.sum(), (called & positive).sum() / called.sum()))
    return points


def step_area(points: list[tuple[float, float]]) -> float:
    return sum((r - r0) * p for (r0, _), (r, p) in itertools.pairwise(points))


def trapezoid_area(points: list[tuple[float, float]]) -> float:
    return sum((r - r0) * (p + p0) / 2 for (r0, p0), (r, p) in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(5))
def test_mortality_equals_the_slow_definitions(seed: int) -> None:
    labels, probabilities = draw(Task.MORTALITY, 40, seed)
    found = score(Task.MORTALITY, labels, probabilities)
    risk = probabilities[:, 0, 0]
    assert found["auroc"].value == pytest.approx(auroc_by_pairs(labels == 1, risk), abs=1e-12)
    assert found["auprc"].value == pytest.approx(step_area(precision_recall_points(labels == 1, risk)), abs=1e-12)
    assert found["auprc"].value == pytest.approx(sk.average_precision_score(labels, risk), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_progression_equals_the_slow_definitions_and_scikit_learn(seed: int) -> None:
    labels, probabilities = draw(Task.DISEASE_PROGRESSION, 60, seed)
    found = score(Task.DISEASE_PROGRESSION, labels, probabilities)
    for k, disease in enumerate(DISEASES):
        known = labels[:, k] != NOT_MENTIONED
        truth, given_probabilities = labels[known, k], probabilities[known, k]
        predicted = given_probabilities.argmax(axis=1)
        slow = {
            "auroc": np.mean([auroc_by_pairs(truth == c, given_probabilities[:, c]) for c in range(3)]),
            "auprc": np.mean(
                [trapezoid_area(precision_recall_points(truth == c, given_probabilities[:, c])) for c in range(3)]
            ),
            "precision": sk.precision_score(truth, predicted, average="macro", zero_division=0),
            "recall": sk.recall_score(truth, predicted, average="macro"),
            "f1": sk.f1_score(truth, predicted, average="macro"),
        }
        for name, expected in slow.items():
            assert found[f"{name}/{disease}"].value == pytest.approx(expected, abs=1e-12)
        curves = [sk.precision_recall_curve(truth == c, given_probabilities[:, c]) for c in range(3)]
        assert slow["auprc"] == pytest.approx(np.mean([sk.auc(recall, precision) for precision, recall, _ in curves]))
        assert slow["auroc"] == pytest.approx(sk.roc_auc_score(truth, given_probabilities, multi_class="ovr"))
    for name in METRICS[Task.DISEASE_PROGRESSION]:
        by_disease = [found[f"{name}/{disease}"].value for disease in DISEASES]
        assert found[name].value == pytest.approx(np.mean(by_disease), abs=1e-12)
        assert found[name].reason is None


def test_length_of_stay_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    predicted = np.array([0, 0, 1, 1, 2, 2, 2, 3, 0, 3])
    found = score(Task.LENGTH_OF_STAY, labels, np.eye(4)[predicted][:, None, :])
    # 7 of 10 agree; by chance (3*3 + 2*2 + 2*3 + 3*2) / 100 = 0.25; kappa = (0.7 - 0.25) / 0.75.
    assert found["accuracy"].value == pytest.approx(0.7)
    assert found["kappa"].value == pytest.approx(0.6)
    assert found["kappa"].value == pytest.approx(sk.cohen_kappa_score(labels, predicted))


@pytest.mark.parametrize("seed", range(5))
def test_length_of_stay_equals_the_published_evaluation(seed: int) -> None:
    """The published evaluation calls scikit-learn with these words, for the areas with trapezoids."""
    labels, probabilities = draw(Task.LENGTH_OF_STAY, 60, seed)
    found = {name: metric.value for name, metric in score(Task.LENGTH_OF_STAY, labels, probabilities).items()}
    given_probabilities = probabilities[:, 0]
    predicted = given_probabilities.argmax(axis=1)
    curves = [sk.precision_recall_curve(labels == c, given_probabilities[:, c]) for c in range(4)]
    expected = {
        "kappa": sk.cohen_kappa_score(labels, predicted),
        "accuracy": sk.accuracy_score(labels, predicted),
        "auroc": sk.roc_auc_score(labels, given_probabilities, multi_class="ovr"),
        "auprc": np.mean([sk.auc(recall, precision) for precision, recall, _ in curves]),
    }
    for suffix, average in (("", "macro"), ("_micro", "micro")):
        scores = sk.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        expected |= {f"{name}{suffix}": scores[k] for k, name in enumerate(("precision", "recall", "f1"))}
    assert set(found) == {*expected, *CALIBRATION}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_macro_f1_by_hand() -> None:
    labels = np.full((6, 7), NOT_MENTIONED)
    labels[:, 0] = [0, 0, 1, 1, 2, 2]
    probabilities = np.full((6, 7, 3), 1 / 3)
    probabilities[:, 0] = np.eye(3)[[0, 1, 1, 1, 0, 0]]
    found = score(Task.DISEASE_PROGRESSION, labels, probabilities)
    # Worsened: TP 1, FP 2, FN 1. Improved: TP 2, FP 1, FN 0. No change: never predicted.
    assert found["f1/atelectasis"].value == pytest.approx((2 / 5 + 4 / 5 + 0) / 3)
    assert found["precision/atelectasis"].value == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert found["recall/atelectasis"].value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["f1"].value == found["f1/atelectasis"].value
    assert found["f1"].reason is not None
    assert "pneumonia" in found["f1"].reason
    assert found["f1/pneumonia"].reason == "no sample has a label"


@pytest.mark.parametrize("task", TASKS)
def test_perfect_and_inverted_predictions(task: Task) -> None:
    labels, _ = draw(task, 80, seed=1)
    num_outputs, num_classes = output_shape(task)
    if task is Task.MORTALITY:
        perfect = death(*labels)
    else:
        # A 3, not mentioned, has no class of its own in progression: any row will do.
        columns = labels.reshape(80, num_outputs) % num_classes
        perfect = np.eye(num_classes)[columns]
    for name, metric in score(task, labels, perfect).items():
        assert metric.value == pytest.approx(0 if is_calibration(name) else 1)
    inverted = (1 - perfect) / max(1, num_classes - 1)
    for name, metric in score(task, labels, inverted).items():
        assert metric.value is not None
        if is_calibration(name):
            # Every class that is not the label gets an equal share: p(label) = 0, p(likeliest) = 1 / (classes - 1).
            share = 1 / max(1, num_classes - 1)
            worst = share if name.startswith("ece") or num_classes == 1 else 1 + share
            assert metric.value == pytest.approx(worst)
            continue
        if name.startswith("auroc"):
            assert metric.value == pytest.approx(0)
        assert metric.value < (0.75 if name.startswith("auprc") else 0.1)


@pytest.mark.parametrize("task", TASKS)
def test_random_predictions_are_at_chance(task: Task) -> None:
    generator = np.random.default_rng(3)
    num_outputs, num_classes = output_shape(task)
    shape = (6000, num_outputs) if task is Task.DISEASE_PROGRESSION else (6000,)
    labels = generator.integers(0, max(2, num_classes), shape)
    probabilities = generator.random((6000, num_outputs, num_classes))
    decisions = ("accuracy", "f1", "precision", "recall", "f1_micro", "precision_micro", "recall_micro")
    chance = {"kappa": 0.0, "auroc": 0.5, **dict.fromkeys(decisions, 1 / num_classes)}
    for name in set(METRICS[task]) - set(CALIBRATION):
        expected = chance.get(name, 1 / max(2, num_classes))
        assert score(task, labels, probabilities)[name].value == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_no_sample_is_undefined(task: Task) -> None:
    labels, probabilities = draw(task, 4, seed=0)
    found = score(task, labels[:0], probabilities[:0])
    assert set(found) == set(metric_names(task))
    assert all(metric.value is None and metric.reason for metric in found.values())


@pytest.mark.parametrize("task", TASKS)
def test_one_class_is_undefined_except_accuracy_and_calibration(task: Task) -> None:
    labels, probabilities = draw(task, 12, seed=0)
    for name, metric in score(task, np.zeros_like(labels), probabilities).items():
        if name == "accuracy" or name.endswith("_micro"):
            assert metric.value == pytest.approx((probabilities[:, 0].argmax(axis=1) == 0).mean())
        elif is_calibration(name):
            assert metric.value is not None
        else:
            assert metric.value is None
            assert "two classes" in str(metric.reason)


def test_an_absent_class_leaves_the_others() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.5, 0.4, 0.1]])
    progression = np.full((5, 7), NOT_MENTIONED)
    progression[:, 4] = labels
    found = score(Task.DISEASE_PROGRESSION, progression, np.repeat(probabilities[:, None], 7, axis=1))
    predicted = probabilities.argmax(axis=1)
    expected = sk.f1_score(labels, predicted, labels=[0, 1], average="macro")
    assert found["f1/lung opacity"].value == pytest.approx(expected)
    areas = [auroc_by_pairs(labels == c, probabilities[:, c]) for c in (0, 1)]
    assert found["auroc/lung opacity"].value == pytest.approx(np.mean(areas))


@pytest.mark.parametrize(
    ("labels", "probabilities", "words"),
    [
        (np.array([0, 1]), death(0.1, math.nan), "diverged"),
        (np.array([0, 1]), death(0.1, 1.5), r"\[0, 1\]"),
        (np.array([0, 2]), death(0.1, 0.5), r"0\.\.1"),
        (np.array([0.0, 1.0]), death(0.1, 0.5), "whole-number"),
        (np.array([0, 1, 1]), death(0.1, 0.5), r"found \[2, 1, 1\] and \[3\]"),
        (np.array([0, 1]), np.full((2, 1, 4), 0.25), r"\[sample, 1, 1\]"),
    ],
)
def test_impossible_input_is_refused(labels: np.ndarray, probabilities: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(Task.MORTALITY, labels, probabilities)


@pytest.mark.parametrize("task", TASKS)
def test_the_monitor_is_a_headline_metric_of_which_more_is_better(task: Task) -> None:
    assert MONITOR[task] in HEADLINE[task]
    assert METRICS[task][: len(HEADLINE[task])] == HEADLINE[task]
    assert MONITOR[task] not in LOWER_IS_BETTER


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=25),
)
def test_a_weight_is_a_repetition(rows: list[tuple[bool, int, int]]) -> None:
    """A resample's value is that of the samples written out as often as they were drawn."""
    positive, risk, times = (np.array(column) for column in zip(*rows, strict=True))
    written_out = np.repeat(np.arange(len(rows)), times)
    for function in (weighted.auroc, weighted.average_precision, weighted.trapezoid_precision_recall):
        once = function(positive, risk.astype(float), times[None].astype(float))
        if len(set(positive[written_out])) < 2:
            assert np.isnan(once[0])
            continue
        repeated = function(positive[written_out], risk[written_out].astype(float), np.ones((1, len(written_out))))
        assert once == pytest.approx(repeated, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_intervals_equal_a_loop_that_draws_patients(task: Task) -> None:
    """The same draws, but each resample written out and scored by itself."""
    labels, probabilities = draw(task, 50, seed=4)
    patients = np.random.default_rng(0).integers(0, 20, 50)
    names = list(dict.fromkeys([*METRICS[task], metric_names(task)[-1]]))
    found = bootstrap(task, labels, probabilities, patients, metrics=names, num_resamples=60, seed=9)
    identities = np.unique(patients)
    uniform = np.full(len(identities), 1 / len(identities))
    values = {name: [] for name in names}
    for draws in np.random.default_rng(9).multinomial(len(identities), uniform, size=60):
        rows = [
            i
            for who, times in zip(identities, draws, strict=True)
            for i in list(np.flatnonzero(patients == who)) * times
        ]
        scored = score(task, labels[rows], probabilities[rows])
        for name in names:
            values[name].append(np.nan if scored[name].value is None else scored[name].value)
    for name in names:
        low, high = np.nanquantile(values[name], [0.025, 0.975])
        if name.startswith("ece"):
            value = score(task, labels, probabilities)[name].value
            low, high = min(value, max(0, 2 * value - high)), max(value, 2 * value - low)
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-12)
        assert found[name].num_undefined == np.isnan(values[name]).sum()
        assert found[name].num_resamples == 60


def test_patients_are_drawn_not_rows() -> None:
    """Nine copies of every sample say nothing new: the interval stays, where drawing rows would make it a third."""
    labels, probabilities = draw(Task.MORTALITY, 60, seed=2)
    patients = np.arange(60)
    once = bootstrap(Task.MORTALITY, labels, probabilities, patients, metrics=["auroc"], seed=0)["auroc"]
    copies = np.tile(np.arange(60), 9)
    arguments = (Task.MORTALITY, labels[copies], probabilities[copies])
    by_patient = bootstrap(*arguments, patients[copies], metrics=["auroc"], seed=0)["auroc"]
    by_row = bootstrap(*arguments, np.arange(540), metrics=["auroc"], seed=0)["auroc"]
    assert (by_patient.low, by_patient.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert width(by_row) < 0.5 * width(by_patient)


def width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def right_or_wrong(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0 and one-hot predictions that are right where told: accuracy is then a mean of independent draws."""
    return np.zeros(len(right), dtype=np.int64), np.eye(4)[np.where(right, 0, 1)][:, None, :]


def test_the_interval_of_a_proportion_is_the_analytic_one() -> None:
    right = np.arange(400) < 280
    found = bootstrap(
        Task.LENGTH_OF_STAY, *right_or_wrong(right), np.arange(400), metrics=["accuracy"], num_resamples=4000, seed=5
    )["accuracy"]
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 400)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.004)


def test_ninety_five_percent_intervals_cover_the_truth_about_as_often() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for repeat in range(300):
        labels, probabilities = right_or_wrong(generator.random(150) < 0.7)
        found = bootstrap(
            Task.LENGTH_OF_STAY, labels, probabilities, np.arange(150), metrics=["accuracy"], seed=repeat
        )["accuracy"]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    # 0.95 within four standard errors of 300 repeats, less the known shortfall of percentile intervals.
    assert 0.90 <= covered / 300 <= 0.99


def test_a_wider_level_gives_a_wider_interval_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = draw(Task.MORTALITY, 60, seed=2)
    arguments = (Task.MORTALITY, labels, probabilities, np.arange(60))
    usual = bootstrap(*arguments, metrics=["auprc"], seed=1)
    wide = bootstrap(*arguments, metrics=["auprc"], seed=1, level=0.99)
    assert width(wide["auprc"]) > width(usual["auprc"])
    monkeypatch.setattr("dipro_model.metrics._BLOCK_CELLS", 60 * 7)
    assert bootstrap(*arguments, metrics=["auprc"], seed=1) == usual


def test_undefined_resamples_are_counted() -> None:
    """One death among ten: a resample misses it with probability 0.9 ** 10 = 0.35."""
    labels = np.array([1] + [0] * 9)
    risks = death(0.5, *np.linspace(0.1, 0.9, 9))
    found = bootstrap(Task.MORTALITY, labels, risks, np.arange(10), metrics=["auroc"], num_resamples=2000, seed=0)
    assert found["auroc"].num_undefined / 2000 == pytest.approx(0.9**10, abs=0.04)
    assert found["auroc"].low is not None
    alive = bootstrap(Task.MORTALITY, labels * 0, risks, np.arange(10), metrics=["auroc"], seed=0)["auroc"]
    assert alive.low is None
    assert alive.high is None
    assert alive.reason == "1000 of 1000 resamples leave the metric undefined"


@pytest.mark.parametrize("num_samples", [0, 3])
def test_fewer_than_two_patients_have_no_interval(num_samples: int) -> None:
    labels, probabilities = draw(Task.LENGTH_OF_STAY, num_samples, seed=0)
    patients = np.full(num_samples, 7)
    found = bootstrap(Task.LENGTH_OF_STAY, labels, probabilities, patients, metrics=["accuracy"], seed=0)["accuracy"]
    assert found.low is None
    assert "two patients" in str(found.reason)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["auc"]}, "no metric auc"),
        ({"num_resamples": 0}, "at least one resample"),
        ({"level": 95.0}, "between 0 and 1"),
    ],
)
def test_bootstrap_settings_that_make_no_sense(change: dict, words: str) -> None:
    labels, probabilities = draw(Task.MORTALITY, 10, seed=0)
    with pytest.raises(ValueError, match=words):
        bootstrap(Task.MORTALITY, labels, probabilities, np.arange(10), **{"metrics": ["auroc"], "seed": 0, **change})
