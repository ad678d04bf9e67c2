"""The model that a run starts from: the same for a settings' seed, centralized or federated."""

import logging
from pathlib import Path

import torch

from dipro_model import DiPro, load_torchvision_weights
from dipro_model.backbone import load_resnet
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
    rest = len(own) - len(fitting)
    logger.info("%s: %d of the model's %d tensors start from there, %d as drawn", path, len(fitting), len(own), rest)
    model.load_state_dict({**own, **fitting})


def _load_resnet(model: DiPro, path: Path) -> None:
    if not (path.is_file() and is_sealed(path)):
        load_torchvision_weights(model.backbone, path)
        return
    # What one task has taught the ResNet is a start for another task.
    tensors = read_checkpoint(path).state_dict
    resnet = {name.removeprefix(_RESNET): value for name, value in tensors.items() if name.startswith(_RESNET)}
    load_resnet(model.backbone, resnet, path)
