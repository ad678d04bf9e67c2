"""Batch norm with the statistics of all sites' batch, a round old: forward, backward, and what this site's work adds.

A batch of one site, normalised by itself, loses what sets the site apart: where nearly everybody dies, the mean of the
activations, which is the sign of it, is subtracted, and the sites' gradients are not those of one batch of all
patients. With statistics of all sites they are, but for one thing. In one batch x of N positions, normalised to
x^ = (x - mean) / sd and scaled to y = weight x^ + bias, mean and sd depend on x, so that

    dL/dx = weight / sd * (dL/dy - (B + x^ W) / N),    B = sum of dL/dy = dL/dbias,    W = sum of dL/dy x^ = dL/dweight

(Ioffe and Szegedy 2015, arXiv 1502.03167). B and W over the batch of all sites are the gradients of the layer's own two
parameters, which the sites send along with their statistics; both come back with the next round. The server puts
statistics together exactly where `strategy.recalibrate` is set.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Layer:
    """One batch norm layer at work on a round."""

    def __init__(self, layer: BatchNorm, weight_gradient: Tensor, bias_gradient: Tensor, batch_share: float) -> None:
        """The gradients are those of all sites; `batch_share` is the share of a batch in the gradient of a step."""
        self.layer, self._share = layer, batch_share
        self._weight_gradient, self._bias_gradient = weight_gradient, bias_gradient
        zeros = torch.zeros(layer.num_features, dtype=torch.float64)
        self._count, self._sum, self._squares = 0, zeros, zeros.clone()
        self._positions, self._is_over = 0, False
        self.handle = layer.register_forward_pre_hook(lambda _, inputs: (self._through(inputs[0]), *inputs[1:]))

    def _through(self, values: Tensor) -> Tensor:
        """Values [position, channel, ...] on their way into the layer."""
        self._add(values)
        if not values.requires_grad:
            return values
        if self._is_over:
            self._positions, self._is_over = 0, False
        self._positions += values.numel() // self.layer.num_features
        entering = values.view_as(values)  # of its own, so that its gradient is of this call alone
        held = entering.detach()
        entering.register_hook(lambda gradient: self._as_of_one_batch(gradient, held))
        return entering

    def _as_of_one_batch(self, gradient: Tensor, values: Tensor) -> Tensor:
        self._is_over = True  # the layer may be used several times in a batch; the next use is of another one
        layer, shape = self.layer, (1, -1, *(1,) * (values.ndim - 2))
        assert layer.running_mean is not None
        assert layer.running_var is not None
        sd = (layer.running_var + layer.eps).sqrt().view(shape)
        normalised = (values - layer.running_mean.view(shape)) / sd
        through = self._bias_gradient.view(shape) + normalised * self._weight_gradient.view(shape)
        return gradient - layer.weight.detach().view(shape) / sd * through * (self._share / self._positions)

    @torch.no_grad()
    def _add(self, values: Tensor) -> None:
        """Taken about their own mean, so that nothing cancels."""
        flat = values.detach().transpose(0, 1).flatten(1).double().cpu()
        count, mean = flat.shape[1], flat.mean(dim=1)
        if not count:
            return
        apart = mean - self._sum / max(self._count, 1)
        total = self._count + count
        self._squares += ((flat - mean[:, None]) ** 2).sum(dim=1) + apart**2 * (self._count * count / total)
        self._sum += mean * count
        self._count = total

    def write(self) -> None:
        """Give the layer the statistics of what went through; too few values change nothing."""
        layer = self.layer
        if self._count < 2 or layer.running_mean is None or layer.running_var is None:
            return
        layer.running_mean.copy_(self._sum / self._count)
        layer.running_var.copy_(self._squares / (self._count - 1))


class ReceivedNorms:
    """The batch norm layers of a model at work on a round."""

    def __init__(self, layers: list[_Layer]) -> None:
        self._layers = layers
        self._sum, self._steps = np.zeros(sum(2 * each.layer.num_features for each in layers)), 0

    def note_gradients(self) -> None:
        """To be told before each optimizer step, while the gradients are those of the loss."""
        both = [gradient for each in self._layers for gradient in (each.layer.weight.grad, each.layer.bias.grad)]
        sizes = [each.layer.num_features for each in self._layers for _ in range(2)]
        found = [torch.zeros(size) if each is None else each.cpu() for each, size in zip(both, sizes, strict=True)]
        self._sum += torch.cat(found).numpy() if found else 0.0
        self._steps += 1

    @property
    def gradients(self) -> np.ndarray:
        """float32 [number]: of each layer's weight, then bias, layer after layer; the mean over the steps."""
        return (self._sum / max(self._steps, 1)).astype(np.float32)


@contextmanager
def received_norms(
    model: nn.Module, gradients: np.ndarray | None = None, *, batch_share: float = 1.0
) -> Iterator[ReceivedNorms]:
    """Within, batch norm layers normalise with the statistics that they have; after it these are those of the work.

    `gradients` are those of all sites, as `ReceivedNorms.gradients` tells them; None takes statistics for constants. Of
    the gradient of a step a batch has `batch_share`. The layers must be in evaluation mode, as
    `training.batch_norm=received` sets them. Layers without a parameter that is trained stay as they are.
    """
    chosen = [each for each in model.modules() if isinstance(each, BatchNorm) and _is_trained(each)]
    sizes = [each.num_features for each in chosen for _ in range(2)]
    flat = np.zeros(sum(sizes), np.float32) if gradients is None else gradients
    where = chosen[0].weight.device if chosen else None
    parts = iter(torch.tensor(flat, device=where).split(sizes))
    layers = [_Layer(each, next(parts), next(parts), batch_share) for each in chosen]
    try:
        yield ReceivedNorms(layers)
    finally:
        for each in layers:
            each.handle.remove()
    for each in layers:
        each.write()


def _is_trained(layer: BatchNorm) -> bool:
    return layer.track_running_stats and any(each.requires_grad for each in layer.parameters())
