"""Training with all patients in one place: the centralized model, or one site's own model, to compare with."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from client.dataset import SampleSet, require_every_split, require_trainable
from client.features import inputs_of
from client.predictions import write_predictions
from client.records import SiteRecords, SiteSpec
from client.site import score_splits, split_result, to_predictions
from client.training import choose_device, class_weights, make_optimizer, place, train_epoch
from dipro_model import ClassWeights, DiPro
from dipro_model.vocabulary import SPLITS
from federation.initial import initial_model
from federation.results import SplitResult
from federation.run_folder import POOLED, RunRecord
from federation.run_writer import RunWriter
from federation.settings import RunSettings

OnEpoch = Callable[[int, SplitResult, SplitResult], None]
"""Told after every epoch: its number from 1, the training losses, the validation result."""


def train(
    specs: Sequence[SiteSpec],
    settings: RunSettings,
    folder: Path,
    *,
    only: str | None = None,
    name: str | None = None,
    device: str = "auto",
    on_epoch: OnEpoch = lambda epoch, trained, validated: None,
) -> RunRecord:
    """Train on the patients of all sites, or of the site `only`, score every site and leave a run folder.

    Training stops after `training.epochs`, or once the validation monitor has not gained for `training.patience`
    epochs; the model of the best epoch is kept and scored, the last one where the monitor is never defined.

    Raises DataError where a site lacks a split or training has one class, ValueError where `only` names no site.
    """
    names = [spec.name for spec in specs]
    if only is not None and only not in names:
        raise ValueError(f"--only {only}: expected one of the sites {', '.join(names)}")
    sites = [SiteRecords(spec, crop_pixels=settings.model.crop_pixels) for spec in specs]
    require_every_split(sites, settings.task, SPLITS)
    trained = [site for site in sites if only in (None, site.name)]
    require_trainable(SampleSet(trained, settings.task, "train"))
    where = choose_device(device)
    model = place(initial_model(settings), where, settings)
    samples = SampleSet(trained, settings.task, "train", inputs_of(trained, model, settings))
    writer = RunWriter(
        folder,
        settings,
        kind="local" if only else "centralized",
        name=name or (f"{only} alone" if only else "centralized"),
        step_unit="epoch",
        sites=names,
        trained_on=list(samples.sites),
    )
    try:
        weights = class_weights(samples, settings).to(where)
        _train(model, samples, weights, settings, writer, label=only or POOLED, on_epoch=on_epoch)
        writer.finish(_score(writer, sites, weights, where))
    except BaseException as error:
        writer.fail(error)
        raise
    return writer.record


def _train(
    model: DiPro,
    samples: SampleSet,
    weights: ClassWeights,
    settings: RunSettings,
    writer: RunWriter,
    *,
    label: str,
    on_epoch: OnEpoch,
) -> None:
    optimizer, num_epochs = make_optimizer(model, settings), settings.training.epochs
    for epoch in range(num_epochs):
        start, step = time.monotonic(), epoch + 1
        losses = train_epoch(model, samples, optimizer, settings, weights, epoch=epoch, num_epochs=num_epochs)
        trained = SplitResult(num_samples=len(samples), losses=losses, metrics={})
        validated = split_result(*score_splits(model, list(samples.sites.values()), settings, weights, ["val"])[0])
        seconds = time.monotonic() - start
        measurements = [
            part.measured(step=step, site=label, split=split, seconds=seconds)
            for split, part in (("train", trained), ("val", validated))
        ]
        writer.keep(step, model, measurements, validated.metrics[writer.record.monitor])
        on_epoch(step, trained, validated)
        if writer.steps_without_gain(step) >= settings.training.patience:
            break


def _score(
    writer: RunWriter, sites: Sequence[SiteRecords], weights: ClassWeights, device: torch.device
) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
    """Metrics of the chosen model by site and split; the predictions go to the run's folder."""
    model, _ = writer.chosen_model()
    place(model, device, writer.settings)
    results = {}
    for site in sites:
        scored = score_splits(model, [site], writer.settings, weights)
        write_predictions(writer.folder, site.name, to_predictions(scored))
        results[site.name] = {samples.split: split_result(samples, scores).metrics for samples, scores in scored}
    return results
