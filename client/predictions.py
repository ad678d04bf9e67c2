"""A model's scores of a hospital's patients, on disk: RUN/predictions/<site>.parquet, one row a sample.

They hold patients' labels, so they stay where the patients are: at the hospital, or in a simulation that holds all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int8, Int64, Shaped

from dipro_model.metrics import output_shape
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, REGIONS, SPLITS, TASK_CLASSES, Task
from federation.files import write_whole

FOLDER = "predictions"

SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("subject_id", pa.int64()),
        ("stay_id", pa.int64()),
        ("sample_id", pa.string()),
        ("split", pa.string()),
        # One label, or one a disease.
        ("label", pa.list_(pa.int8())),
        # Outputs x classes, a row of classes after the other.
        ("probability", pa.list_(pa.float32())),
        # Outputs x regions, a row of regions after the other.
        ("attention", pa.list_(pa.float32())),
    ]
)
"""Columns of a predictions file; none may be null."""


class PredictionsError(ValueError):
    """A file does not hold the predictions that were asked for; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """One model's scores of samples; row i of every field is sample i."""

    task: Task
    site: Shaped[np.ndarray, " sample"]
    subject_id: Int64[np.ndarray, " sample"]
    """The patient; unique within a site only."""
    stay_id: Int64[np.ndarray, " sample"]
    sample_id: Shaped[np.ndarray, " sample"]
    """Text, unique within a site."""
    split: Shaped[np.ndarray, " sample"]
    labels: Int8[np.ndarray, "sample *output"]
    """[sample], or [sample, 7] for progression."""
    probabilities: Float32[np.ndarray, "sample output class"]
    attention: Float32[np.ndarray, "sample output region"]
    """Weight that each output gives to each region, mean over the pairs; zero for a model without radiographs."""

    def __len__(self) -> int:
        return len(self.site)

    @property
    def patients(self) -> Int64[np.ndarray, " sample"]:
        """A number for each sample's patient; patients of two sites are two patients, whatever their ids."""
        pairs = list(zip(self.site.tolist(), self.subject_id.tolist(), strict=True))
        numbers = {pair: number for number, pair in enumerate(sorted(set(pairs)))}
        return np.array([numbers[pair] for pair in pairs], dtype=np.int64)

    def select(self, rows: np.ndarray) -> Self:
        """The samples at these rows, in this order, or where a boolean mask is true."""
        return self._build({name: getattr(self, name)[rows] for name in _COLUMNS})

    def join(self, others: Sequence[Self]) -> Self:
        """These samples followed by those of the others, which must be of the same task."""
        parts = [self, *others]
        if len({each.task for each in parts}) > 1:
            raise ValueError(f"expected predictions of one task, found {', '.join(each.task for each in parts)}")
        return self._build({name: np.concatenate([getattr(each, name) for each in parts]) for name in _COLUMNS})

    def _build(self, columns: dict[str, np.ndarray]) -> Self:
        return type(self)(task=self.task, **columns)


_COLUMNS = tuple(field.name for field in fields(Predictions) if field.name != "task")


def predictions_path(run: Path, site: str) -> Path:
    """Where a site's predictions lie; characters that could leave the folder are written as %XX."""
    return run / FOLDER / f"{quote(site, safe=' ')}.parquet"


def has_predictions(run: Path) -> bool:
    """Whether a run's folder has scores of single patients; those of a run over the network stay at its sites."""
    return (run / FOLDER).is_dir()


def write_predictions(run: Path, site: str, predictions: Predictions) -> Path:
    """Write the predictions at one site, of all its splits, into the run's folder: the file is whole or not there."""
    path = predictions_path(run, site)
    _check(predictions, site, path)
    content = pa.BufferOutputStream()
    pq.write_table(_to_table(predictions), content)
    write_whole(path, memoryview(content.getvalue()))
    return path


def read_predictions(run: Path, task: Task, sites: Sequence[str]) -> Predictions:
    """Read the predictions of these sites, in this order, from a run's folder.

    Raises PredictionsError naming the file, what was expected, and what to do.
    """
    if not sites:
        raise ValueError("expected at least one site")
    first, *others = [_read_site(predictions_path(run, site), task, site) for site in sites]
    return first.join(others)


def _to_table(own: Predictions) -> pa.Table:
    lists = {
        "label": [row.ravel() for row in own.labels],
        "probability": [row.ravel() for row in own.probabilities],
        "attention": [row.ravel() for row in own.attention],
    }
    columns = {
        name: pa.array(lists[name] if name in lists else getattr(own, name), type=SCHEMA.field(name).type)
        for name in SCHEMA.names
    }
    return pa.table(columns, schema=SCHEMA)


def _read_site(path: Path, task: Task, site: str) -> Predictions:
    if not path.is_file():
        raise PredictionsError(
            f"{path}: expected the predictions at site {site!r}, found no such file; a run over the network leaves "
            "them at its sites. Otherwise it was stopped before it scored this site: run it again"
        )
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise PredictionsError(f"{path}: expected a parquet file, found damage ({error}); run again") from None
    if not table.schema.equals(SCHEMA):
        raise PredictionsError(f"{path}: expected the columns\n{SCHEMA}\nfound\n{table.schema}\nRun again")
    empty = [name for name in SCHEMA.names if table[name].null_count]
    if empty:
        raise PredictionsError(f"{path}: expected a value in every row, found gaps in {', '.join(empty)}; run again")
    num_outputs, num_classes = output_shape(task)
    num_labels = len(DISEASES) if task is Task.DISEASE_PROGRESSION else 1
    labels = _matrix(table, "label", num_labels, task, path)
    text = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("site", "sample_id", "split")}
    own = Predictions(
        task=task,
        subject_id=table["subject_id"].to_numpy(),
        stay_id=table["stay_id"].to_numpy(),
        labels=labels if task is Task.DISEASE_PROGRESSION else labels[:, 0],
        probabilities=_matrix(table, "probability", num_outputs * num_classes, task, path).reshape(
            -1, num_outputs, num_classes
        ),
        attention=_matrix(table, "attention", num_outputs * len(REGIONS), task, path).reshape(
            -1, num_outputs, len(REGIONS)
        ),
        **text,
    )
    _check(own, site, path)
    return own


def _matrix(table: pa.Table, name: str, width: int, task: Task, path: Path) -> np.ndarray:
    """A list column as [sample, width]; every list must have this width."""
    column = table[name].combine_chunks()
    lengths = set(column.value_lengths().to_pylist())
    if lengths - {width} or column.flatten().null_count:
        raise PredictionsError(
            f"{path}: expected {width} values of `{name}` in every row for {task}, without gaps, "
            f"found {sorted(lengths)}; is it the run of another task?"
        )
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _check(own: Predictions, site: str, path: Path) -> None:
    """What no predictions file may hold, whoever wrote it."""
    strangers = sorted(set(own.site) - {site})
    if strangers:
        raise PredictionsError(f"{path}: expected samples of site {site!r} only, found some of {strangers}; run again")
    wrong = sorted(set(own.split) - set(SPLITS))
    if wrong:
        raise PredictionsError(f"{path}: expected the splits {', '.join(SPLITS)}, found {wrong}; run again")
    num_twice = len(own) - len(set(own.sample_id))
    if num_twice:
        raise PredictionsError(f"{path}: expected every sample once, found {num_twice} more rows; run again")
    highest = NOT_MENTIONED if own.task is Task.DISEASE_PROGRESSION else len(TASK_CLASSES[own.task]) - 1
    if ((own.labels < 0) | (own.labels > highest)).any():
        raise PredictionsError(f"{path}: expected labels in 0..{highest} for {own.task}, found others; run again")
    if not ((own.probabilities >= 0) & (own.probabilities <= 1)).all():
        raise PredictionsError(
            f"{path}: expected probabilities in [0, 1], found others (NaN is one of them); "
            "has the training diverged? Lower the learning rate and run again"
        )
    if not ((own.attention >= 0) & (own.attention <= 1)).all():
        raise PredictionsError(f"{path}: expected attention in [0, 1], found others (NaN is one of them); run again")
