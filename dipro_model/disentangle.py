"""From region features of two neighbouring radiographs to what stays (static) and what changes (dynamic)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

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
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(PROGRESSIONS))) for _ in DISEASES
        )

    def forward(
        self, features: Float[Tensor, "stay frame region width"], pair_mask: Bool[Tensor, "stay pair"], *, enhance: bool
    ) -> PairFeatures:
        """Only real pairs are projected, so that padding enters no batch statistics.

        `enhance` looks at every pair in reversed order too (progression-aware enhancement).
        """
        first, second = features[:, :-1][pair_mask], features[:, 1:][pair_mask]  # [real pair, region, width]
        in_order, in_reverse = torch.cat([first, second], dim=-1), torch.cat([second, first], dim=-1)
        if not enhance:
            static, dynamic = (place(_project(net, in_order), pair_mask) for net in (self.static, self.dynamic))
            return _in_order_only(static, dynamic)
        static, reversed_static = _project(self.static, in_order), _project(self.static, in_reverse)
        dynamic, reversed_dynamic = _project(self.dynamic, in_order), _project(self.dynamic, in_reverse)
        logits = [self._progression(changes) for changes in (dynamic, reversed_dynamic)]
        return PairFeatures(
            static=place(static, pair_mask),
            dynamic=place(dynamic, pair_mask),
            reversed_static=place(reversed_static, pair_mask),
            region_logits=torch.stack([place(values, pair_mask) for values in logits]),
        )

    def _progression(self, dynamic: Float[Tensor, "real region width"]) -> Float[Tensor, "real region disease change"]:
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


def place(
    values: Float[Tensor, "real *rest"], mask: Bool[Tensor, "stay position"]
) -> Float[Tensor, "stay position *rest"]:
    """Put the values of real positions, in reading order, where the mask is true; zero elsewhere."""
    empty = values.new_zeros(*mask.shape, *values.shape[1:])
    return empty.masked_scatter(mask.reshape(*mask.shape, *(1,) * (values.ndim - 1)), values)


def _projection(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * width, 4 * width),
        nn.GELU(),
        nn.Linear(4 * width, width),
        nn.BatchNorm1d(width),
        nn.Dropout(dropout),
    )


def _project(network: nn.Sequential, pairs: Float[Tensor, "real region twice"]) -> Float[Tensor, "real region width"]:
    return network(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
