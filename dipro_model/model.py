"""The whole network: from a batch of stays to logits, auxiliary terms and attention over regions."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dipro_model.backbone import Backbone
from dipro_model.batch import Batch
from dipro_model.config import DiProConfig
from dipro_model.disentangle import Disentangle, PairFeatures, no_pairs, pick, place
from dipro_model.dropout import Dropout
from dipro_model.ehr import GlobalEhr, LocalEhr, hours_inside
from dipro_model.fusion import GlobalFusion, LocalFusion, StaticFusion
from dipro_model.linear import Linear
from dipro_model.losses import dynamic_loss, orthogonal_loss, static_loss, temporal_loss
from dipro_model.output import Output
from dipro_model.readout import LinearReadout


class DiPro(nn.Module):
    """Disease progression from radiographs and hourly records of a stay (Liu et al., arXiv 2510.11112).

    In evaluation mode a stay's result depends on that stay alone: not on its batch, on padding, or on the order of the
    batch (up to rounding). In training mode batch statistics are taken over real frames and pairs.
    """

    def __init__(self, config: DiProConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, dropout = config.width, config.num_heads, config.dropout
        self.backbone = Backbone(config.backbone, width=width, dropout=dropout)
        self.disentangle = Disentangle(width=width, dropout=dropout)
        self.global_ehr = GlobalEhr(width=width, num_heads=heads, dropout=dropout)
        self.local_ehr = LocalEhr(width=width, num_heads=heads)
        self.local_fusion = nn.ModuleList(
            LocalFusion(width=width, num_heads=heads) for _ in range(config.num_local_layers)
        )
        self.global_fusion = GlobalFusion(
            width=width,
            num_heads=heads,
            dropout=dropout,
            num_outputs=config.num_outputs,
            num_layers=config.num_fusion_layers,
        )
        self.static_fusion = StaticFusion(width=width, num_heads=heads, dropout=dropout, num_groups=config.num_groups)
        self.heads = nn.ModuleList(_head(config) for _ in range(config.num_outputs))
        if config.trained != "all":
            self.requires_grad_(False)
            for head in self.heads:
                (head.linear if isinstance(head, LinearReadout) else head).requires_grad_(True)
        if config.trained == "outcome":
            self.global_fusion.class_tokens.requires_grad_(True)

    def forward(self, batch: Batch, *, dense: bool = False) -> Output:
        """`dense` computes padded frames and pairs too, as torch.func.vmap needs it (`disentangle.pick`)."""
        parts = self.config.parts
        pair_mask = batch.pair_mask & parts.radiographs
        pairs = self._see(batch, pair_mask, dense=dense)
        logits, attention = self._fuse(batch, pairs, batch.ehr_mask & parts.ehr, pair_mask, dense=dense)
        return Output(
            logits=logits,
            auxiliary=_auxiliary(batch, pairs, pair_mask),
            region_logits=pairs.region_logits,
            pair_mask=pair_mask,
            region_attention=attention,
        )

    def _see(self, batch: Batch, pair_mask: Bool[Tensor, "stay pair"], *, dense: bool) -> PairFeatures:
        if not self.config.parts.radiographs:
            stays, pairs, regions = *pair_mask.shape, batch.regions.shape[2]
            like = self.global_ehr.token
            return no_pairs(like, stays=stays, pairs=pairs, regions=regions, width=self.config.width)
        frames = self.backbone(pick(batch.regions, batch.frame_mask, dense=dense))  # [real frame, region, width]
        features = place(frames, batch.frame_mask, dense=dense)
        return self.disentangle(features, pair_mask, enhance=self.config.parts.pae, dense=dense)

    def _fuse(
        self,
        batch: Batch,
        pairs: PairFeatures,
        ehr_mask: Bool[Tensor, "stay step"],
        pair_mask: Bool[Tensor, "stay pair"],
        *,
        dense: bool,
    ) -> tuple[Float[Tensor, "stay output class"], Float[Tensor, "stay output pair region"]]:
        dtype, parts = self.global_ehr.token.dtype, self.config.parts
        ehr = _real_only(batch.ehr, ehr_mask, dtype)
        hours = _real_only(batch.ehr_hours, ehr_mask, dtype)
        intervals = _real_only(batch.intervals, pair_mask, dtype)
        tokens = self.global_ehr(ehr, ehr_mask)  # [stay, step, width]
        regions = self._fuse_pairs(pairs.dynamic, tokens, hours, intervals, ehr_mask, pair_mask, dense=dense)
        region_mask = pair_mask.repeat_interleave(regions.shape[2], dim=1)  # [stay, pair * region]
        fuse = self.global_fusion if parts.global_fusion else self.global_fusion.pool
        classes, attention = fuse(regions.flatten(1, 2), region_mask, tokens, ehr_mask)
        classes = self.static_fusion(
            classes,
            pairs.static.flatten(1, 2),
            region_mask,
            batch.demographics.to(dtype),
            describe=parts.demographics,
        )
        logits = torch.stack([head(classes[:, output]) for output, head in enumerate(self.heads)], dim=1)
        return logits, attention.unflatten(2, regions.shape[1:3])

    def _fuse_pairs(
        self,
        dynamic: Float[Tensor, "stay pair region width"],
        tokens: Float[Tensor, "stay step width"],
        hours: Float[Tensor, "stay step"],
        intervals: Float[Tensor, "stay pair 2"],
        ehr_mask: Bool[Tensor, "stay step"],
        pair_mask: Bool[Tensor, "stay pair"],
        *,
        dense: bool,
    ) -> Float[Tensor, "stay pair region width"]:
        """Only real pairs look at anything; zero where a pair is padded. `dense` is as in `pick`."""
        if not (self.local_fusion and self.config.parts.local_fusion and self.config.parts.radiographs):
            return dynamic
        inside = hours_inside(hours, ehr_mask, intervals, pair_mask)
        real = partial(pick, mask=pair_mask, dense=dense)
        stays = torch.arange(len(hours), device=hours.device)
        stays, hours = (each[:, None].expand(*pair_mask.shape, *each.shape[1:]) for each in (stays, hours))
        local = self.local_ehr(tokens, real(stays), real(hours), real(intervals), real(inside))  # [real, step, width]
        # All hours of the stay asked about the interval, so all their answers count, unless no hour could answer.
        answered = real(ehr_mask[:, None] & inside.any(dim=-1, keepdim=True))
        regions = real(dynamic)
        for layer in self.local_fusion:
            regions = layer(regions, local, answered)
        return place(regions, pair_mask, dense=dense)


def _head(config: DiProConfig) -> nn.Module:
    """From a class token to the logits of one output."""
    width, num_classes = config.width, config.num_classes
    if config.trained == "readout":
        return LinearReadout(width=width, num_components=config.num_components, num_classes=num_classes)
    return nn.Sequential(Linear(width, width), nn.ReLU(), Dropout(config.dropout), Linear(width, num_classes))


def _auxiliary(batch: Batch, pairs: PairFeatures, pair_mask: Bool[Tensor, "stay pair"]) -> dict[str, Float[Tensor, ""]]:
    labels = batch.region_progression
    return {
        "orthogonal": orthogonal_loss(pairs.static, pairs.dynamic, pair_mask),
        "temporal": temporal_loss(pairs.static, pair_mask),
        "static": static_loss(pairs.static, pairs.reversed_static, pair_mask),
        "dynamic": pairs.region_logits.new_zeros(())
        if labels is None
        else dynamic_loss(pairs.region_logits, labels, pair_mask),
    }


def _real_only(
    values: Float[Tensor, "stay position *rest"], mask: Bool[Tensor, "stay position"], dtype: torch.dtype
) -> Float[Tensor, "stay position *rest"]:
    """Zero where masked, so that not even a NaN in padding can reach a product."""
    return values.to(dtype).masked_fill(~mask.reshape(*mask.shape, *(1,) * (values.ndim - 2)), 0.0)
