"""Curves against scikit-learn's, and against the metrics that they are the pictures of."""

from collections.abc import Callable

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk

from dipro_model.curves import PREDICTED_CLASS, precision_recall_curve, reliability_curve, roc_curve
from dipro_model.metrics import output_shape, score
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task

TASKS = list(Task)


def draw(task: Task, num_samples: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities in eighths, so that ties happen."""
    generator = np.random.default_rng(seed)
    num_outputs, num_classes = output_shape(task)
    shares = generator.multinomial(8, np.full(max(2, num_classes), 1 / max(2, num_classes)), (num_samples, num_outputs))
    probabilities = shares[:, :, :num_classes] / 8
    if task is Task.DISEASE_PROGRESSION:
        return generator.integers(0, NOT_MENTIONED + 1, (num_samples, num_outputs)), probabilities
    return generator.integers(0, max(2, num_classes), num_samples), probabilities


def one_class(
    task: Task, labels: np.ndarray, probabilities: np.ndarray, output: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the labelled samples are of a class, and its probability, picked by hand."""
    c = TASK_CLASSES[task].index(name)
    if task is Task.MORTALITY:
        return labels == 1, probabilities[:, 0, 0]
    if task is Task.LENGTH_OF_STAY:
        return labels == c, probabilities[:, 0, c]
    k = DISEASES.index(output)
    known = labels[:, k] != 3
    return labels[known, k] == c, probabilities[known, k, c]


@pytest.mark.parametrize("task", TASKS)
def test_outputs_and_classes_are_named(task: Task) -> None:
    labels, probabilities = draw(task)
    outputs = list(DISEASES) if task is Task.DISEASE_PROGRESSION else [task.value]
    classes = ["died"] if task is Task.MORTALITY else list(TASK_CLASSES[task])
    for function in (roc_curve, precision_recall_curve):
        found = {output: list(each) for output, each in function(task, labels, probabilities).items()}
        assert found == dict.fromkeys(outputs, classes)
    top = [] if task is Task.MORTALITY else [PREDICTED_CLASS]
    found = {output: list(each) for output, each in reliability_curve(task, labels, probabilities).items()}
    assert found == {output: [*top, *classes] for output in outputs}


@pytest.mark.parametrize("task", TASKS)
def test_roc_equals_scikit_learn_and_its_area_the_metric(task: Task) -> None:
    labels, probabilities = draw(task)
    metrics = score(task, labels, probabilities)
    for output, classes in roc_curve(task, labels, probabilities).items():
        for name, curve in classes.items():
            positive, scores = one_class(task, labels, probabilities, output, name)
            false, true, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
            assert curve.x == pytest.approx(false)
            assert curve.y == pytest.approx(true)
            assert (curve.num_positive, curve.num_samples) == (positive.sum(), len(positive))
            assert curve.reason is None
        area = np.mean([sk.auc(curve.x, curve.y) for curve in classes.values()])
        assert area == pytest.approx(metrics[f"auroc/{output}" if output in DISEASES else "auroc"].value)


@pytest.mark.parametrize("task", TASKS)
def test_precision_recall_equals_scikit_learn_and_its_area_the_metric(task: Task) -> None:
    labels, probabilities = draw(task)
    metrics = score(task, labels, probabilities)
    for output, classes in precision_recall_curve(task, labels, probabilities).items():
        for name, curve in classes.items():
            precision, recall, _ = sk.precision_recall_curve(
                *one_class(task, labels, probabilities, output, name), drop_intermediate=False
            )
            assert curve.x == pytest.approx(recall[::-1])
            assert curve.y == pytest.approx(precision[::-1])
        if task is Task.MORTALITY:
            areas = [(np.diff(curve.x) * curve.y[1:]).sum() for curve in classes.values()]
        else:
            areas = [sk.auc(curve.x, curve.y) for curve in classes.values()]
        assert np.mean(areas) == pytest.approx(metrics[f"auprc/{output}" if output in DISEASES else "auprc"].value)


@pytest.mark.parametrize("task", TASKS)
def test_reliability_equals_scikit_learn_and_its_gaps_the_calibration_error(task: Task) -> None:
    labels, probabilities = draw(task)
    metrics = score(task, labels, probabilities)
    for output, classes in reliability_curve(task, labels, probabilities).items():
        for name in classes.keys() - {PREDICTED_CLASS}:
            positive, scores = one_class(task, labels, probabilities, output, name)
            observed, predicted = sklearn.calibration.calibration_curve(positive, scores, n_bins=10)
            assert classes[name].predicted == pytest.approx(predicted)
            assert classes[name].observed == pytest.approx(observed)
            assert classes[name].count.sum() == len(positive)
        summed_up = classes["died" if task is Task.MORTALITY else PREDICTED_CLASS]
        gaps = np.abs(summed_up.predicted - summed_up.observed)
        ece = metrics[f"ece/{output}" if output in DISEASES else "ece"].value
        assert (summed_up.count * gaps).sum() / summed_up.count.sum() == pytest.approx(ece, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("function", [roc_curve, precision_recall_curve, reliability_curve])
def test_no_sample_has_no_points_and_a_reason(task: Task, function: Callable) -> None:
    labels, probabilities = draw(task)
    for classes in function(task, labels[:0], probabilities[:0]).values():
        for curve in classes.values():
            assert curve.reason == "no sample has a label"
            assert len(curve.predicted if function is reliability_curve else curve.x) == 0


@pytest.mark.parametrize("function", [roc_curve, precision_recall_curve])
def test_one_class_has_no_points_and_a_reason(function: Callable) -> None:
    labels, probabilities = draw(Task.MORTALITY)
    alive = function(Task.MORTALITY, labels * 0, probabilities)["mortality"]["died"]
    dead = function(Task.MORTALITY, labels * 0 + 1, probabilities)["mortality"]["died"]
    assert (alive.reason, len(alive.x), alive.num_positive) == ("no sample is of the class “died”", 0, 0)
    assert (dead.reason, len(dead.y), dead.num_positive) == ("every sample is of the class “died”", 0, 60)


def test_an_absent_class_leaves_the_others() -> None:
    labels, probabilities = draw(Task.LENGTH_OF_STAY)
    classes = roc_curve(Task.LENGTH_OF_STAY, np.where(labels == 3, 2, labels), probabilities)["length_of_stay"]
    reasons = [curve.reason for curve in classes.values()]
    assert reasons == [None, None, None, "no sample is of the class “6 days and more”"]


def test_one_class_still_has_a_reliability_curve() -> None:
    labels, probabilities = draw(Task.MORTALITY)
    curve = reliability_curve(Task.MORTALITY, labels * 0, probabilities)["mortality"]["died"]
    assert curve.reason is None
    assert (curve.observed == 0).all()


@pytest.mark.parametrize("function", [roc_curve, precision_recall_curve, reliability_curve])
def test_what_score_refuses_is_refused(function: Callable) -> None:
    labels, probabilities = draw(Task.MORTALITY)
    with pytest.raises(ValueError, match="diverged"):
        function(Task.MORTALITY, labels, np.full_like(probabilities, np.nan))
