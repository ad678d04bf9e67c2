"""DiPro alone: the model, its losses and metrics; no Flower, no tables."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipro_model.backbone import load_torchvision_weights
    from dipro_model.batch import Batch, Stay, collate
    from dipro_model.checkpoint import load_official_state_dict
    from dipro_model.config import BackboneConfig, DiProConfig, LossWeights, Parts
    from dipro_model.execution import Execution
    from dipro_model.losses import ClassWeights, class_weights_from_counts, objective
    from dipro_model.model import DiPro
    from dipro_model.output import Output

_HOME = {
    "BackboneConfig": "config",
    "Batch": "batch",
    "ClassWeights": "losses",
    "DiPro": "model",
    "DiProConfig": "config",
    "Execution": "execution",
    "LossWeights": "config",
    "Output": "output",
    "Parts": "config",
    "Stay": "batch",
    "class_weights_from_counts": "losses",
    "collate": "batch",
    "load_official_state_dict": "checkpoint",
    "load_torchvision_weights": "backbone",
    "objective": "losses",
}

__all__ = [
    "BackboneConfig",
    "Batch",
    "ClassWeights",
    "DiPro",
    "DiProConfig",
    "Execution",
    "LossWeights",
    "Output",
    "Parts",
    "Stay",
    "class_weights_from_counts",
    "collate",
    "load_official_state_dict",
    "load_torchvision_weights",
    "objective",
]


def __getattr__(name: str) -> Any:
    # The vocabulary is wanted by processes that never touch a tensor; they need not wait for torch and MONAI.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
