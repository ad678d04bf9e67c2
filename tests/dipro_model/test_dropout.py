"""Dropout from sixteen bits an element against what dropout is, and against torch's own where that is asked."""

import pytest
import torch
from torch import Tensor

from dipro_model.dropout import Dropout, dropout
from dipro_model.execution import faster_on_cpu

SIZE = 400_003
"""No multiple of four: one draw decides for four elements."""


def drawn(probability: float, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """What becomes of ones."""
    torch.manual_seed(seed)
    with faster_on_cpu():
        return dropout(torch.ones(SIZE, dtype=dtype), probability)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_each_element_is_zeroed_with_the_probability(probability: float) -> None:
    zeroed = drawn(probability) == 0
    for part in (zeroed, *(zeroed[first::4] for first in range(4))):
        spread = (probability * (1 - probability) / len(part)) ** 0.5
        assert abs(part.double().mean().item() - probability) < 5 * spread + 2**-17


def test_neighbours_do_not_know_of_one_another() -> None:
    zeroed = (drawn(0.5) == 0).double() - 0.5
    for distance in range(1, 9):
        products = 4 * zeroed[distance:] * zeroed[:-distance]
        assert abs(products.mean().item()) < 5 * len(products) ** -0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_makes_up_for_what_is_not(dtype: torch.dtype) -> None:
    values = drawn(0.1, dtype=dtype)
    assert values.dtype == dtype
    kept = values[values != 0].unique()
    expected = 2**16 / (2**16 - round(0.1 * 2**16))  # the mean over all draws is 1
    torch.testing.assert_close(kept, torch.tensor([expected], dtype=dtype))


def test_gradients_go_where_values_went() -> None:
    values = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(0)
    with faster_on_cpu():
        found = dropout(values, 0.4)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(found, values * gradient)
    assert 0 < (gradient == 0).sum() < gradient.numel()


def test_the_random_state_decides() -> None:
    assert torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=1))
    assert not torch.equal(drawn(0.3, seed=1), drawn(0.3, seed=2))


def test_it_is_torchs_where_nothing_faster_is_asked_for() -> None:
    layer, values, found = Dropout(0.3), torch.randn(6, 7), []
    for each in (layer, torch.nn.Dropout(0.3)):
        torch.manual_seed(0)
        found.append(each(values))
    assert torch.equal(*found)
    with faster_on_cpu():
        torch.manual_seed(0)
        assert not torch.equal(layer(values), found[0])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_all_and_nothing(probability: float) -> None:
    values = torch.randn(6, 7)
    with faster_on_cpu():
        assert torch.equal(dropout(values, probability), values * (1 - probability))


def test_scoring_and_no_elements_pass_unchanged() -> None:
    values, nothing = torch.randn(6, 7), torch.empty(0, 3)
    with faster_on_cpu():
        assert torch.equal(Dropout(0.9).eval()(values), values)
        assert dropout(nothing, 0.9).shape == nothing.shape
