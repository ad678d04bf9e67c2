"""Checkpoints: written whole or not at all, loaded without running code, refused by name where they do not fit."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from dipro_model import DiPro, DiProConfig
from dipro_model.vocabulary import Task

CHECKPOINT_VERSION = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint for this purpose; says which file, what was expected and what came."""


def save_checkpoint(path: Path, model: DiPro, *, step: int, settings: dict[str, Any]) -> None:
    """Write the model with its configuration; a crash while writing leaves the file that was there before."""
    content = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "config": model.config.to_dict(),
        "settings": settings,
        "step": step,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path | str, *, task: Task | None = None) -> tuple[DiPro, int]:
    """The model of a checkpoint and the step it was saved at.

    Raises CheckpointError where the file is missing, damaged, of another version or of another task.
    """
    path = Path(path)
    content = _read(path)
    config = DiProConfig.from_dict(content["config"])
    if task is not None and config.task != task:
        raise CheckpointError(
            f"{path}: expected a checkpoint for {task}, found one for {config.task}; choose the run of the right task"
        )
    model = DiPro(config)
    model.load_state_dict(content["state_dict"], strict=True)
    return model, content["step"]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a finished run keeps best.pt and last.pt in checkpoints/")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged or no checkpoint ({type(error).__name__}); use another one") from None
    version = content.get("checkpoint_version") if isinstance(content, dict) else None
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(f"{path}: expected checkpoint version {CHECKPOINT_VERSION}, found {version!r}")
    return content
