"""A head of few numbers for a network that is not trained: linear, on the principal components of class tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST_SPREAD = 1e-5
"""Of the largest spread: components below it are rounding."""


class LinearReadout(nn.Module):
    """Logits as a linear function of the whitened principal components of a class token.

    Components are not trained: uncorrelated, of mean 0 and variance 1, they let every direction learn equally fast, and
    a few dozen of them need a few dozen numbers a class. Before `components_of` has set them they are as drawn.
    """

    def __init__(self, *, width: int, num_components: int, num_classes: int) -> None:
        super().__init__()
        self.components = nn.Linear(width, num_components).requires_grad_(False)
        self.linear = nn.Linear(num_components, num_classes)
        # A convex problem, for which zero is as good a start as any and the same for everyone.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "stay width"]) -> Float[Tensor, "stay class"]:
        return self.linear(self.components(tokens))


def components_of(tokens: Float[Tensor, "stay width"], num_components: int) -> nn.Linear:
    """The map from class tokens to their `num_components` widest principal components, each of mean 0 and variance 1.

    Raises ValueError where the tokens vary in fewer directions.
    """
    mean = tokens.double().mean(dim=0)
    _, lengths, directions = torch.linalg.svd(tokens.double() - mean, full_matrices=False)
    num_real = int((lengths > _LEAST_SPREAD * lengths[0]).sum()) if len(lengths) else 0
    if num_real < num_components:
        raise ValueError(
            f"expected class tokens of {len(tokens)} samples that vary in {num_components} directions or more, found "
            f"{num_real}; ask for fewer components, or name larger cohorts"
        )
    spreads = lengths[:num_components] / len(tokens) ** 0.5
    found = nn.Linear(tokens.shape[1], num_components).requires_grad_(False)
    found.weight.copy_(directions[:num_components] / spreads[:, None])
    found.bias.copy_(-(directions[:num_components] @ mean) / spreads)
    return found


@torch.no_grad()
def linear_readout(
    tokens: Float[Tensor, "stay width"], logits: Float[Tensor, "stay class"], num_components: int
) -> LinearReadout:
    """The linear head that is nearest to one that gave these logits, in least squares over these stays.

    Raises ValueError where the tokens vary in fewer directions than `num_components`.
    """
    readout = LinearReadout(width=tokens.shape[1], num_components=num_components, num_classes=logits.shape[1])
    readout.components = components_of(tokens, num_components)
    # Components are uncorrelated and of variance 1: products are the solution.
    values, wanted = readout.components(tokens).double(), logits.double()
    readout.linear.bias.copy_(wanted.mean(dim=0))
    readout.linear.weight.copy_(wanted.T @ values / len(values))
    return readout
