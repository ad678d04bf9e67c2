"""Attention with masks against loops and against torch's own encoder layer."""

import math

import pytest
import torch
from torch import Tensor, nn

from dipro_model.attention import EncoderLayer, attend
from dipro_model.ehr import hours_inside, sinusoidal_positions

WIDTH, HEADS = 8, 2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def attention() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()


def slow_answer(
    attention: nn.MultiheadAttention, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One query; the answer, and the weight of each key as mean over heads."""
    (wq, wk, wv), (bq, bk, bv) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = wq @ query + bq, keys @ wk.T + bk, values @ wv.T + bv
    size, parts, looks = WIDTH // HEADS, [], torch.zeros(len(keys), dtype=torch.float64)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        share = torch.softmax(k[:, part] @ q[part] / math.sqrt(size) + bias, dim=0)
        parts.append(share @ v[:, part])
        looks = looks + share / HEADS
    return attention.out_proj(torch.cat(parts)), looks


def test_only_allowed_keys_answer_and_who_may_look_nowhere_gets_zero(attention: nn.MultiheadAttention) -> None:
    query, key, value = normal(2, 3, WIDTH, seed=1), normal(2, 4, WIDTH, seed=2), normal(2, 4, WIDTH, seed=3)
    bias = normal(2, 3, 4, seed=4)
    allowed = torch.tensor([[[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]]) > 0
    answers, looks = attend(attention, query, key, value, allowed=allowed, bias=bias, need_weights=True)
    fast, none = attend(attention, query, key, value, allowed=allowed, bias=bias)
    assert none is None
    torch.testing.assert_close(fast, answers)
    for i in range(2):
        for j in range(3):
            keys = allowed[i, j]
            if not keys.any():
                assert not answers[i, j].any()
                assert not looks[i, j].any()
                continue
            expected, weights = slow_answer(attention, query[i, j], key[i, keys], value[i, keys], bias[i, j, keys])
            torch.testing.assert_close(answers[i, j], expected)
            torch.testing.assert_close(looks[i, j, keys], weights)
            assert not looks[i, j, ~keys].any()


@pytest.mark.parametrize("fast_path", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_stay_without_any_allowed_key_gets_zero_whatever_the_kernel(
    attention: nn.MultiheadAttention, fast_path: bool, gradients: bool
) -> None:
    tokens, allowed = normal(2, 3, WIDTH, seed=5).requires_grad_(gradients), torch.zeros(2, 1, 3, dtype=torch.bool)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        with torch.set_grad_enabled(gradients):
            answers, _ = attend(attention.eval(), tokens, tokens, tokens, allowed=allowed)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert not answers.any()
    if gradients:
        answers.sum().backward()
        assert not tokens.grad.any()
        assert all(not parameter.grad.any() for parameter in attention.parameters())


def test_encoder_layer_equals_torchs() -> None:
    torch.manual_seed(1)
    reference = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True).double()
    layer = EncoderLayer(width=WIDTH, num_heads=HEADS, dropout=0.0).double()
    layer.load_state_dict(reference.state_dict())
    tokens = normal(2, 5, WIDTH, seed=6)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    found, looks = layer(tokens, mask, need_weights=True)
    torch.testing.assert_close(found[mask], reference(tokens, src_key_padding_mask=~mask)[mask])
    torch.testing.assert_close(looks.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))
    assert not looks[1, :, ~mask[1]].any()


@pytest.mark.parametrize("first", [1, 3])
def test_encoder_layer_gives_the_first_tokens_what_it_gives_them_among_all(first: int) -> None:
    torch.manual_seed(1)
    layer = EncoderLayer(width=WIDTH, num_heads=HEADS, dropout=0.0).double()
    tokens = normal(2, 5, WIDTH, seed=6).requires_grad_()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    everyone, all_looks = layer(tokens, mask, need_weights=True)
    found, looks = layer(tokens, mask, need_weights=True, first=first)
    torch.testing.assert_close(found, everyone[:, :first])
    torch.testing.assert_close(looks, all_looks[:, :first])
    wanted = [*layer.parameters(), tokens]
    gradients = torch.autograd.grad(found.square().sum(), wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(everyone[:, :first].square().sum(), wanted))


def test_both_ends_of_an_interval_belong_to_it() -> None:
    hours = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    intervals = torch.tensor([[[2.0, 4.0], [4.5, 9.0]], [[1.0, 3.0], [0.0, 9.0]]])
    ehr_mask = torch.tensor([[True] * 4, [True, False, True, True]])
    pair_mask = torch.tensor([[True, True], [True, False]])
    expected = [[[0, 1, 1, 1], [0, 0, 0, 0]], [[1, 0, 1, 0], [0, 0, 0, 0]]]
    assert hours_inside(hours, ehr_mask, intervals, pair_mask).int().tolist() == expected


def test_positions_are_sines_and_cosines() -> None:
    table = sinusoidal_positions(60, 6, like=torch.zeros(1, dtype=torch.float64))
    for step in (0, 1, 59):
        expected = [f(step * 10000 ** (-2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
        assert table[step].tolist() == pytest.approx(expected, abs=1e-5)
    assert table.dtype == torch.float64
    torch.testing.assert_close(table, table.float().double(), rtol=0, atol=0)
