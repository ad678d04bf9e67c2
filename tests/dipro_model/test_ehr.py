"""What the hourly embedding keeps of an hour."""

import torch

from dipro_model.ehr import GlobalEhr
from dipro_model.vocabulary import EHR_VARIABLES


def test_beside_a_spread_bias_an_hour_shows_how_far_its_values_lie() -> None:
    torch.manual_seed(0)
    part = GlobalEhr(width=64, num_heads=8, dropout=0.0)
    values = torch.randn(20, len(EHR_VARIABLES))

    def moves() -> torch.Tensor:
        """How much doubling all values changes the direction that the layer norm leaves, as 1 - cosine."""
        return 1 - torch.cosine_similarity(part.embedding(values), part.embedding(2 * values), dim=-1)

    torch.nn.init.zeros_(part.embedding[0].bias)
    assert moves().max() < 1e-4
    part.spread_bias(1.0)
    assert moves().min() > 0.02
