"""The model that a run starts from: the same for a settings' seed, centralized or federated."""

import logging

import torch

from dipro_model import DiPro, load_torchvision_weights
from federation.seeds import derive_seed
from federation.settings import RunSettings

logger = logging.getLogger(__name__)


def initial_model(settings: RunSettings) -> DiPro:
    """A fresh model, its ResNet from the weights file that the settings name; a warning says where there is none.

    Raises FileNotFoundError or ValueError where that file is missing or is not a ResNet of the set depth in
    torchvision's format.
    """
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    model = DiPro(settings.config())
    if settings.model.backbone_weights:
        load_torchvision_weights(model.backbone, settings.model.backbone_weights)
    else:
        logger.warning(
            "the ResNet starts from random weights%s; model.backbone_weights names a file in torchvision's format",
            " and stays at them, because it is frozen" if settings.model.freeze_backbone else "",
        )
    return model
