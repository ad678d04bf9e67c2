"""DiPro alone: the model, its losses and metrics; no Flower, no files, no tables."""

from dipro_model.batch import Batch, Stay, collate
from dipro_model.config import BackboneConfig, DiProConfig, LossWeights
from dipro_model.losses import ClassWeights, class_weights_from_counts, objective
from dipro_model.output import Output

__all__ = [
    "BackboneConfig",
    "Batch",
    "ClassWeights",
    "DiProConfig",
    "LossWeights",
    "Output",
    "Stay",
    "class_weights_from_counts",
    "collate",
    "objective",
]
