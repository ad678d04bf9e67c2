"""A trained model from wherever it lies: a run's folder, a checkpoint, or a released file of the published code."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipro_model import DiPro, load_official_state_dict
from dipro_model.vocabulary import Task
from federation.agreement import Agreement
from federation.checkpoint import CheckpointError, is_sealed, read_checkpoint
from federation.resume import CHECKPOINTS
from federation.run_folder import RunRecord, read_run
from federation.settings import RunSettings, load_settings

_STATE_DICT = "state_dict"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A model and what must be known to score with it."""

    model: DiPro
    """On the CPU."""
    settings: RunSettings
    """Those it was trained with; the published ones for a released file."""
    path: Path
    """The file that its weights were read from."""
    step: int | None
    """Finished steps of its run; None where the file does not say."""
    run: RunRecord | None
    """The run that it was asked from; None where a file was named."""
    agreement: Agreement | None = None
    """What the values that it reads mean; None where it reads each cohort's own z-scores."""

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.run.name if self.run is not None else self.path.stem


def load_trained(path: Path, task: Task | None = None) -> Trained:
    """The model of a run's folder (the one that the run chose), of a checkpoint, or of a released file.

    `task` is needed for a released file, which does not say its own, and must be that of any other. Nothing but
    tensors and plain values is ever unpickled.

    Raises CheckpointError or RunError naming the file and what differs: no such file, damage, another task, network,
    version or layout.
    """
    if path.is_dir():
        return _of_run(path, task)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint and no such run; check the path")
    return _of_checkpoint(path, task) if is_sealed(path) else _of_released(path, task)


def _of_run(folder: Path, task: Task | None) -> Trained:
    record = read_run(folder)
    if "chosen" not in record.more:
        kept = f", such as {folder / CHECKPOINTS}/last.pt" if (folder / CHECKPOINTS).is_dir() else ""
        raise CheckpointError(
            f"{folder}: expected a run that has chosen its model, found one with the status {record.status!r} that "
            f"has not; name a checkpoint file instead{kept}"
        )
    found = _of_checkpoint(folder / CHECKPOINTS / record.more["chosen"], task)
    return replace(found, run=record)


def _of_checkpoint(path: Path, task: Task | None) -> Trained:
    checkpoint = read_checkpoint(path)
    if task is not None and checkpoint.config.task is not task:
        raise CheckpointError(
            f"{path}: expected a checkpoint for {task}, found one for {checkpoint.config.task}; "
            "leave --task out, or choose the run of that task"
        )
    try:
        settings = RunSettings.model_validate(dict(checkpoint.settings))
    except ValueError as error:
        raise CheckpointError(f"{path}: its settings are not those of this version: {error}") from None
    agreement = Agreement.from_json(checkpoint.agreement) if checkpoint.agreement else None
    return Trained(
        model=checkpoint.model(), settings=settings, path=path, step=checkpoint.step, run=None, agreement=agreement
    )


def _of_released(path: Path, task: Task | None) -> Trained:
    state_dict = _state_dict(path)
    if task is None:
        raise CheckpointError(
            f"{path}: a released checkpoint does not say what it predicts; add --task {', '.join(Task)} (one of them)"
        )
    try:
        model = load_official_state_dict(state_dict, task)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Trained(model=model, settings=load_settings(overrides=[f"task={task}"]), path=path, step=None, run=None)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a released file, whatever plain values lie beside them."""
    content = _unpickled(path)
    if isinstance(content, dict) and {"config", "settings"} <= set(content):
        read_checkpoint(path)  # a checkpoint of dipro-fed that lost its end, or an old one: it says so itself
    tensors = content.get(_STATE_DICT) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        found = (
            f"the keys {', '.join(sorted(map(str, content)))}" if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(
            f"{path}: expected a checkpoint of dipro-fed, or a released one with its tensors under the key "
            f"`{_STATE_DICT}`; found {found:.300}"
        )
    return tensors


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = _objects(path)
        if objects:
            raise CheckpointError(_how_to_resave(path, objects)) from None
        raise CheckpointError(_unreadable(path, error)) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from None


def _objects(path: Path) -> list[str]:
    """The classes that a file would have to construct beside tensors; none where it is no such file at all."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of a damaged file anything may be raised; the first error is the one to tell
        return []


def _how_to_resave(path: Path, objects: list[str]) -> str:
    clean = path.with_name(f"{path.stem}.weights.pt")
    return (
        f"{path}: holds {', '.join(objects[:5])} beside its tensors, and unpickling objects can run anything, so it is "
        "not loaded. If you trust whoever made the file, save its tensors alone, where the packages that it was made "
        "with are installed, and name the new file: "
        f'python -c "import torch; kept = torch.load({str(path)!r}, map_location={"cpu"!r}, weights_only=False); '
        f'torch.save({{{_STATE_DICT!r}: dict(kept[{_STATE_DICT!r}])}}, {str(clean)!r})"'
    )


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path}: damaged, cut off or no checkpoint ({type(error).__name__}): it has neither the checksum that "
        "ends a checkpoint of dipro-fed nor the form of a file of torch.save; use another copy"
    )
