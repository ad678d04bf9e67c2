"""The objective: the task's loss and four terms that shape the image features, each a mean over what is real."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.nn import functional

from dipro_model.batch import Batch
from dipro_model.config import DiProConfig
from dipro_model.output import Output
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, PROGRESSIONS, Task

Weighting = Literal["balanced", "published", "none"]
"""How labels that are rare in training weigh."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassWeights:
    """Weights of label values, computed once from the training labels."""

    progression: Float[Tensor, "disease change"] | None = None
    """Weight of each class of each disease, used for stays and for single regions; None weighs all alike."""

    mortality_positive: Float[Tensor, ""] | None = None
    """Weight of a death relative to a survival; None weighs both alike."""

    def to(self, device: torch.device | str) -> "ClassWeights":
        """The same weights on another device."""
        move = [None if value is None else value.to(device) for value in (self.progression, self.mortality_positive)]
        return ClassWeights(progression=move[0], mortality_positive=move[1])


def class_weights_from_counts(
    weighting: Weighting,
    *,
    progression: Sequence[Sequence[int]] | None = None,
    mortality: Sequence[int] | None = None,
) -> ClassWeights:
    """Class weights from numbers of training labels.

    `progression` counts worsened, improved and no change of each of the seven diseases ([7][3], `not mentioned` left
    out); `mortality` counts survivals and deaths. What is not given stays unweighted.
    - `none`: no weights.
    - `balanced`: progression num_labelled / (3 num_class); deaths weigh survivals / deaths.
    - `published`: progression as above; deaths weigh their own share of all stays, as in the published code, which
      weighs them down.
    A class that is absent gets weight 0, that is, it is left out should it appear later; where deaths or survivals are
    absent, balanced deaths weigh 1. All weights are finite.
    """
    if weighting not in ("balanced", "published", "none"):
        raise ValueError(f"class weighting: expected balanced, published or none, got {weighting!r}")
    if weighting == "none":
        return ClassWeights()
    return ClassWeights(
        progression=None if progression is None else _progression_weights(progression),
        mortality_positive=None if mortality is None else _death_weight(weighting, mortality),
    )


def _progression_weights(counts: Sequence[Sequence[int]]) -> Float[Tensor, "disease change"]:
    table = _read_counts("progression", counts, (len(DISEASES), len(PROGRESSIONS)))
    labelled = table.sum(dim=1, keepdim=True)
    return torch.where(table > 0, labelled / (len(PROGRESSIONS) * table.clamp(min=1)), 0.0).float()


def _death_weight(weighting: Weighting, counts: Sequence[int]) -> Float[Tensor, ""]:
    survivals, deaths = _read_counts("mortality", counts, (2,)).tolist()
    if weighting == "published":
        return torch.tensor(deaths / max(survivals + deaths, 1))
    return torch.tensor(survivals / deaths if survivals and deaths else 1.0)


def _read_counts(name: str, counts: Sequence, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    table = torch.as_tensor(counts, dtype=torch.float64)
    if tuple(table.shape) != shape or not bool((table >= 0).all()):
        raise ValueError(f"counts of {name} labels: expected {list(shape)} numbers of at least 0, got {counts!r}")
    return table


def objective(
    output: Output, batch: Batch, config: DiProConfig, class_weights: ClassWeights, *, separable: bool = False
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """L = sum of factor * term over task, orthogonal, temporal, static, dynamic (Liu et al., arXiv 2510.11112).

    `separable` is for a batch of one patient's stays whose gradient is to stand by itself, see `progression_loss`.

    Returns the total and the five terms before their factors. A disease or class without a label adds zero, as does a
    term whose part of the model takes no part; gradients stay defined. Raises ValueError where the batch carries no
    labels.
    """
    if batch.label is None or batch.region_progression is None:
        raise ValueError("objective: expected a batch with label and region_progression, got one without labels")
    parts = {
        **output.auxiliary,
        "task": task_loss(output.logits, batch.label, config.task, class_weights, separable=separable),
        "dynamic": dynamic_loss(
            output.region_logits,
            batch.region_progression,
            output.pair_mask,
            class_weights.progression,
            separable=separable,
        ),
    }
    parts = {name: value if config.has_term(name) else torch.zeros_like(value) for name, value in parts.items()}
    total = torch.stack([getattr(config.loss, name) * value for name, value in parts.items()]).sum()
    return total, parts


def task_loss(
    logits: Float[Tensor, "stay output class"],
    label: Num[Tensor, "stay *output"],
    task: Task,
    class_weights: ClassWeights,
    *,
    separable: bool = False,
) -> Float[Tensor, ""]:
    """Progression: sum over diseases of weighted cross entropy over the stays that mention the disease.

    Mortality: mean binary cross entropy. Length of stay: mean cross entropy.
    """
    expected = logits.shape[:2] if task is Task.DISEASE_PROGRESSION else logits.shape[:1]
    if label.shape != expected:
        raise ValueError(f"label: expected shape {list(expected)} for {task}, got {list(label.shape)}")
    if task is Task.DISEASE_PROGRESSION:
        return progression_loss(logits, label.long(), class_weights.progression, separable=separable)
    if task is Task.LENGTH_OF_STAY:
        return functional.cross_entropy(logits[:, 0], label.long())
    weight = class_weights.mortality_positive
    return functional.binary_cross_entropy_with_logits(
        logits[:, 0, 0], label.to(logits.dtype), pos_weight=None if weight is None else weight.to(logits)
    )


def dynamic_loss(
    logits: Float[Tensor, "direction stay pair region disease change"],
    region_progression: Int[Tensor, "stay pair region disease"],
    pair_mask: Bool[Tensor, "stay pair"],
    weight: Float[Tensor, "disease change"] | None = None,
    *,
    separable: bool = False,
) -> Float[Tensor, ""]:
    """Progression loss of single regions, forward and reversed pairs together; in reverse, worse means better."""
    forward = region_progression.long().masked_fill(~pair_mask[:, :, None, None], NOT_MENTIONED)
    reverse = forward.new_tensor([1, 0, 2, NOT_MENTIONED])[forward]
    label = torch.stack([forward, reverse])
    return progression_loss(logits.flatten(0, -3), label.flatten(0, -2), weight, separable=separable)


def progression_loss(
    logits: Float[Tensor, "sample disease change"],
    label: Int[Tensor, "sample disease"],
    weight: Float[Tensor, "disease change"] | None = None,
    *,
    separable: bool = False,
) -> Float[Tensor, ""]:
    """Sum over diseases of sum_i w(y_i) (-log p_i(y_i)) / sum_i w(y_i), over the labels that are mentioned.

    A disease whose weights sum to zero adds zero. Of a single sample such a mean has lost its weight; `separable`
    divides by the number of labels in place of their weights, whose mean over all training labels is 1.
    """
    mentioned = label != NOT_MENTIONED
    known = label.masked_fill(~mentioned, 0)
    surprise = -functional.log_softmax(logits, dim=-1).gather(-1, known[..., None])[..., 0]
    if weight is None:
        factor = mentioned.to(surprise)
    else:
        factor = mentioned * weight.to(surprise)[torch.arange(label.shape[1], device=label.device), known]
    mass = mentioned.to(surprise).sum(dim=0) if separable else factor.sum(dim=0)
    return ((factor * surprise).sum(dim=0) / torch.where(mass > 0, mass, 1.0)).sum()


def orthogonal_loss(
    static: Float[Tensor, "stay pair region width"],
    dynamic: Float[Tensor, "stay pair region width"],
    pair_mask: Bool[Tensor, "stay pair"],
) -> Float[Tensor, ""]:
    """Mean squared cosine between static and dynamic features over real pairs and their regions."""
    return _mean_where(functional.cosine_similarity(static, dynamic, dim=-1) ** 2, pair_mask)


def temporal_loss(
    static: Float[Tensor, "stay pair region width"], pair_mask: Bool[Tensor, "stay pair"]
) -> Float[Tensor, ""]:
    """Mean squared change of static features between neighbouring real pairs; zero where no stay has two."""
    return _mean_where((static[:, 1:] - static[:, :-1]) ** 2, pair_mask[:, 1:] & pair_mask[:, :-1])


def static_loss(
    static: Float[Tensor, "stay pair region width"],
    reversed_static: Float[Tensor, "stay pair region width"],
    pair_mask: Bool[Tensor, "stay pair"],
) -> Float[Tensor, ""]:
    """Mean squared change of static features under time reversal; no gradient flows through the reversed ones."""
    return _mean_where((static - reversed_static.detach()) ** 2, pair_mask)


def _mean_where(values: Float[Tensor, "stay pair *rest"], mask: Bool[Tensor, "stay pair"]) -> Float[Tensor, ""]:
    """Mean of `values` over the pairs where `mask` is true; zero where it is true nowhere."""
    per_pair = values.flatten(2).mean(dim=2)
    return (per_pair * mask).sum() / mask.sum().clamp(min=1)
