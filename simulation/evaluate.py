"""A finished model on prepared cohorts: its predictions, or a run folder that `compare` reads beside trainings'."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from client.cohort import sha256_of
from client.dataset import DataError, require_every_split
from client.normalisation import agreed_records
from client.predictions import Predictions, write_predictions
from client.records import SiteRecords, SiteSpec
from client.site import Scored, score_splits, split_result, to_predictions
from client.training import choose_device, place
from dipro_model import ClassWeights
from dipro_model.vocabulary import SPLITS
from federation.run_folder import RunRecord, append_history, write_run
from federation.run_writer import new_record
from federation.trained import Trained
from simulation.train import data_digest


def predict(
    specs: Sequence[SiteSpec], trained: Trained, *, splits: Sequence[str] = SPLITS, device: str = "auto"
) -> Predictions:
    """What the model says of all samples of these splits, site by site and split by split.

    Samples are those that the cohort labels. Raises DataError where no site has any.
    """
    sites = _records(specs, trained)
    scored = [part for parts in _score(sites, trained, splits, device).values() for part in parts]
    if not scored:
        raise DataError(
            f"{', '.join(site.name for site in sites)}: no sample for {trained.settings.task} in the splits "
            f"{', '.join(splits)}; `dipro-fed inspect` shows the counts, report.json what was rejected"
        )
    return to_predictions(scored)


def evaluate(
    specs: Sequence[SiteSpec],
    trained: Trained,
    folder: Path,
    *,
    split: str = "test",
    name: str | None = None,
    device: str = "auto",
) -> RunRecord:
    """Score the model on a split of every site and leave a run folder; nothing is written before all are scored.

    Raises DataError where a site has no sample of the task in the split.
    """
    start, settings = time.monotonic(), trained.settings
    sites = _records(specs, trained)
    require_every_split(sites, settings.task, [split])
    scored = _score(sites, trained, [split], device)
    for site, parts in scored.items():
        write_predictions(folder, site, to_predictions(parts))
    append_history(folder, [])
    record = new_record(
        settings,
        kind="evaluated",
        name=name or trained.name,
        step_unit=trained.run.step_unit if trained.run else "epoch",
        sites=list(scored),
        trained_on=trained.run.trained_on if trained.run else (),
        cohorts={spec.name: data_digest(spec) for spec in specs},
        checkpoint=str(trained.path),
        checkpoint_sha256=sha256_of(trained.path),
        results={
            site: {samples.split: split_result(samples, scores).metrics for samples, scores in parts}
            for site, parts in scored.items()
        },
    )
    record = replace(record, status="finished", best_step=trained.step, seconds=time.monotonic() - start)
    write_run(folder, record)
    return record


def _records(specs: Sequence[SiteSpec], trained: Trained) -> list[SiteRecords]:
    """With the values that the model was trained to read."""
    own = [SiteRecords(spec, crop_pixels=trained.settings.model.crop_pixels) for spec in specs]
    if trained.agreement is None:
        return own
    return [agreed_records(site, trained.agreement, guest=True) for site in own]


def _score(
    sites: Sequence[SiteRecords], trained: Trained, splits: Sequence[str], device: str
) -> dict[str, list[Scored]]:
    """By site; without class weights, which only the losses need: such a cohort need not have training patients."""
    model = place(trained.model, choose_device(device), trained.settings)
    return {site.name: score_splits(model, [site], trained.settings, ClassWeights(), splits) for site in sites}
