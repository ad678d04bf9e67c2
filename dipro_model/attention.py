"""Attention in which a mask decides alone: what is masked is never looked at, and who may look nowhere gets zero."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from dipro_model.dropout import Dropout, dropout, takes_less
from dipro_model.linear import Linear, LinearMap


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

    The parameters are those of torch's module, whose own forward would go past `dipro_model.linear`.
    A query without any allowed key gets zero: kernels differ there (NaN or zero), so none is ever asked. The second
    result holds the weights as mean over heads where `need_weights` is set.
    """
    asks, answers = query_map(attention), answer_map(attention)
    if key is value:
        key, value = answers(key).chunk(2, dim=-1)
    else:
        key, value = (own(each) for own, each in zip(answers.outputs(2), (key, value), strict=True))
    return attend_mapped(attention, asks(query), key, value, allowed=allowed, bias=bias, need_weights=need_weights)


def query_map(attention: nn.MultiheadAttention) -> LinearMap:
    """What a query passes before it is compared."""
    width = attention.embed_dim
    return LinearMap(attention.in_proj_weight[:width], attention.in_proj_bias[:width])


def answer_map(attention: nn.MultiheadAttention) -> LinearMap:
    """What keys and values pass before they are looked at: the map to a key, then that to a value."""
    width = attention.embed_dim
    return LinearMap(attention.in_proj_weight[width:], attention.in_proj_bias[width:])


def attend_mapped(
    attention: nn.MultiheadAttention,
    query: Float[Tensor, "stay query width"],
    key: Float[Tensor, "stay key width"],
    value: Float[Tensor, "stay key width"],
    *,
    allowed: Bool[Tensor, "stay #query key"],
    bias: Float[Tensor, "stay #query key"] | None = None,
    need_weights: bool = False,
) -> tuple[Float[Tensor, "stay query width"], Float[Tensor, "stay query key"] | None]:
    """`attend` of what has passed `query_map` and `answer_map` already."""
    reachable = allowed.any(dim=-1, keepdim=True)
    blocked = reachable & ~allowed
    mask = torch.zeros_like(allowed, dtype=query.dtype) if bias is None else bias
    mask = mask.masked_fill(blocked, -torch.inf)[:, None]
    query, key, value = (_by_head(each, attention.num_heads) for each in (query, key, value))
    probability = attention.dropout if attention.training else 0.0
    weights = None
    if need_weights or (probability and takes_less(query)):
        mixed, weights = _mix(query, key, value, mask, probability)
        weights = weights.mean(dim=1) * reachable if need_weights else None
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=probability)
    mixed = LinearMap.of(attention.out_proj)(mixed.transpose(1, 2).flatten(2))
    return torch.where(reachable, mixed, mixed.new_zeros(())), weights


def _by_head(values: Float[Tensor, "stay token width"], num_heads: int) -> Float[Tensor, "stay head token part"]:
    return values.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _mix(
    query: Float[Tensor, "stay head query part"],
    key: Float[Tensor, "stay head key part"],
    value: Float[Tensor, "stay head key part"],
    mask: Float[Tensor, "stay 1 #query key"],
    probability: float,
) -> tuple[Float[Tensor, "stay head query part"], Float[Tensor, "stay head query key"]]:
    """Scaled dot-product attention that shows its weights."""
    scores = (query / query.shape[-1] ** 0.5) @ key.transpose(-2, -1) + mask
    weights = dropout(scores.softmax(dim=-1), probability)
    return weights @ value, weights


class EncoderLayer(nn.Module):
    """Transformer encoder layer with the norm behind each residual sum (Vaswani et al., arXiv 1706.03762), ReLU.

    Parameters are named as in torch.nn.TransformerEncoderLayer, which does not return attention weights.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.linear1 = Linear(width, 4 * width)
        self.linear2 = Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

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
