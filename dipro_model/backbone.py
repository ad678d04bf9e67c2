"""From crops of regions to one feature vector each: residual network, pooling, adapter."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dipro_model.config import BackboneConfig
from dipro_model.dropout import Dropout
from dipro_model.execution import Execution
from dipro_model.linear import Linear


class Backbone(nn.Module):
    """Features of region crops; parameters and buffers of `resnet` have torchvision's names."""

    def __init__(self, config: BackboneConfig, *, width: int, dropout: float) -> None:
        super().__init__()
        from dipro_model.resnet import make_resnet

        self.resnet = make_resnet(config)
        self.adapter = nn.Sequential(
            Linear(config.num_features, width), nn.BatchNorm1d(width), nn.ReLU(), Dropout(dropout)
        )
        self.execution = Execution()
        self.freeze = config.freeze
        if self.freeze:
            self.resnet.requires_grad_(False)
            self.resnet.eval()

    def execute(self, execution: Execution) -> None:
        """Compute the residual network in this way from now on."""
        if execution.compile and not self.execution.compile:
            # Batches differ in their number of real frames; one compiled network serves them all.
            self.resnet.compile(dynamic=True)
        self.execution = execution

    def train(self, mode: bool = True) -> "Backbone":
        """Switch between training and evaluation; a frozen residual network stays in evaluation."""
        super().train(mode)
        if self.freeze:
            self.resnet.eval()
        return self

    def forward(self, regions: Shaped[Tensor, "frame region *image"]) -> Float[Tensor, "frame region width"]:
        """Crops as bytes (0..255) or floats in [0, 1], of one gray channel or three; real frames only.

        Where the residual network is frozen its features, [frame, region, feature], may be given instead of crops.
        """
        features = regions if regions.ndim == 3 else self.features(regions)
        return self.adapter(features.flatten(0, 1)).unflatten(0, regions.shape[:2])

    def features(
        self, crops: Shaped[Tensor, "frame region channel high wide"]
    ) -> Float[Tensor, "frame region feature"]:
        """What the residual network says of each crop, before the adapter."""
        from dipro_model.resnet import pooled_features

        images = _to_images(crops.flatten(0, 1), next(self.adapter.parameters()).dtype)
        return pooled_features(self.resnet, images, self.execution).unflatten(0, crops.shape[:2])


def load_torchvision_weights(backbone: Backbone, path: Path | str) -> None:
    """Read ImageNet weights of the residual network from a local file that holds torchvision's state dict.

    The classifier `fc.*` is left out; every other name and shape must fit. Nothing is downloaded; no code in the file
    runs. Raises ValueError naming the file and everything that does not fit.
    """
    weights = {name: value for name, value in _read_state_dict(Path(path)).items() if not name.startswith("fc.")}
    load_resnet(backbone, weights, path)


def load_resnet(backbone: Backbone, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Give the residual network these weights, which come from the file `source`.

    Raises ValueError naming the file and everything that does not fit; nothing is loaded in part.
    """
    problems = state_dict_problems(weights, shapes_of(backbone.resnet))
    if problems:
        raise ValueError(
            f"{source}: these weights do not fit the backbone: {list_problems(problems)}; "
            "give a file of the same depth, or set the backbone's depth to the file's"
        )
    backbone.resnet.load_state_dict(weights)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: expected a file with weights in torchvision's format, found none; check the path")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: expected a state dict written by torch.save, got something else ({reason})"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a state dict, names with tensors; save torchvision's model.state_dict()")
    return found


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer by name."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def state_dict_problems(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int | None, ...]]) -> list[str]:
    """What keeps a state dict from being loaded, each problem with its name; empty where it fits exactly.

    None in an expected shape stands for any length.
    """
    missing = [f"missing {name}" for name in expected if name not in found]
    extra = [f"unexpected {name}" for name in found if name not in expected]
    misshapen = [
        f"{name}: expected shape {list(shape)}, got {list(found[name].shape)}"
        for name, shape in expected.items()
        if name in found and not _fits(tuple(found[name].shape), shape)
    ]
    return missing + extra + misshapen


def list_problems(problems: list[str], *, shown: int = 20) -> str:
    """The problems as one text, cut after the first `shown`."""
    rest = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + rest


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(want in (None, got) for got, want in zip(found, expected, strict=True))


def _to_images(
    crops: Shaped[Tensor, "crop channel high wide"], dtype: torch.dtype
) -> Float[Tensor, "crop 3 high wide"]:
    images = crops.to(dtype) / 255 if crops.dtype == torch.uint8 else crops.to(dtype)
    return images.expand(-1, 3, -1, -1)
