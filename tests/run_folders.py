"""Made-up run folders for tests of the comparison: patients with a known risk, and models that see it more or less."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.predictions import Predictions, write_predictions
from dipro_model.metrics import MONITOR, output_shape
from dipro_model.vocabulary import NOT_MENTIONED, REGIONS, TASK_CLASSES, Task
from federation.run_folder import Measurement, RunRecord, append_history, write_run

SITES = ("north", "south")


def make_patients(task: Task, sites: Sequence[str] = SITES, num_patients: int = 60, seed: int = 0) -> Predictions:
    """Samples without scores: one or two stays a patient, labels from a hidden risk, all three splits."""
    generator = np.random.default_rng(seed)
    rows = [
        (site, 1000 + patient, stay, split)
        for site in sites
        for patient, split in enumerate(generator.choice(["train", "val", "test"], num_patients, p=[0.3, 0.2, 0.5]))
        for stay in range(generator.integers(1, 3))
    ]
    site, subject, stay, split = (list(column) for column in zip(*rows, strict=True))
    num_samples, (num_outputs, num_classes) = len(rows), output_shape(task)
    shape = (num_samples, 7) if task is Task.DISEASE_PROGRESSION else (num_samples,)
    highest = NOT_MENTIONED if task is Task.DISEASE_PROGRESSION else len(TASK_CLASSES[task]) - 1
    return Predictions(
        task=task,
        site=np.array(site, dtype=object),
        subject_id=np.array(subject, dtype=np.int64),
        stay_id=np.array(subject, dtype=np.int64) * 10 + np.array(stay),
        sample_id=np.array([f"{who}-{which}" for who, which in zip(subject, stay, strict=True)], dtype=object),
        split=np.array(split, dtype=object),
        labels=generator.integers(0, highest + 1, shape).astype(np.int8),
        probabilities=np.zeros((num_samples, num_outputs, num_classes), dtype=np.float32),
        attention=generator.dirichlet(np.arange(1, len(REGIONS) + 1), (num_samples, num_outputs)).astype(np.float32),
    )


def with_scores(patients: Predictions, skill: float, seed: int) -> Predictions:
    """The patients scored by a model that puts `skill` logits on the truth, under noise of sd 1."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=patients.probabilities.shape)
    if patients.task is Task.MORTALITY:
        logits[:, 0, 0] += skill * (2 * patients.labels - 1)
        return replace(patients, probabilities=(1 / (1 + np.exp(-logits))).astype(np.float32))
    num_classes = logits.shape[2]
    truth = patients.labels.reshape(len(patients), -1)
    logits += skill * np.eye(num_classes + 1)[truth][:, :, :num_classes]
    exponentials = np.exp(logits)
    return replace(patients, probabilities=(exponentials / exponentials.sum(axis=2, keepdims=True)).astype(np.float32))


def make_history(task: Task, kind: str, sites: Sequence[str], num_steps: int, seed: int) -> list[Measurement]:
    """Loss that falls and a validation metric that rises, with noise; a federation reports every site too."""
    generator = np.random.default_rng(seed)
    places = ["pooled", *sites] if kind == "federated" else ["pooled"]
    return [
        Measurement(
            step=step,
            site=site,
            split=split,
            loss=float(0.4 + 1.1 * np.exp(-step / 4) + generator.normal(scale=0.03)),
            parts={"task": 0.5 / step, "orthogonal": 0.1},
            metrics={MONITOR[task]: float(0.75 - 0.4 * np.exp(-step / 5) + generator.normal(scale=0.02))},
            num_samples=30,
            seconds=1.0,
        )
        for step in range(1, num_steps + 1)
        for split in ("train", "val")
        for site in places
    ]


def write_fake_run(
    folder: Path,
    predictions: Predictions,
    *,
    kind: str,
    name: str | None = None,
    trained_on: Sequence[str] | None = None,
    settings: dict | None = None,
    seed: int = 23,
    status: str = "finished",
    num_steps: int = 6,
) -> Path:
    """A run folder of these predictions, with a history."""
    sites = tuple(dict.fromkeys(predictions.site.tolist()))
    for site in sites:
        write_predictions(folder, site, predictions.select(predictions.site == site))
    append_history(folder, make_history(predictions.task, kind, sites, num_steps, seed + len(name or kind)))
    record = RunRecord(
        kind=kind,
        name=name or kind,
        task=predictions.task,
        seed=seed,
        step_unit="round" if kind == "federated" else "epoch",
        sites=sites,
        trained_on=tuple(trained_on or sites),
        settings=settings if settings is not None else {"training": {"rate": 1e-4, "batch_size": 4}},
        status=status,
        best_step=num_steps - 1,
        monitor=MONITOR[predictions.task],
        seconds=75.0,
    )
    write_run(folder, record)
    return folder


def write_fake_study(folder: Path, task: Task, sites: Sequence[str] = SITES, num_patients: int = 60) -> list[Path]:
    """Centralized, federated and one local run a site, on the same patients."""
    patients = make_patients(task, sites, num_patients)
    federated = {"training": {"rate": 1e-4, "batch_size": 4, "local_epochs": 2}, "strategy": "fedavg"}
    runs = [
        write_fake_run(folder / "central", with_scores(patients, 1.0, 1), kind="centralized", num_steps=12),
        write_fake_run(folder / "fed", with_scores(patients, 0.9, 2), kind="federated", settings=federated),
    ]
    for number, site in enumerate(sites):
        scores = with_scores(patients, 0.5, 3 + number)
        runs.append(
            write_fake_run(
                folder / f"local-{number}", scores, kind="local", name=f"{site} alone", trained_on=[site], num_steps=9
            )
        )
    return runs
