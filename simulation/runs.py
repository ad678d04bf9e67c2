"""Finished runs, read for comparison: their record, history and scores, and the proof that they can be compared."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.predictions import Predictions, read_predictions
from dipro_model.vocabulary import SPLITS
from federation.run_folder import Measurement, RunError, RunRecord, read_history, read_run

KIND_ORDER = ("centralized", "federated", "local", "evaluated")
PERSONAL = "personal"
"""The fact in run.json of a federated run that ended with a model of its own at each site."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished run."""

    path: Path
    label: str
    """The run's name, made unique among the runs beside it."""
    record: RunRecord
    history: list[Measurement]
    predictions: Predictions
    """Scores of the chosen model at every site, all splits, or the one evaluated; rows sorted by site and sample."""

    @property
    def is_personal(self) -> bool:
        """Whether the scores at each site are those of the site's own model, which a federation began."""
        return self.record.more.get(PERSONAL, False)

    @property
    def splits(self) -> set[str]:
        """The splits that the model was to be scored on."""
        return set(self.predictions.split) if self.record.kind == "evaluated" else set(SPLITS)


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read finished runs of one task on one set of samples; centralized, federated, local and evaluated, in this order.

    Raises RunError (or PredictionsError) for a folder that is no run, a run that has not finished, and runs that do
    not agree on task, sites, or on samples, patients and labels in the splits that both were scored on: their numbers
    would not be about the same patients.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise RunError("expected at least one run's folder to compare, found none")
    twice = [str(path) for path, times in Counter(each.resolve() for each in folders).items() if times > 1]
    if twice:
        raise RunError(f"expected each run once, found {', '.join(twice)} several times; name every folder once")
    records = {folder: read_finished(folder) for folder in folders}
    _require_one_task(records)
    labels = _unique_labels(records)
    runs = [
        Run(
            path=folder,
            label=labels[folder],
            record=record,
            history=read_history(folder),
            predictions=_in_order(read_predictions(folder, record.task, record.sites)),
        )
        for folder, record in records.items()
    ]
    for other in runs[1:]:
        _require_same_samples(runs[0], other)
    return sorted(runs, key=lambda run: KIND_ORDER.index(run.record.kind))


def read_finished(folder: Path) -> RunRecord:
    """The record of a run that has finished. Raises RunError."""
    record = read_run(folder)
    if record.status != "finished":
        raise RunError(
            f"{folder}: expected a finished run, found one with the status {record.status!r}; "
            "wait until it ends, or run it again"
        )
    if not isinstance(record.more.get(PERSONAL, False), bool):
        raise RunError(f"{folder}: run.json: `{PERSONAL}`: expected true or false; train again")
    return record


def _require_one_task(records: dict[Path, RunRecord]) -> None:
    (first, record), *others = records.items()
    for folder, other in others:
        if other.task is not record.task:
            raise RunError(
                f"{first} and {folder}: expected runs of one task, found {record.task} and {other.task}; "
                "compare the runs of each task by themselves"
            )


def _unique_labels(records: dict[Path, RunRecord]) -> dict[Path, str]:
    """The runs' names; where two runs share one, the seed tells them apart, else the folder."""
    names = [record.name for record in records.values()]
    seeded = [f"{record.name}, seed {record.seed}" for record in records.values()]
    labels = {}
    for (folder, _), name, with_seed in zip(records.items(), names, seeded, strict=True):
        if names.count(name) == 1:
            labels[folder] = name
        else:
            labels[folder] = with_seed if seeded.count(with_seed) == 1 else f"{name} ({folder})"
    return labels


def _in_order(predictions: Predictions) -> Predictions:
    return predictions.select(np.lexsort((predictions.sample_id, predictions.site)))


def _require_same_samples(first: Run, other: Run) -> None:
    differences = _differences(first, other)
    if differences:
        raise RunError(
            f"{first.path} and {other.path}: expected scores of the same samples, but {'; '.join(differences)}. "
            "Compare runs on the same prepared cohorts: run one of the two again on the cohorts of the other"
        )


def _differences(first: Run, other: Run) -> list[str]:
    """What differs between the samples of two runs, in words with counts."""
    shared = first.splits & other.splits
    left, right = _by_sample(first.predictions, shared), _by_sample(other.predictions, shared)
    both = left.keys() & right.keys()
    counts = {
        "samples are only in the first": len(left) - len(both),
        "samples are only in the second": len(right) - len(both),
        **{
            f"samples have another {name}": sum(left[key][position] != right[key][position] for key in both)
            for position, name in enumerate(("split", "patient", "label"))
        },
    }
    words = [f"{count} {words}" for words, count in counts.items() if count]
    if set(first.record.sites) != set(other.record.sites):
        words.append(f"the sites are {', '.join(first.record.sites)} and {', '.join(other.record.sites)}")
    return words


def _by_sample(predictions: Predictions, splits: set[str]) -> dict[tuple[str, str], tuple[str, int, bytes]]:
    predictions = predictions.select(np.isin(predictions.split.astype(str), sorted(splits)))
    keys = zip(predictions.site.tolist(), predictions.sample_id.tolist(), strict=True)
    facts = zip(
        predictions.split.tolist(),
        predictions.subject_id.tolist(),
        (labels.tobytes() for labels in predictions.labels),
        strict=True,
    )
    return dict(zip(keys, facts, strict=True))
