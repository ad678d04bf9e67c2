"""Predictions as a table for people and other programs: one row a sample, a column of its own for each number."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from client.predictions import Predictions
from dipro_model.vocabulary import DISEASES, REGIONS, TASK_CLASSES, Task
from federation.files import write_whole

SUFFIXES = (".parquet", ".csv")
_IDENTITIES = ("site", "subject_id", "stay_id", "sample_id", "split")


def probability_columns(task: Task) -> list[str]:
    """Names of the probabilities, outputs x classes: `probability_died`, or `probability_atelectasis_worsened`, ..."""
    classes = TASK_CLASSES[task][1:] if task is Task.MORTALITY else TASK_CLASSES[task]
    return [_column("probability", output, name) for output in _outputs(task) for name in classes]


def attention_columns(task: Task) -> list[str]:
    """Names of the attention, outputs x regions: `attention_left_lung`, or `attention_atelectasis_left_lung`, ..."""
    return [_column("attention", output, name) for output in _outputs(task) for name in REGIONS]


def prediction_table(predictions: Predictions) -> pa.Table:
    """Site, patient, stay, sample and split; then every probability and attention weight, without the labels."""
    task, num_samples = predictions.task, len(predictions)
    columns = {name: pa.array(getattr(predictions, name)) for name in _IDENTITIES}
    for names, values in (
        (probability_columns(task), predictions.probabilities),
        (attention_columns(task), predictions.attention),
    ):
        columns |= dict(zip(names, map(pa.array, values.reshape(num_samples, -1).T), strict=True))
    return pa.table(columns)


def require_table_path(path: Path) -> Path:
    """A file that the table can go to. Raises ValueError for a name with another ending, or for what is no file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}; choose another --out")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file or none, found a folder; choose another --out")
    return path


def write_prediction_table(predictions: Predictions, path: Path) -> Path:
    """Write the table as Parquet or CSV, as the file's ending says: the file is whole or not there."""
    table, buffer = prediction_table(predictions), io.BytesIO()
    if require_table_path(path).suffix == ".csv":
        csv.write_csv(table, buffer)
    else:
        pq.write_table(table, buffer)
    write_whole(path, buffer.getbuffer())
    return path


def _outputs(task: Task) -> tuple[str | None, ...]:
    return DISEASES if task is Task.DISEASE_PROGRESSION else (None,)


def _column(*words: str | None) -> str:
    return "_".join(word for word in words if word).replace(" ", "_")
