"""What one forward pass of the model returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """Predictions of a batch, the terms that its features add to the objective, and where the model looked."""

    logits: Float[Tensor, "stay output class"]
    """Progression [stay, 7, 3]; mortality [stay, 1, 1], the logit of death; length of stay [stay, 1, 4]."""

    auxiliary: dict[str, Float[Tensor, ""]]
    """Scalars `orthogonal`, `temporal`, `static`, `dynamic` over real pairs, before their factors.

    `dynamic` is without class weights here, and zero where the batch carries no region labels; the objective computes
    it from `region_logits` with the class weights of the training labels.
    """

    region_logits: Float[Tensor, "direction stay pair region disease change"]
    """Progression of each region, read forward in time (0) and from the reversed pair (1); zero where padded."""

    pair_mask: Bool[Tensor, "stay pair"]
    """True for real pairs."""

    region_attention: Float[Tensor, "stay output pair region"]
    """Weight that each class token gives to each region token in the global fusion; carries no gradient.

    Mean over heads and fusion layers. A class token also looks at class tokens and hours, so the weights of a stay's
    regions sum to less than one. Zero for padded pairs.
    """
