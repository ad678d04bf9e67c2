"""What a model is given of each radiograph: crops, or the features of a frozen image network, computed once."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from client.cohort import FEATURE_FOLDER
from client.dataset import Inputs
from client.feature_cache import FeatureKey, cached
from client.records import SiteRecords, shrink
from dipro_model import DiPro
from dipro_model.backbone import Backbone
from dipro_model.vocabulary import REGIONS
from federation.settings import RunSettings

_PIXELS_AT_ONCE = 2_000_000
"""Pixels that go through the network together, 4 radiographs at 224: below 1 GB for a ResNet-50."""


def inputs_of(sites: Sequence[SiteRecords], model: DiPro, settings: RunSettings) -> Inputs:
    """What the settings let a model see of its samples; features of its own where its image network is frozen.

    Features not yet beside a site's cohort are computed now, with the model as it stands on its device: with a
    ResNet-50 at 224 pixels about a second a radiograph without a GPU.
    """
    looks = settings.parts.radiographs
    frozen = model.config.backbone.freeze
    return Inputs(
        radiographs=looks,
        sequence=settings.parts.sequence,
        features={site.name: _features(site, model) for site in sites} if looks and frozen else {},
    )


def _features(site: SiteRecords, model: DiPro) -> np.ndarray:
    """float32 [image, region, feature] of the site's whole cohort, which other sites may share."""
    backbone = model.backbone
    key = FeatureKey(
        depth=model.config.backbone.depth,
        crop_pixels=site.crop_pixels,
        precision=backbone.execution.precision,
        weights_sha256=weights_sha256(backbone.resnet),
        regions_sha256=site.regions_sha256,
        shape=(len(site.regions), len(REGIONS), model.config.backbone.num_features),
    )
    return cached(site.path / FEATURE_FOLDER, key, lambda: _blocks(site, backbone))


@torch.no_grad()
def _blocks(site: SiteRecords, backbone: Backbone) -> Iterator[np.ndarray]:
    """The features in the order of the cohort's images, as many images at a time as memory bears."""
    device = next(backbone.parameters()).device
    images_at_once = max(1, _PIXELS_AT_ONCE // (len(REGIONS) * site.crop_pixels**2))
    for start in range(0, len(site.regions), images_at_once):
        crops = shrink(site.regions[start : start + images_at_once], site.crop_pixels)
        yield backbone.features(crops.unsqueeze(2).to(device)).cpu().numpy()


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of all floating tensors of a state dict with their names, whatever the device and memory order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().reshape(-1).numpy().data)
    return digest.hexdigest()
