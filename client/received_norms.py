"""Batch norm that normalises with the statistics a site received, and tells the ones of its own work.

A batch of one site, normalised by itself, loses what sets the site apart: where nearly everybody dies, the mean of the
activations, which is the sign of it, is subtracted, and the sites' gradients are not those of one batch of all
patients. With statistics of all sites, a round old, they are. The server puts the sites' together exactly where
`strategy.recalibrate` is set.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Moments:
    """Mean and variance of what goes into one layer, over all its calls."""

    def __init__(self, layer: BatchNorm) -> None:
        zeros = torch.zeros(layer.num_features, dtype=torch.float64)
        self.count, self.sum, self.squares = 0, zeros, zeros.clone()

    def watch(self, layer: BatchNorm) -> RemovableHandle:
        """Add what goes into the layer until the handle is removed."""
        return layer.register_forward_pre_hook(lambda _, inputs: self._add(inputs[0]))

    @torch.no_grad()
    def _add(self, values: Tensor) -> None:
        """Values [position, channel, ...]; taken about their own mean, so that nothing cancels."""
        flat = values.detach().transpose(0, 1).flatten(1).double().cpu()
        count, mean = flat.shape[1], flat.mean(dim=1)
        if not count:
            return
        apart = mean - self.sum / max(self.count, 1)
        total = self.count + count
        self.squares += ((flat - mean[:, None]) ** 2).sum(dim=1) + apart**2 * (self.count * count / total)
        self.sum += mean * count
        self.count = total

    def write(self, layer: BatchNorm) -> None:
        """Give the layer these statistics; too few values change nothing."""
        if self.count < 2 or layer.running_mean is None or layer.running_var is None:
            return
        layer.running_mean.copy_(self.sum / self.count)
        layer.running_var.copy_(self.squares / (self.count - 1))


@contextmanager
def received_norms(model: nn.Module) -> Iterator[None]:
    """Within, batch norm layers normalise with the statistics that they have; after it these are those of the work.

    The layers must be in evaluation mode, as `training.batch_norm=received` sets them. Layers without a parameter that
    is trained stay as they are.
    """
    layers = [
        each
        for each in model.modules()
        if isinstance(each, BatchNorm) and each.track_running_stats and any(p.requires_grad for p in each.parameters())
    ]
    moments = [_Moments(layer) for layer in layers]
    hooks = [found.watch(layer) for layer, found in zip(layers, moments, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for layer, found in zip(layers, moments, strict=True):
        found.write(layer)
