"""The pictures of finished runs: each one's training and scores, and where all of them look."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from client.pictures.attention import draw_attention
from client.pictures.scores import draw_scores
from client.pictures.training import draw_training
from client.predictions import Predictions, has_predictions
from dipro_model.vocabulary import Task
from federation.run_folder import RunError, RunRecord, read_history
from simulation.runs import Run, load_runs, read_finished

TASK_WORDS = {
    Task.DISEASE_PROGRESSION: "disease progression",
    Task.MORTALITY: "death in hospital",
    Task.LENGTH_OF_STAY: "length of stay",
}


def draw_runs(
    folders: Sequence[Path], out: Path, *, split: str, tell: Callable[[str], None] = lambda words: None
) -> list[Path]:
    """Draw every run's training and its scores on a split, and the attention of all; the files that were written.

    Of a run whose scores of single patients stayed at its sites the training alone, of which `tell` is told. Runs may
    be of different tasks and cohorts. Raises RunError where a run has no scores of the split.
    """
    records = [read_finished(folder) for folder in folders]
    labels = _labels(records, folders)
    written, scored = [], dict[str, Run]()
    for label, record, folder in zip(labels, records, folders, strict=True):
        if history := read_history(folder):
            written.append(draw_training(record, history, out / f"{_file_name(label)}-training.png"))
        if record.kind == "federated" and not has_predictions(folder):
            tell(f"{folder}: the scores of single patients are at the sites; drawn is the training alone")
            continue
        (run,) = load_runs([folder])
        scored[label] = run
        written.append(draw_scores(_of_split(run, split), out / f"{_file_name(label)}-scores.png", title=_title(run)))
    return written + _draw_attention(scored, out, split)


def draw_run(run: Run, out: Path, *, split: str) -> list[Path]:
    """Draw one run's scores on a split, and where it looks; the files that were written."""
    written = [draw_scores(_of_split(run, split), out / "scores.png", title=_title(run))]
    return written + _draw_attention({run.label: run}, out, split)


def _draw_attention(runs: dict[str, Run], out: Path, split: str) -> list[Path]:
    """One line for each model that looks at radiographs; no picture where none does."""
    looking = {label: _of_split(run, split) for label, run in runs.items()}
    looking = {label: own for label, own in looking.items() if own.attention.any()}
    if not looking:
        return []
    tasks = {own.task for own in looking.values()}
    title = "Attention to each region" + (f": {TASK_WORDS[tasks.pop()]}" if len(tasks) == 1 else ", by task")
    return [draw_attention(looking, out / "attention.png", title=title)]


def _of_split(run: Run, split: str) -> Predictions:
    own = run.predictions.select(np.array(run.predictions.split == split))
    if not len(own):
        found = ", ".join(dict.fromkeys(run.predictions.split.tolist()))
        raise RunError(
            f"{run.path}: expected scores of the {split} split, found those of {found}; choose it with --split"
        )
    return own


def _title(run: Run) -> str:
    seed = "" if run.record.kind == "evaluated" else f" (seed {run.record.seed})"
    return f"{run.record.name}{seed}: {TASK_WORDS[run.record.task]}"


def _labels(records: Sequence[RunRecord], folders: Sequence[Path]) -> list[str]:
    """The shortest words that tell runs and tasks apart: names, with the task, with the seed, or their folders."""
    forms: tuple[Callable[[RunRecord], str], ...] = (
        lambda record: record.name,
        lambda record: f"{record.name}, {TASK_WORDS[record.task]}",
        lambda record: f"{record.name}, {TASK_WORDS[record.task]}, seed {record.seed}",
    )
    several_tasks = len({record.task for record in records}) > 1
    for form in forms[several_tasks:]:
        labels = [form(record) for record in records]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _file_name(label: str) -> str:
    """The label as a name of a file: no character leads out of the folder."""
    return quote(label.replace(", ", "-").replace(" ", "_"), safe="")
