"""From region changes, hourly tokens and demographics to the class tokens that the prediction is read from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dipro_model.attention import EncoderLayer, answer_map, attend, attend_mapped, query_map
from dipro_model.dropout import Dropout
from dipro_model.linear import Linear, LinearMap
from dipro_model.vocabulary import DEMOGRAPHICS


class LocalFusion(nn.Module):
    """The regions of one pair look at themselves and at the hours of their interval."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.region_proj = Linear(width, 3 * width)
        self.ehr_proj = Linear(width, 2 * width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        regions: Float[Tensor, "pair region width"],
        local_ehr: Float[Tensor, "pair step width"],
        step_mask: Bool[Tensor, "pair step"],
    ) -> Float[Tensor, "pair region width"]:
        query, *region_answers = self.region_proj(regions).chunk(3, dim=-1)
        asks, answers = query_map(self.attn), answer_map(self.attn).outputs(2)
        given = LinearMap.of(self.ehr_proj).outputs(2)
        # Hours pass two maps with nothing between them; as one map that is half the work, for there are many hours.
        hours = LinearMap.beside([own.behind(first) for own, first in zip(answers, given, strict=True)])
        key, value = (
            torch.cat([own(of_regions), of_hours], dim=1)
            for own, of_regions, of_hours in zip(
                answers, region_answers, hours(local_ehr).chunk(2, dim=-1), strict=True
            )
        )
        allowed = torch.cat([step_mask.new_ones(regions.shape[:2]), step_mask], dim=1)
        mixed, _ = attend_mapped(self.attn, asks(query), key, value, allowed=allowed[:, None])
        return self.norm(regions + mixed)


class GlobalFusion(nn.Module):
    """Hours look at all regions of the stay; then class tokens, regions and hours look at one another."""

    def __init__(self, *, width: int, num_heads: int, dropout: float, num_outputs: int, num_layers: int) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(torch.randn(1, num_outputs, width))
        self.region_attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.region_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            EncoderLayer(width=width, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        regions: Float[Tensor, "stay token width"],
        region_mask: Bool[Tensor, "stay token"],
        ehr: Float[Tensor, "stay step width"],
        ehr_mask: Bool[Tensor, "stay step"],
    ) -> tuple[Float[Tensor, "stay output width"], Float[Tensor, "stay output token"]]:
        """Class tokens, and their attention to the region tokens as mean over heads and layers, without gradient."""
        mixed, _ = attend(self.region_attention, ehr, regions, regions, allowed=region_mask[:, None])
        ehr = self.region_norm(ehr + mixed)
        outputs = self.class_tokens.shape[1]
        tokens = torch.cat([self.class_tokens.expand(len(ehr), -1, -1), regions, ehr], dim=1)
        mask = torch.cat([ehr_mask.new_ones(len(ehr), outputs), region_mask, ehr_mask], dim=1)
        looks = []
        for layer in self.layers:
            # Nothing reads the other tokens behind the last layer.
            first = outputs if layer is self.layers[-1] else None
            tokens, weights = layer(tokens, mask, need_weights=True, first=first)
            looks.append(weights[:, :outputs, outputs : outputs + regions.shape[1]].detach())
        return tokens[:, :outputs], torch.stack(looks).mean(dim=0)

    def pool(
        self,
        regions: Float[Tensor, "stay token width"],
        region_mask: Bool[Tensor, "stay token"],
        ehr: Float[Tensor, "stay step width"],
        ehr_mask: Bool[Tensor, "stay step"],
    ) -> tuple[Float[Tensor, "stay output width"], Float[Tensor, "stay output token"]]:
        """The ablation of `forward`: nothing looks at anything, class tokens add the mean region and the mean hour."""
        outputs = self.class_tokens.shape[1]
        share = region_mask / region_mask.sum(dim=1, keepdim=True).clamp(min=1)
        hours = ehr_mask / ehr_mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = torch.einsum("st,stw->sw", share.to(regions), regions) + torch.einsum("st,stw->sw", hours.to(ehr), ehr)
        classes = self.region_norm(self.class_tokens + mean[:, None])
        return classes, share.to(regions)[:, None].expand(-1, outputs, -1)


class GroupEmbedding(nn.Module):
    """Every feature as a mixture of a few learned group vectors: softmax(X W) G."""

    def __init__(self, *, width: int, num_groups: int) -> None:
        super().__init__()
        self.assignment = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, num_groups)))
        self.vectors = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_groups, width)))

    def forward(self, features: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        return torch.softmax(features @ self.assignment, dim=-1) @ self.vectors


class StaticFusion(nn.Module):
    """Class tokens look at the stay's static features and demographics, both expressed in groups.

    The published network lets regions and hours look as well, but nothing reads those tokens afterwards.
    """

    def __init__(self, *, width: int, num_heads: int, dropout: float, num_groups: int) -> None:
        super().__init__()
        self.demographics = nn.Sequential(Linear(len(DEMOGRAPHICS), width), nn.ReLU(), Dropout(dropout))
        self.groups = GroupEmbedding(width=width, num_groups=num_groups)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        class_tokens: Float[Tensor, "stay output width"],
        static: Float[Tensor, "stay token width"],
        region_mask: Bool[Tensor, "stay token"],
        demographics: Float[Tensor, "stay demographic"],
        *,
        describe: bool,
    ) -> Float[Tensor, "stay output width"]:
        """`describe` lets them see the demographics."""
        described = self.demographics(demographics)[:, None]
        keys = self.groups(torch.cat([static, described], dim=1))
        allowed = torch.cat([region_mask, region_mask.new_full((len(static), 1), describe)], dim=1)
        mixed, _ = attend(self.attention, class_tokens, keys, keys, allowed=allowed[:, None])
        return self.norm(class_tokens + mixed)
