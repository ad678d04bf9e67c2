"""Training with all patients in one place: the centralized model, or one site's own model, to compare with."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from client.cohort import MANIFEST, REPORT
from client.dataset import SampleSet, require_every_split, require_trainable
from client.features import inputs_of
from client.predictions import write_predictions
from client.records import SiteRecords, SiteSpec
from client.site import score_splits, split_result, to_predictions
from client.training import Position, choose_device, class_weights, make_optimizer, place, train_epoch
from dipro_model import ClassWeights, DiPro
from dipro_model.vocabulary import SPLITS
from federation.checkpoint import Checkpoint
from federation.initial import initial_model
from federation.results import SplitResult
from federation.resume import EarlierRun, find_earlier
from federation.run_folder import POOLED, RunError, RunRecord
from federation.run_writer import RunWriter, new_record
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
    keep_finished: bool = False,
    on_epoch: OnEpoch = lambda epoch, trained, validated: None,
    tell: Callable[[str], None] = lambda words: None,
) -> RunRecord:
    """Train on the patients of all sites, or of the site `only`, score every site and leave a run folder.

    Training stops after `training.epochs`, or once the validation monitor has not gained for `training.patience`
    epochs; the model of the best epoch is kept and scored, the last one where the monitor is never defined.

    Where the folder holds the same run unfinished, however it ended, training goes on from its last checkpoint, and
    `tell` is told from where. On a CPU, with the same code and number of threads, weights, metrics and history are then
    bit for bit those of a run that was never interrupted. A finished run is refused, or returned with `keep_finished`.

    Raises DataError where a site lacks a split or training has one class, ValueError where `only` names no site,
    RunError where the folder holds another run or something else, CheckpointError where its checkpoint is damaged.
    """
    names = [spec.name for spec in specs]
    if only is not None and only not in names:
        raise ValueError(f"--only {only}: expected one of the sites {', '.join(names)}")
    sites = [SiteRecords(spec, crop_pixels=settings.model.crop_pixels) for spec in specs]
    require_every_split(sites, settings.task, SPLITS)
    trained = [site for site in sites if only in (None, site.name)]
    require_trainable(SampleSet(trained, settings.task, "train"))
    where = choose_device(device)
    asked = new_record(
        settings,
        kind="local" if only else "centralized",
        name=name or (f"{only} alone" if only else "centralized"),
        step_unit="epoch",
        sites=names,
        trained_on=[site.name for site in trained],
        cohorts={spec.name: data_digest(spec) for spec in specs},
        machine=_machine(where),
    )
    earlier = find_earlier(folder, asked, settings)
    if earlier is not None and earlier.is_finished:
        if not keep_finished:
            raise RunError(f"{folder}: this run is finished; choose another --out to train again")
        tell(f"{folder}: finished before, kept as it is")
        return earlier.record
    checkpoint = earlier.checkpoint if earlier else None
    if earlier is not None:
        tell(_whence(folder, earlier))
    model = place(checkpoint.model() if checkpoint else initial_model(settings), where, settings)
    samples = SampleSet(trained, settings.task, "train", inputs_of(trained, model, settings))
    writer = RunWriter(folder, asked, earlier)
    try:
        weights = class_weights(samples, settings).to(where)
        _train(model, samples, weights, settings, writer, checkpoint, label=only or POOLED, on_epoch=on_epoch)
        writer.finish(_score(writer, sites, weights, settings, where))
    except BaseException as error:
        writer.fail(error)
        raise
    return writer.record


def data_digest(spec: SiteSpec) -> str:
    """SHA-256 over which data a site has: the checksums in its cohort's manifest, its windows and its patients."""
    manifest = json.loads((spec.cohort / MANIFEST).read_text())
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != REPORT}
    facts = {"files": files, "windows": manifest["windows"], "subjects": spec.subjects}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _machine(device: torch.device) -> dict[str, Any]:
    """What may change the last bits of a result, beside the code."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _whence(folder: Path, earlier: EarlierRun) -> str:
    """Where an interrupted run goes on, in words."""
    if earlier.checkpoint is None or earlier.checkpoint.progress is None:
        return f"{folder}: a run ended here before its first checkpoint; it starts again"
    epochs, position = earlier.checkpoint.step, earlier.checkpoint.progress.training["position"]
    within = f" and {position['num_steps']} steps of epoch {epochs + 1}" if position else ""
    return f"{folder}: an unfinished run goes on after {epochs} epochs{within}"


def _train(
    model: DiPro,
    samples: SampleSet,
    weights: ClassWeights,
    settings: RunSettings,
    writer: RunWriter,
    checkpoint: Checkpoint | None,
    *,
    label: str,
    on_epoch: OnEpoch,
) -> None:
    """All epochs that are left; the model holds the checkpoint's weights already."""
    optimizer, num_epochs = make_optimizer(model, settings), settings.training.epochs
    epoch, position = _restore(optimizer, checkpoint)
    while epoch < num_epochs and writer.steps_without_gain(epoch) < settings.training.patience:
        start, step = time.monotonic(), epoch + 1
        losses = train_epoch(
            model,
            samples,
            optimizer,
            settings,
            weights,
            epoch=epoch,
            num_epochs=num_epochs,
            start=position,
            after_step=_Saver(writer, epoch, model, optimizer, settings.training.checkpoint_minutes),
        )
        trained = SplitResult(num_samples=len(samples), losses=losses, metrics={})
        validated = split_result(*score_splits(model, list(samples.sites.values()), settings, weights, ["val"])[0])
        seconds = time.monotonic() - start
        measurements = [
            part.measured(step=step, site=label, split=split, seconds=seconds)
            for split, part in (("train", trained), ("val", validated))
        ]
        monitor = validated.metrics[writer.record.monitor]
        writer.keep(step, model, measurements, monitor, _state(optimizer, None))
        on_epoch(step, trained, validated)
        epoch, position = step, None


class _Saver:
    """Told after every optimizer step; leaves a checkpoint once some minutes have passed since the last one."""

    def __init__(
        self, writer: RunWriter, epoch: int, model: DiPro, optimizer: torch.optim.Optimizer, minutes: float
    ) -> None:
        self.writer, self.epoch, self.model, self.optimizer = writer, epoch, model, optimizer
        self.seconds, self.saved = 60 * minutes, time.monotonic()

    def __call__(self, position: Position) -> None:
        if time.monotonic() - self.saved < self.seconds:
            return
        self.writer.keep_unfinished(self.epoch, self.model, _state(self.optimizer, position))
        self.saved = time.monotonic()


def _state(optimizer: torch.optim.Optimizer, position: Position | None) -> dict[str, Any]:
    """What training needs to go on, in plain values and tensors."""
    return {"optimizer": optimizer.state_dict(), "position": position and asdict(position)}


def _restore(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint | None) -> tuple[int, Position | None]:
    """Give the optimizer back its state; the epoch to go on with, counted from 0, and the position in it."""
    if checkpoint is None or checkpoint.progress is None:
        return 0, None
    state = checkpoint.progress.training
    optimizer.load_state_dict(state["optimizer"])
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # Fused optimizers go through parameter and state in the order of memory, which must be the same.
                values[name] = torch.empty_like(parameter).copy_(value)
    return checkpoint.step, Position(**state["position"]) if state["position"] else None


def _score(
    writer: RunWriter,
    sites: Sequence[SiteRecords],
    weights: ClassWeights,
    settings: RunSettings,
    device: torch.device,
) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
    """Metrics of the chosen model by site and split; the predictions go to the run's folder."""
    model, _ = writer.chosen_model()
    place(model, device, settings)
    results = {}
    for site in sites:
        scored = score_splits(model, [site], settings, weights)
        write_predictions(writer.folder, site.name, to_predictions(scored))
        results[site.name] = {samples.split: split_result(samples, scores).metrics for samples, scores in scored}
    return results
