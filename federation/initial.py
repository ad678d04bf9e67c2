"""The model that a run starts from: the same for a settings' seed, centralized or federated."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from dipro_model import DiPro, DiProConfig, load_torchvision_weights
from dipro_model.backbone import load_resnet
from federation.agreement import Agreement
from federation.checkpoint import is_sealed, read_checkpoint
from federation.seeds import derive_seed
from federation.settings import RunSettings

logger = logging.getLogger(__name__)

_RESNET = "backbone.resnet."


def initial_model(settings: RunSettings) -> DiPro:
    """A fresh model, its ResNet from the weights file that the settings name; a warning says where there is none.

    The file is a checkpoint of dipro-fed, of a run of any task, or a state dict in torchvision's format. Raises
    ValueError where it is missing, damaged, or of another depth.
    """
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    model = DiPro(settings.config())
    if settings.model.ehr_bias_std:
        # Behind all other draws, so that the rest starts as it would without.
        model.global_ehr.spread_bias(settings.model.ehr_bias_std)
    if settings.model.start:
        _load_what_fits(model, Path(settings.model.start))
    if settings.model.backbone_weights:
        _load_resnet(model, Path(settings.model.backbone_weights))
    elif settings.parts.radiographs and not settings.model.start:
        logger.warning(
            "the ResNet starts from random weights%s; model.backbone_weights names a file in torchvision's format",
            " and stays at them, because it is frozen" if settings.model.freeze_backbone else "",
        )
    return model


def start_agreement(settings: RunSettings) -> Agreement:
    """What values mean to the model that `model.start` names. Raises ValueError where its file does not say it."""
    path = settings.model.start
    kept = read_checkpoint(Path(path)).agreement
    if kept is None:
        raise ValueError(
            f"{path}: expected a start that says how it reads values (patient_privacy.statistics=start), found one "
            "that read each cohort's own z-scores; `dipro-fed components` makes one that does"
        )
    return Agreement.from_json(kept)


def _load_what_fits(model: DiPro, path: Path) -> None:
    """Raises CheckpointError for a file that is none, ValueError for a model of another width, depth or channels."""
    checkpoint, own = read_checkpoint(path), model.state_dict()
    for name, found, wanted in (
        ("width", checkpoint.config.width, model.config.width),
        ("backbone_depth", checkpoint.config.backbone.depth, model.config.backbone.depth),
        ("backbone_channels", checkpoint.config.backbone.channels, model.config.backbone.channels),
    ):
        if found != wanted:
            raise ValueError(f"{path}: expected a model with model.{name}={wanted}, found one with {found}")
    fitting = {
        name: value for name, value in checkpoint.state_dict.items() if name in own and own[name].shape == value.shape
    }
    if model.config.trained == "readout":
        _require_components(path, checkpoint.config, model.config, [name for name in own if name not in fitting])
    rest = len(own) - len(fitting)
    logger.info("%s: %d of the model's %d tensors start from there, %d as drawn", path, len(fitting), len(own), rest)
    model.load_state_dict({**own, **fitting})


def _require_components(path: Path, start: DiProConfig, wanted: DiProConfig, missing: Sequence[str]) -> None:
    """Raises ValueError where the components of the class tokens are not those of what the run's network computes."""
    differing = [name for name, value in asdict(wanted.parts).items() if value != getattr(start.parts, name)]
    if differing:
        raise ValueError(
            f"{path}: expected a model of the same parts as the run's, found one that differs in "
            f"{', '.join(f'parts.{name}' for name in differing)}; set them as its run did"
        )
    absent = [name for name in missing if not (name.startswith("heads.") and ".linear." in name)]
    if absent:
        raise ValueError(
            f"{path}: expected all of the network but its linear heads, with {wanted.num_components} components of "
            f"{wanted.num_outputs} class tokens (model.trained=readout, model.components), found no fitting "
            f"{absent[0]}; `dipro-fed components` adds components to a model of as many outputs"
        )


def _load_resnet(model: DiPro, path: Path) -> None:
    if not (path.is_file() and is_sealed(path)):
        load_torchvision_weights(model.backbone, path)
        return
    # What one task has taught the ResNet is a start for another task.
    tensors = read_checkpoint(path).state_dict
    resnet = {name.removeprefix(_RESNET): value for name, value in tensors.items() if name.startswith(_RESNET)}
    load_resnet(model.backbone, resnet, path)
