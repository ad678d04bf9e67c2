"""Training with all patients in one place: the centralized model, or one site's own model, to compare with."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from client.cohort import REPORT, open_cohort
from client.dataset import SampleSet, require_every_split, require_trainable
from client.features import inputs_of
from client.gaps import NO_GAPS
from client.normalisation import agreed_records
from client.predictions import write_predictions
from client.records import SiteRecords, SiteSpec
from client.site import score_splits, split_result, to_predictions
from client.statistics import site_statistics
from client.training import Position, choose_device, make_optimizer, place, train_epoch
from dipro_model import ClassWeights, DiPro
from dipro_model.vocabulary import SPLITS, Task
from federation.agreement import Agreement, agree
from federation.checkpoint import Checkpoint
from federation.initial import initial_model
from federation.results import SplitResult
from federation.resume import EarlierRun, find_earlier
from federation.run_folder import POOLED, RunError, RunRecord
from federation.run_writer import RunWriter, new_record
from federation.settings import RunSettings, SettingsError

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
    if settings.training.batch_norm == "received":
        raise SettingsError(
            "training.batch_norm: received is for the sites of a federation, found without one; use train"
        )
    if settings.patient_privacy.enabled:
        raise SettingsError(
            "patient_privacy.enabled: expected false for training on all patients in one place, found true; a "
            "simulation of one site trains privately"
        )
    where = choose_device(device)
    asked = new_record(
        settings,
        kind="local" if only else "centralized",
        name=name or (f"{only} alone" if only else "centralized"),
        step_unit="epoch",
        sites=names,
        trained_on=[only] if only else names,
        cohorts={spec.name: data_digest(spec) for spec in specs},
        machine=_machine(where),
    )
    earlier = find_earlier(folder, asked, settings)
    if earlier is not None and earlier.is_finished:
        if not keep_finished:
            raise RunError(f"{folder}: this run is finished; choose another --out to train again")
        tell(f"{folder}: finished before, kept as it is")
        return earlier.record
    own = [SiteRecords(spec, crop_pixels=settings.model.crop_pixels) for spec in specs]
    require_every_split(own, settings.task, SPLITS)
    agreement = _agreement([site for site in own if only in (None, site.name)], settings.task)
    sites = [agreed_records(site, agreement, guest=site.name not in agreement.sources) for site in own]
    trained = [site for site in sites if site.name in agreement.sources]
    require_trainable(SampleSet(trained, settings.task, "train"))
    if earlier is not None:
        tell(_whence(folder, earlier))
    learner = _begin(settings, where, earlier.checkpoint if earlier else None)
    samples = SampleSet(trained, settings.task, "train", inputs_of(trained, learner.model, settings))
    writer = RunWriter(folder, asked, earlier, agreement=agreement.to_json())
    del earlier  # its checkpoint is as large as the model and the optimizer's state together
    try:
        weights = agreement.class_weights(settings.training.class_weights).to(where)
        _train(learner, samples, weights, settings, writer, label=only or POOLED, on_epoch=on_epoch)
        writer.finish(_score(writer, sites, weights, settings, where))
    except BaseException as error:
        writer.fail(error)
        raise
    return writer.record


def _agreement(trained: Sequence[SiteRecords], task: Task) -> Agreement:
    """What the sites that are trained on would agree on, every patient counted: they are in one place here."""
    return agree([site_statistics(site, task, minimum_cell=1) for site in trained])


def data_digest(spec: SiteSpec) -> str:
    """SHA-256 over which data a site has: the checksums in its cohort's manifest, its windows, patients and gaps."""
    manifest = open_cohort(spec.cohort, verify_regions=False).manifest
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != REPORT}
    facts = {"files": files, "windows": manifest["windows"], "subjects": spec.subjects}
    if spec.gaps != NO_GAPS:  # a site that lacks nothing keeps the digest that it had before there were gaps
        facts["gaps"] = asdict(spec.gaps)
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
    place = f"in epoch {epochs + 1}, after step {position['num_steps']}" if position else f"after epoch {epochs}"
    return f"{folder}: an unfinished run goes on {place}"


@dataclass(kw_only=True)
class _Learner:
    """A model in training, and where it stands."""

    model: DiPro
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Finished epochs."""
    position: Position | None = None
    """Where in the next epoch; None at its beginning."""

    def state(self, position: Position | None = None) -> dict[str, Any]:
        """What a checkpoint needs beside the model, in plain values and tensors."""
        return {"optimizer": self.optimizer.state_dict(), "position": position and asdict(position)}


def _begin(settings: RunSettings, device: torch.device, checkpoint: Checkpoint | None) -> _Learner:
    """A fresh model with its optimizer, or those of a checkpoint, on the device."""
    model = place(checkpoint.model() if checkpoint else initial_model(settings), device, settings)
    optimizer = make_optimizer(model, settings)
    if checkpoint is None or checkpoint.progress is None:
        return _Learner(model=model, optimizer=optimizer)
    state = checkpoint.progress.training
    optimizer.load_state_dict(state["optimizer"])
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # Fused optimizers go through parameter and state in the order of memory, which must be the same.
                values[name] = torch.empty_like(parameter).copy_(value)
    position = Position(**state["position"]) if state["position"] else None
    return _Learner(model=model, optimizer=optimizer, epoch=checkpoint.step, position=position)


def _train(
    learner: _Learner,
    samples: SampleSet,
    weights: ClassWeights,
    settings: RunSettings,
    writer: RunWriter,
    *,
    label: str,
    on_epoch: OnEpoch,
) -> None:
    """All epochs that are left."""
    model, num_epochs, patience = learner.model, settings.training.epochs, settings.training.patience
    while learner.epoch < num_epochs and writer.steps_without_gain(learner.epoch) < patience:
        start, step = time.monotonic(), learner.epoch + 1
        losses = train_epoch(
            model,
            samples,
            learner.optimizer,
            settings,
            weights,
            epoch=learner.epoch,
            num_epochs=num_epochs,
            start=learner.position,
            after_step=_Saver(writer, learner, settings.training.checkpoint_minutes),
        )
        trained = SplitResult(num_samples=len(samples), losses=losses, metrics={})
        validated = split_result(*score_splits(model, list(samples.sites.values()), settings, weights, ["val"])[0])
        seconds = time.monotonic() - start
        measurements = [
            part.measured(step=step, site=label, split=split, seconds=seconds)
            for split, part in (("train", trained), ("val", validated))
        ]
        writer.keep(step, model, measurements, validated.metrics[writer.record.monitor], learner.state())
        learner.epoch, learner.position = step, None
        on_epoch(step, trained, validated)


class _Saver:
    """Told after every optimizer step; leaves a checkpoint once some minutes have passed since the last one."""

    def __init__(self, writer: RunWriter, learner: _Learner, minutes: float) -> None:
        self.writer, self.learner = writer, learner
        self.seconds, self.saved = 60 * minutes, time.monotonic()

    def __call__(self, position: Position) -> None:
        if time.monotonic() - self.saved < self.seconds:
            return
        self.writer.keep_unfinished(self.learner.epoch, self.learner.model, self.learner.state(position))
        self.saved = time.monotonic()


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
