"""Released checkpoints of the published code: its names and ours, and a reader that lets nothing pass unread."""

from collections.abc import Mapping

from torch import Tensor

from dipro_model.backbone import list_problems, shapes_of, state_dict_problems
from dipro_model.config import DiProConfig
from dipro_model.model import DiPro
from dipro_model.vocabulary import REGIONS, Task

OFFICIAL_PREFIXES: dict[str, str] = {
    "backbone.resnet.": "long_cxr_encoder.resnet.",
    "backbone.adapter.": "long_cxr_encoder.feature_adapter.",
    "disentangle.static.": "long_cxr_encoder.static_proj.proj_net.",
    "disentangle.dynamic.": "long_cxr_encoder.dynamic_proj.proj_net.",
    "disentangle.progression_heads.": "long_cxr_encoder.PAE_output_layer.",
    "global_ehr.token": "long_multi_modal_fuison.ehr_global_encoder.cls_token",
    "global_ehr.embedding.": "long_multi_modal_fuison.ehr_global_encoder.input_proj.",
    "global_ehr.encoder.": "long_multi_modal_fuison.ehr_global_encoder.transformer.layers.0.",
    "local_ehr.time_embedding.": "long_multi_modal_fuison.ehr_local_encoder.time_encoder.",
    "local_ehr.attention.": "long_multi_modal_fuison.ehr_local_encoder.attn.",
    "local_fusion.": "long_multi_modal_fuison.region_attn.",
    "global_fusion.class_tokens": "long_multi_modal_fuison.cls_token",
    "global_fusion.region_attention.": "long_multi_modal_fuison.ehr_cross_attn.stage1_attn_CXR_EHR.",
    "global_fusion.region_norm.": "long_multi_modal_fuison.ehr_cross_attn.norm1_CXR_EHR.",
    "global_fusion.layers.": "long_multi_modal_fuison.fusion.layers.",
    "static_fusion.demographics.": "demographic_encoder.",
    "static_fusion.groups.assignment": "group_embedding.W",
    "static_fusion.groups.vectors": "group_embedding.G",
    "static_fusion.attention.": "Demographic_attn.",
    "static_fusion.norm.": "Demographic_norm.",
    "heads.": "output_layer.",
}
"""Where a part of this model lies in the published one; behind the prefix the names are the same."""


def official_name(name: str) -> str:
    """The published name of one of this model's parameters or buffers."""
    for ours, theirs in OFFICIAL_PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(f"no published name is known for {name}")


def unused_official_shapes(config: DiProConfig) -> dict[str, tuple[int | None, ...]]:
    """Tensors of a published checkpoint that influence no result, with their shapes (None: any length).

    The learned image for padded frames, whose size follows the crops; a temperature and a width of the time window
    that the published code never uses; the table of sinusoidal positions, which is computed here; and, for mortality,
    the positive weight of the loss that it was trained with.
    """
    unused: dict[str, tuple[int | None, ...]] = {
        "learnable_pad.pad_value": (len(REGIONS), 3, None, None),
        "long_cxr_encoder.STD_Constraint.temperature": (),
        "long_multi_modal_fuison.ehr_local_encoder.sigma": (),
        "long_multi_modal_fuison.ehr_global_encoder.pos_encoder.pe": (1, None, config.width),
    }
    if config.task is Task.MORTALITY:
        unused |= {"loss.pos_weight": (1,), "loss_batch.pos_weight": (1,)}
    return unused


def official_shapes(model: DiPro) -> dict[str, tuple[int | None, ...]]:
    """Name and shape of every tensor of a published checkpoint for this model (None: any length)."""
    used = {official_name(name): shape for name, shape in shapes_of(model).items()}
    return used | unused_official_shapes(model.config)


def load_official_state_dict(state_dict: Mapping[str, Tensor], task: Task | str) -> DiPro:
    """The model of a released checkpoint (its tensors lie under the key `state_dict`), in evaluation mode.

    Raises ValueError that names every missing, unexpected or misshapen tensor; nothing is loaded in part.
    """
    model = DiPro(DiProConfig.published(task))
    problems = state_dict_problems(state_dict, official_shapes(model))
    if problems:
        raise ValueError(
            f"published checkpoint for {model.config.task}: {len(problems)} tensors do not fit: "
            f"{list_problems(problems)}; check that the checkpoint is whole and of this task"
        )
    model.load_state_dict({name: state_dict[official_name(name)] for name in model.state_dict()})
    return model.eval()
