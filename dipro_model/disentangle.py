"""From region features of two neighbouring radiographs to what stays (static) and what changes (dynamic)."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from dipro_model.dropout import Dropout
from dipro_model.linear import Linear
from dipro_model.vocabulary import DISEASES, PROGRESSIONS


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFeatures:
    """Features of every pair and region; zero where a pair is padded."""

    static: Float[Tensor, "stay pair region width"]
    """S, from the pair in time order."""

    dynamic: Float[Tensor, "stay pair region width"]
    """D, from the pair in time order."""

    reversed_static: Float[Tensor, "stay pair region width"]
    """S of the pair in reversed order; without enhancement, S again."""

    region_logits: Float[Tensor, "direction stay pair region disease change"]
    """Progression read from D in time order (0) and in reversed order (1); zero without enhancement."""


class Disentangle(nn.Module):
    """Spatiotemporal disentanglement and progression-aware enhancement (Liu et al., arXiv 2510.11112)."""

    def __init__(self, *, width: int, dropout: float) -> None:
        super().__init__()
        self.static = _projection(width, dropout)
        self.dynamic = _projection(width, dropout)
        self.progression_heads = nn.ModuleList(
            nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, len(PROGRESSIONS))) for _ in DISEASES
        )

    def forward(
        self,
        features: Float[Tensor, "stay frame region width"],
        pair_mask: Bool[Tensor, "stay pair"],
        *,
        enhance: bool,
        dense: bool = False,
    ) -> PairFeatures:
        """Only real pairs are projected, so that padding enters no batch statistics.

        `enhance` looks at every pair in reversed order too (progression-aware enhancement); `dense` is as in `pick`.
        """
        put = partial(place, dense=dense, mask=pair_mask)
        first, second = (pick(each, pair_mask, dense=dense) for each in (features[:, :-1], features[:, 1:]))
        in_order, in_reverse = torch.cat([first, second], dim=-1), torch.cat([second, first], dim=-1)
        if not enhance:
            static, dynamic = (put(_project(net, in_order)) for net in (self.static, self.dynamic))
            return _in_order_only(static, dynamic)
        static, reversed_static = _project(self.static, in_order), _project(self.static, in_reverse)
        dynamic, reversed_dynamic = _project(self.dynamic, in_order), _project(self.dynamic, in_reverse)
        logits = self._progression(torch.stack([dynamic, reversed_dynamic]))
        return PairFeatures(
            static=put(static),
            dynamic=put(dynamic),
            reversed_static=put(reversed_static),
            region_logits=torch.stack([put(values) for values in logits]),
        )

    def _progression(self, dynamic: Float[Tensor, "*any width"]) -> Float[Tensor, "*any disease change"]:
        return torch.stack([head(dynamic) for head in self.progression_heads], dim=-2)


def _in_order_only(
    static: Float[Tensor, "stay pair region width"], dynamic: Float[Tensor, "stay pair region width"]
) -> PairFeatures:
    logits = static.new_zeros(2, *static.shape[:3], len(DISEASES), len(PROGRESSIONS))
    return PairFeatures(static=static, dynamic=dynamic, reversed_static=static, region_logits=logits)


def no_pairs(like: Float[Tensor, "..."], *, stays: int, pairs: int, regions: int, width: int) -> PairFeatures:
    """What a model that sees no radiographs knows of its pairs: zeros."""
    zero = like.new_zeros(stays, pairs, regions, width)
    return _in_order_only(zero, zero)


def pick(
    values: Shaped[Tensor, "stay position *rest"], mask: Bool[Tensor, "stay position"], *, dense: bool = False
) -> Shaped[Tensor, "real *rest"]:
    """The values of real positions, in reading order.

    `dense` takes padded positions along, so that no shape depends on the mask, as torch.func.vmap needs it. Results
    are the same where batch norm takes no statistics of them.
    """
    return values.flatten(0, 1) if dense else values[mask]


def place(
    values: Float[Tensor, "real *rest"], mask: Bool[Tensor, "stay position"], *, dense: bool = False
) -> Float[Tensor, "stay position *rest"]:
    """Put the values that `pick` gave, or what became of them, where the mask is true; zero elsewhere."""
    where = mask.reshape(*mask.shape, *(1,) * (values.ndim - 1))
    if dense:
        return values.unflatten(0, mask.shape).masked_fill(~where, 0.0)
    return values.new_zeros(*mask.shape, *values.shape[1:]).masked_scatter(where, values)


def _projection(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        Linear(2 * width, 4 * width),
        nn.GELU(),
        Linear(4 * width, width),
        nn.BatchNorm1d(width),
        Dropout(dropout),
    )


def _project(network: nn.Sequential, pairs: Float[Tensor, "real region twice"]) -> Float[Tensor, "real region width"]:
    return network(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
