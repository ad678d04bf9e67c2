"""Attention in which a mask decides alone: what is masked is never looked at, and who may look nowhere gets zero."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


def attend(
    attention: nn.MultiheadAttention,
    query: Float[Tensor, "stay query width"],
    key: Float[Tensor, "stay key width"],
    value: Float[Tensor, "stay key width"],
    *,
    allowed: Bool[Tensor, "stay #query key"],
    bias: Float[Tensor, "stay #query key"] | None = None,
    need_weights: bool = False,
) -> tuple[Float[Tensor, "stay query width"], Float[Tensor, "stay query key"] | None]:
    """Multi-head attention over the allowed keys; `bias` is added to the scaled products before the softmax.

    A query without any allowed key gets zero: kernels differ there (NaN or zero), so none is ever asked. The second
    result holds the weights as mean over heads where `need_weights` is set.
    """
    reachable = allowed.any(dim=-1, keepdim=True)
    blocked = reachable & ~allowed
    mask = blocked if bias is None else bias.masked_fill(blocked, -torch.inf)
    mask = mask.expand(-1, query.shape[1], -1).repeat_interleave(attention.num_heads, dim=0)
    mixed, weights = attention(query, key, value, attn_mask=mask, need_weights=need_weights)
    zero = mixed.new_zeros(())
    return torch.where(reachable, mixed, zero), None if weights is None else weights * reachable


class EncoderLayer(nn.Module):
    """Transformer encoder layer with the norm behind each residual sum (Vaswani et al., arXiv 1706.03762), ReLU.

    Parameters are named as in torch.nn.TransformerEncoderLayer, which does not return attention weights.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "stay token width"],
        token_mask: Bool[Tensor, "stay token"],
        *,
        need_weights: bool,
        first: int | None = None,
    ) -> tuple[Float[Tensor, "stay asking width"], Float[Tensor, "stay asking token"] | None]:
        """What becomes of the `first` tokens, which look at all of them; of all, unless given."""
        asking = tokens[:, :first]
        mixed, weights = attend(
            self.self_attn, asking, tokens, tokens, allowed=token_mask[:, None], need_weights=need_weights
        )
        asking = self.norm1(asking + self.dropout(mixed))
        hidden = self.dropout(functional.relu(self.linear1(asking)))
        return self.norm2(asking + self.dropout(self.linear2(hidden))), weights
