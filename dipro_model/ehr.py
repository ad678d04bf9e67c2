"""From hourly records to tokens: one a step for the whole stay, and one a step seen from the interval of each pair."""

import math
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dipro_model.attention import EncoderLayer, answer_map, attend_mapped, query_map
from dipro_model.dropout import Dropout
from dipro_model.linear import Linear
from dipro_model.vocabulary import EHR_VARIABLES


class GlobalEhr(nn.Module):
    """Tokens of all hours of a stay, each knowing of the others."""

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Sequential(Linear(len(EHR_VARIABLES), width), nn.LayerNorm(width), Dropout(dropout))
        self.token = nn.Parameter(torch.randn(1, width))
        self.encoder = EncoderLayer(width=width, num_heads=num_heads, dropout=dropout)

    def forward(
        self, ehr: Float[Tensor, "stay step variable"], ehr_mask: Bool[Tensor, "stay step"]
    ) -> Float[Tensor, "stay step width"]:
        """Padded steps come out as finite numbers that mean nothing."""
        embedded = self.embedding(ehr)
        embedded = embedded + sinusoidal_positions(embedded.shape[1], embedded.shape[2], like=embedded)
        # The learned token takes part as a key; its own output is not used further.
        token = self.token.expand(len(ehr), 1, -1)
        always = ehr_mask.new_ones(len(ehr), 1)
        tokens, _ = self.encoder(
            torch.cat([token, embedded], dim=1), torch.cat([always, ehr_mask], dim=1), need_weights=False
        )
        return tokens[:, 1:]

    @torch.no_grad()
    def spread_bias(self, std: float) -> None:
        """Draw the bias of the embedding anew, normal with this standard deviation.

        Its layer norm leaves directions alone: beside a bias of no length, values all twice as far from their means
        have the same one, beside a long bias the direction moves with them.
        """
        cast(Linear, self.embedding[0]).bias.normal_(std=std)


class LocalEhr(nn.Module):
    """Tokens of all hours as seen from the interval between the two radiographs of each pair."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(Linear(3, width // 2), nn.GELU(), Linear(width // 2, width))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(
        self,
        tokens: Float[Tensor, "stay step width"],
        stays: Int[Tensor, " pair"],
        hours: Float[Tensor, "pair step"],
        interval: Float[Tensor, "pair 2"],
        inside: Bool[Tensor, "pair step"],
    ) -> Float[Tensor, "pair step width"]:
        """Every hour asks with its time relative to the interval; hours inside answer, those near its centre most.

        `stays` says whose tokens a pair sees; `hours` are those of its stay. An interval in which no hour lies gives
        zero.
        """
        since = hours - interval[:, :1]
        until = interval[:, 1:] - hours
        times = torch.stack([since, until, torch.sigmoid(since * until)], dim=-1)
        distance = (hours - interval.mean(dim=-1, keepdim=True)).abs()
        asks = query_map(self.attention)(self.time_embedding(times))
        # What hours answer with is the same for all pairs of a stay.
        key, value = answer_map(self.attention)(tokens)[stays].chunk(2, dim=-1)
        answers, _ = attend_mapped(self.attention, asks, key, value, allowed=inside[:, None], bias=-distance[:, None])
        return answers


def hours_inside(
    hours: Float[Tensor, "stay step"],
    ehr_mask: Bool[Tensor, "stay step"],
    intervals: Float[Tensor, "stay pair 2"],
    pair_mask: Bool[Tensor, "stay pair"],
) -> Bool[Tensor, "stay pair step"]:
    """True where a real hour lies in the interval of a real pair, both ends included."""
    times = hours[:, None]
    inside = (intervals[..., :1] <= times) & (times <= intervals[..., 1:])
    return inside & ehr_mask[:, None] & pair_mask[..., None]


def sinusoidal_positions(steps: int, width: int, *, like: Float[Tensor, "..."]) -> Float[Tensor, "step width"]:
    """Sine and cosine of position * 10000^(-2i / width), side by side (Vaswani et al., arXiv 1706.03762).

    Computed in single precision whatever the type of the result, as in the published checkpoints.
    """
    position = torch.arange(steps, device=like.device, dtype=torch.float32)[:, None]
    exponent = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angle = position * torch.exp(exponent * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)
