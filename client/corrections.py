"""A site's half of the project's own strategies: what is added to gradients, and what stays at the site.

Pure functions of flat arrays over the parameters that have a gradient (`ModelEntries.parameters`), and
`GradientCorrection`, which adds to the gradients of a model that trains. The server's half is `server/arithmetic.py`,
formulas and sources are in docs/strategies.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.site_state import SiteState
from dipro_model import DiPro
from federation.selection import Entries, ModelEntries
from federation.settings import RunSettings

_CONTROL = "control"


class CorrectionError(ValueError):
    """A correction that does not fit the model; says what was expected and what came."""


def scaffold_correction(control: np.ndarray, own_control: np.ndarray) -> np.ndarray:
    """c - c_i: what SCAFFOLD adds to every gradient of a round (Karimireddy et al. 2020, arXiv 1910.06378, Alg. 1)."""
    _check_shapes(control, own_control)
    return control - own_control


def scaffold_control(
    own_control: np.ndarray, control: np.ndarray, start: np.ndarray, end: np.ndarray, *, sum_of_rates: float
) -> np.ndarray:
    """c_i(new) = c_i - c + (x - y) / (K rate): a site's control variate after its K steps, option II of the paper.

    `start` x and `end` y are the parameters before and after, `sum_of_rates` the learning rates of the steps summed, K
    times the rate where it is constant. The result is the mean gradient of the steps if these were plain gradient
    steps: no momentum, no Adam.
    """
    _check_shapes(own_control, control, start, end)
    if not sum_of_rates > 0:
        raise CorrectionError(f"expected a sum of learning rates above zero, found {sum_of_rates}; no step was made")
    gradient = (start.astype(np.float64) - end) / sum_of_rates
    return (own_control - control + gradient).astype(own_control.dtype)


def with_own(received: np.ndarray, own: np.ndarray, local: Entries) -> np.ndarray:
    """The received weights with the site's own values at `local`: with `ModelEntries.batch_norm`, FedBN's model of a
    site (Li et al. 2021, arXiv 2102.07623)."""
    whole = received.copy()
    local.put(whole, own)
    return whole


class GradientCorrection:
    """Adds a constant and a pull towards an anchor to a model's gradients, before the optimizer's step.

    The pull strength * (w - anchor) is the gradient of strength / 2 * ||w - anchor||^2: with the global parameters as
    the anchor FedProx's term (Li et al. 2020, arXiv 1812.06127, mu), in Ditto's personal model the one that keeps it
    near the common one (Li et al. 2021, arXiv 2012.04221, lambda).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        constant: np.ndarray | None = None,
        anchor: np.ndarray | None = None,
        strength: float = 0.0,
    ) -> None:
        """`constant` and `anchor` are flat, over the parameters with a gradient in the state dict's order.

        Raises CorrectionError where an array is not of their number.
        """
        _check_strength(strength)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._parameters = [trained[name] for name in model.state_dict() if name in trained]
        self._constants = self._cut(constant)
        self._anchors = self._cut(anchor)
        self._strength = strength

    @torch.no_grad()
    def apply(self) -> None:
        """Add to every gradient, in place; a parameter that the loss did not reach gets the correction alone."""
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self._constants is not None:
                parameter.grad += self._constants[place]
            if self._anchors is not None:
                parameter.grad.add_(parameter - self._anchors[place], alpha=self._strength)

    def _cut(self, flat: np.ndarray | None) -> list[Tensor] | None:
        """One tensor a parameter, of its shape, on its device."""
        if flat is None:
            return None
        sizes = [each.numel() for each in self._parameters]
        if flat.shape != (sum(sizes),):
            raise CorrectionError(f"expected a correction [{sum(sizes)}], found {list(flat.shape)}")
        parts = torch.tensor(flat).split(sizes)
        return [part.reshape(each.shape).to(each) for part, each in zip(parts, self._parameters, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What the strategy of a run adds to the gradients of a site's work, and what of it the site keeps."""

    settings: RunSettings
    state: SiteState
    control: np.ndarray
    """SCAFFOLD: the server's control variate, float32 [parameter]; else empty."""
    server_round: int

    def before_step(self, model: DiPro, entries: ModelEntries, received: np.ndarray) -> Callable[[], None]:
        """What changes the gradients before each step; `received` is the common model, float32 [number]."""
        strategy = self.settings.strategy
        if strategy.name == "scaffold":
            constant = scaffold_correction(self.control, self._own())
            return GradientCorrection(model, constant=constant).apply
        if strategy.name == "fedprox":
            anchor = entries.parameters.take(received)
            return GradientCorrection(model, anchor=anchor, strength=strategy.parameters()["mu"]).apply
        return lambda: None

    def end(self, parameters: Entries, start: np.ndarray, end: np.ndarray, *, sum_of_rates: float) -> np.ndarray:
        """SCAFFOLD: keep the control variate after the work and return its change; else nothing, an empty array."""
        if self.settings.strategy.name != "scaffold":
            return np.zeros(0, np.float32)
        own = self._own()
        before, after = parameters.take(start), parameters.take(end)
        new = scaffold_control(own, self.control, before, after, sum_of_rates=sum_of_rates)
        self.state.keep_of_round(_CONTROL, self.server_round, new)
        return new - own

    def _own(self) -> np.ndarray:
        """Zero before the site's first work."""
        own = self.state.before_round(_CONTROL, self.server_round)
        return np.zeros_like(self.control) if own is None else own


def _check_shapes(first: np.ndarray, *others: np.ndarray) -> None:
    for other in others:
        if other.shape != first.shape:
            raise CorrectionError(f"expected arrays {list(first.shape)}, found {list(other.shape)}")


def _check_strength(strength: float) -> None:
    if not strength >= 0:
        raise CorrectionError(f"expected a strength of zero or more, found {strength}")
