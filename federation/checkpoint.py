"""Checkpoints: written whole or not at all, sealed by a checksum, loaded without running code, refused where wrong.

A checkpoint is a file of `torch.save` with one more line at its end, its seal: the version and the SHA-256 of all bytes
before it. The seal is compared before anything is unpickled. docs/checkpoints.md describes the content.
"""

import hashlib
import io
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipro_model import DiPro, DiProConfig
from dipro_model.backbone import list_problems, shapes_of, state_dict_problems
from dipro_model.vocabulary import Task
from federation.differences import differences
from federation.files import write_whole
from federation.settings import RunSettings

CHECKPOINT_VERSION = 2
_SEAL = "\ndipro-fed checkpoint {version} sha256 {digest}\n"
_SEAL_PATTERN = re.compile(rb"\ndipro-fed checkpoint (\d{1,9}) sha256 ([0-9a-f]{64})\n\Z")
_LONGEST_SEAL = 120


class CheckpointError(ValueError):
    """A file that is no checkpoint for this purpose; says which file, what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run needs to go on, beside the model."""

    best_step: int | None
    """Step with the highest validation monitor so far; None while it was never defined."""
    best_monitor: float | None
    """The monitor of that step."""
    num_measurements: int
    """Lines of the history that belong to the finished steps."""
    within_step: bool
    """Whether the model is on its way through the step after the last finished one."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Plain values and tensors of whoever trains: the optimizer's state and the position in the step that is next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds, as its seal warrants."""

    path: Path
    config: DiProConfig
    settings: Mapping[str, Any]
    """Every setting of its run, as in run.json."""
    step: int
    """Finished steps of the run, epochs or rounds."""
    state_dict: Mapping[str, Tensor]
    progress: Progress | None
    """None in a model that is kept, not trained on."""
    agreement: str | None = None
    """What the values that it reads mean, an `Agreement` as JSON; None where it reads each cohort's own z-scores."""

    def model(self) -> DiPro:
        """The model, on the CPU. Raises CheckpointError where tensors are missing, unknown or misshapen."""
        model = DiPro(self.config)
        problems = state_dict_problems(self.state_dict, shapes_of(model))
        if problems:
            raise CheckpointError(
                f"{self.path}: {len(problems)} tensors do not fit the checkpoint's own configuration: "
                f"{list_problems(problems)}; use another one"
            )
        model.load_state_dict(self.state_dict)
        return model


def save_checkpoint(
    path: Path,
    model: DiPro,
    *,
    step: int,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
    agreement: str | None = None,
) -> None:
    """Write a checkpoint; a crash at any moment leaves the file that was there before.

    It is put together in memory first, so that its size and checksum are known before the first byte is written; with
    AdamW's state that takes six times the model's size for a moment. Raises StorageError where the disk is full.
    """
    content = checkpoint_content(model, step=step, settings=settings, progress=progress, agreement=agreement)
    write_checkpoint(path, content)


def checkpoint_content(
    model: DiPro,
    *,
    step: int,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
    agreement: str | None = None,
) -> Mapping[str, Any]:
    """What a checkpoint of the model as it is now holds; what becomes of the model afterwards does not change it."""
    return _canonical(
        {
            "config": model.config.to_dict(),
            "settings": settings,
            "step": step,
            "state_dict": model.state_dict(),
            "progress": None
            if progress is None
            else {each.name: getattr(progress, each.name) for each in fields(progress)},
            "agreement": agreement,
        }
    )


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `checkpoint_content` gave, as `save_checkpoint` does."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(_SEAL.format(version=CHECKPOINT_VERSION, digest=digest).encode())
    write_whole(path, buffer.getbuffer())


def _canonical(value: Any) -> Any:
    """The same content in one form, so that equal checkpoints are equal files, however their runs came so far.

    Tensors are copied to the CPU in the usual memory order; equal texts become one, which a pickle writes once.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_canonical(each) for each in value)
    return sys.intern(value) if type(value) is str else value


def load_checkpoint(path: Path | str, *, task: Task | None = None) -> tuple[DiPro, int]:
    """The model of a checkpoint and the step it was saved at.

    Raises CheckpointError where the file is missing, damaged, of another version or of another task.
    """
    checkpoint = read_checkpoint(path)
    if task is not None and checkpoint.config.task != task:
        raise CheckpointError(
            f"{path}: expected a checkpoint for {task}, found one for {checkpoint.config.task}; "
            "choose the run of the right task"
        )
    return checkpoint.model(), checkpoint.step


def is_sealed(path: Path) -> bool:
    """Whether a file ends like a checkpoint of dipro-fed, of whatever version; what lies before is not looked at."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - _LONGEST_SEAL))
        return _SEAL_PATTERN.search(file.read()) is not None


def read_checkpoint(path: Path | str, *, settings: RunSettings | None = None) -> Checkpoint:
    """Everything in a checkpoint.

    Raises CheckpointError where the file is missing, damaged, of another version, or not of a run with these
    `settings` and the network that they describe now.
    """
    path = Path(path)
    content = _unpickled(_unsealed(path), path)
    missing = {"config", "settings", "step", "state_dict", "progress"} - set(content)
    if missing:
        raise CheckpointError(f"{path}: expected {', '.join(sorted(missing))} in the checkpoint, found none")
    try:
        config = DiProConfig.from_dict(content["config"])
    except ValueError as error:
        raise CheckpointError(f"{path}: its configuration is not one of this version's: {error}") from None
    if settings is not None:
        _require_same(path, "settings", settings.model_dump(mode="json"), content["settings"])
        _require_same(path, "network", settings.config().to_dict(), config.to_dict())
    return Checkpoint(
        path=path,
        config=config,
        settings=content["settings"],
        step=content["step"],
        state_dict=content["state_dict"],
        progress=None if content["progress"] is None else Progress(**content["progress"]),
        agreement=content.get("agreement"),
    )


def _require_same(path: Path, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    different = differences(expected, found)
    if different:
        raise CheckpointError(
            f"{path}: the checkpoint is of another run, its {what} differ: {'; '.join(different)}; "
            "give the settings of its own run, or choose another checkpoint"
        )


def _unsealed(path: Path) -> bytes:
    """The bytes of a whole checkpoint of this version, before anything in them is interpreted."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a finished run keeps best.pt and last.pt in checkpoints/")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read ({error.strerror}); use another one") from None
    seal = _SEAL_PATTERN.search(data, max(0, len(data) - _LONGEST_SEAL))
    if seal is None:
        raise CheckpointError(
            f"{path}: expected a checkpoint of version {CHECKPOINT_VERSION} with its checksum at the end, found "
            f"{len(data):,} bytes without one: cut off, of version 1 or of another program; use another one"
        )
    if int(seal[1]) != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {CHECKPOINT_VERSION}, found {int(seal[1])}; "
            "use the version of dipro-fed that wrote it, or train again"
        )
    digest = hashlib.sha256(memoryview(data)[: seal.start()]).hexdigest()
    if digest != seal[2].decode():
        raise CheckpointError(
            f"{path}: damaged: expected content with the SHA-256 {seal[2].decode()[:12]}…, found {digest[:12]}…; "
            "restore the file from a copy, or use another one"
        )
    return data


def _unpickled(data: bytes, path: Path) -> dict[str, Any]:
    try:
        # The seal behind the archive does not disturb its reader.
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: no checkpoint of dipro-fed ({type(error).__name__}); use another one") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a checkpoint, found {type(content).__name__}; use another one")
    return content
