"""Predictions of a sweep's runs in one order, whatever their sites are called, and their metrics in resamples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.predictions import Predictions, read_predictions
from dipro_model.metric_values import metric_values
from dipro_model.metrics import resamples
from simulation.sweep.cells import Cell


def read_in_order(cell: Cell, run: Path) -> Predictions:
    """All predictions of a run, sorted by cohort and sample; `site` names the sample's cohort.

    A centralized run scores whole cohorts and a federated one parts of them, but a sample of a cohort is the same one.
    """
    predictions = read_predictions(run, cell.settings.task, list(cell.data))
    cohort_of = {spec.name: str(spec.cohort) for spec in cell.specs}
    cohorts = np.array([cohort_of[site] for site in predictions.site], dtype=object)
    named = replace(predictions, site=cohorts)
    return named.select(np.lexsort((named.sample_id.astype(str), cohorts.astype(str))))


def sample_keys(predictions: Predictions) -> list[tuple[Any, ...]]:
    """What must be the same in all runs that are compared: cohort, sample, split, patient and labels."""
    columns = (predictions.site, predictions.sample_id, predictions.split, predictions.subject_id)
    labels = [each.tobytes() for each in predictions.labels]
    return list(zip(*(column.tolist() for column in columns), labels, strict=True))


def resampled(
    predictions: Predictions, names: Sequence[str], *, num_resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Each named metric in every resample of patients, [resample], NaN if undefined; the draws depend on them alone."""
    blocks = [
        metric_values(predictions.task, predictions.labels, predictions.probabilities, weights, names)
        for weights in resamples(predictions.patients, num_resamples=num_resamples, seed=seed)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}
