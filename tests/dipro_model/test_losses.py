"""Losses against loops that are written from their definitions, and class weights against counts."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dipro_model import ClassWeights, DiPro, DiProConfig, Stay, class_weights_from_counts, collate, objective
from dipro_model.losses import (
    dynamic_loss,
    orthogonal_loss,
    progression_loss,
    static_loss,
    task_loss,
    temporal_loss,
)
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task

MASK = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def test_orthogonal_loss_is_the_mean_squared_cosine_of_real_pairs() -> None:
    static, dynamic = normal(3, 3, 10, 5, seed=1), normal(3, 3, 10, 5, seed=2)
    squares = []
    for stay, pair in MASK.nonzero().tolist():
        for region in range(10):
            s, d = static[stay, pair, region].tolist(), dynamic[stay, pair, region].tolist()
            product = sum(a * b for a, b in zip(s, d, strict=True))
            squares.append(product**2 / (sum(a * a for a in s) * sum(b * b for b in d)))
    assert orthogonal_loss(static, dynamic, MASK).item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_temporal_loss_compares_neighbouring_real_pairs_of_one_stay() -> None:
    static = normal(3, 3, 10, 5, seed=3)
    changes = [((static[i, t + 1] - static[i, t]) ** 2).mean().item() for i, t in ((1, 0), (2, 0), (2, 1))]
    assert temporal_loss(static, MASK).item() == pytest.approx(sum(changes) / 3, rel=1e-12)
    assert temporal_loss(static[:1], MASK[:1]).item() == 0.0
    assert temporal_loss(static[:, :1], MASK[:, :1]).item() == 0.0


def test_static_loss_pulls_features_towards_the_reversed_ones_only() -> None:
    static, reverse = normal(3, 3, 10, 5, seed=4).requires_grad_(), normal(3, 3, 10, 5, seed=5).requires_grad_()
    loss = static_loss(static, reverse, MASK)
    expected = torch.stack([((static - reverse)[i, t] ** 2).mean() for i, t in MASK.nonzero().tolist()]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradient, through_reverse = torch.autograd.grad(loss, [static, reverse], allow_unused=True)
    assert through_reverse is None
    assert not gradient[~MASK].any()
    assert gradient[MASK].abs().min() > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_progression_loss_equals_a_weighted_mean_for_each_disease(weighted: bool) -> None:
    logits, labels = normal(9, 7, 3, seed=6), whole(0, 4, 9, 7, seed=7)
    labels[:, 4] = NOT_MENTIONED
    weight = torch.rand(7, 3, generator=torch.Generator().manual_seed(8)) + 0.1 if weighted else None
    expected = 0.0
    for k in range(7):
        known = [i for i in range(9) if labels[i, k] != NOT_MENTIONED]
        factors = [weight[k, labels[i, k]].item() if weighted else 1.0 for i in known]
        surprise = [-math.log(logits[i, k].softmax(0)[labels[i, k]].item()) for i in known]
        if known:
            expected += sum(f * s for f, s in zip(factors, surprise, strict=True)) / sum(factors)
    assert progression_loss(logits, labels, weight).item() == pytest.approx(expected, rel=1e-6 if weighted else 1e-12)


def test_dynamic_loss_reverses_the_label_of_the_reversed_pair_and_skips_padding() -> None:
    logits, labels = normal(2, 3, 3, 10, 7, 3, seed=9), whole(0, 4, 3, 3, 10, 7, seed=10)
    expected = 0.0
    for k in range(7):
        surprise = []
        for stay, pair in MASK.nonzero().tolist():
            for region in range(10):
                label = int(labels[stay, pair, region, k])
                if label == NOT_MENTIONED:
                    continue
                for direction, target in ((0, label), (1, {0: 1, 1: 0, 2: 2}[label])):
                    surprise.append(-logits[direction, stay, pair, region, k].log_softmax(0)[target].item())
        expected += sum(surprise) / len(surprise)
    assert dynamic_loss(logits, labels, MASK).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", [None, 7.5])
def test_mortality_loss_is_binary_cross_entropy(weight: float | None) -> None:
    logits, labels = normal(5, 1, 1, seed=11), torch.tensor([0, 1, 0, 0, 1])
    expected = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.tolist(), strict=True):
        risk = 1 / (1 + math.exp(-logit))
        expected -= (weight or 1.0) * math.log(risk) if label else math.log(1 - risk)
    weights = ClassWeights(mortality_positive=None if weight is None else torch.tensor(weight))
    for given in (labels, labels.double()):
        assert task_loss(logits, given, Task.MORTALITY, weights).item() == pytest.approx(expected / 5, rel=1e-12)


def test_labels_that_are_missing_add_zero_and_leave_gradients_defined() -> None:
    logits = normal(4, 7, 3, seed=12).requires_grad_()
    loss = progression_loss(logits, torch.full((4, 7), NOT_MENTIONED), torch.ones(7, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_class_of_weight_zero_is_left_out() -> None:
    logits, weight = normal(2, 7, 3, seed=13), torch.ones(7, 3)
    weight[:, 0] = 0.0
    labels = torch.tensor([[0] * 7, [2] * 7])
    assert progression_loss(logits, labels, weight).item() == pytest.approx(
        progression_loss(logits[1:], labels[1:], None).item(), rel=1e-12
    )
    assert progression_loss(logits[:1], labels[:1], weight).item() == 0.0


def test_class_weights_follow_from_counts() -> None:
    counts = [[20, 15, 40], [0, 5, 5], [0, 0, 0]] + [[1, 1, 1]] * 4
    balanced = class_weights_from_counts("balanced", progression=counts, mortality=(88, 12))
    published = class_weights_from_counts("published", progression=counts, mortality=(88, 12))
    expected = [[75 / 60, 75 / 45, 75 / 120], [0.0, 10 / 15, 10 / 15], [0.0] * 3] + [[1.0] * 3] * 4
    for weights in (balanced, published):
        torch.testing.assert_close(weights.progression, torch.tensor(expected))
    assert balanced.mortality_positive.item() == pytest.approx(88 / 12)
    assert published.mortality_positive.item() == pytest.approx(0.12)
    unweighted = class_weights_from_counts("none", progression=counts, mortality=(88, 12))
    assert unweighted.progression is None
    assert unweighted.mortality_positive is None
    assert class_weights_from_counts("balanced", progression=counts).mortality_positive is None


@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_weight_of_deaths_is_finite_where_a_class_is_absent(counts: tuple[int, int]) -> None:
    assert class_weights_from_counts("balanced", mortality=counts).mortality_positive.item() == 1.0
    assert math.isfinite(class_weights_from_counts("published", mortality=counts).mortality_positive.item())


def test_class_weights_equal_those_of_the_reference(shared_folder) -> None:
    import json

    import numpy as np

    counts = json.loads((shared_folder / "golden" / "train_label_counts.json").read_text())
    inputs = np.load(shared_folder / "golden" / "inputs_mort_a.npz")
    deaths = counts["mortality_inhospital"]
    # The published counts take the text "not mentioned" for a label; two diseases have it and differ by that factor.
    rows = [counts["progression"][disease] for disease in DISEASES]
    weights = class_weights_from_counts(
        "published", progression=[row[:3] for row in rows], mortality=(deaths["zeros"], deaths["ones"])
    )
    factor = torch.tensor([[sum(row[:4]) / sum(row[:3])] for row in rows])
    torch.testing.assert_close(weights.progression * factor, torch.from_numpy(inputs["progression_class_weight"]))
    assert weights.mortality_positive.item() == pytest.approx(inputs["mortality_pos_weight"].item())


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"progression": [[1, 2, 3]]}, "progression labels"), ({"mortality": (3, -1)}, "mortality labels")],
)
def test_wrong_counts_are_named(counts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_weights_from_counts("balanced", **counts)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="balanced, published or none"):
        class_weights_from_counts("inverse", mortality=(1, 1))


def test_total_is_the_weighted_sum_of_the_parts(
    make_model: Callable[..., DiPro], make_stay: Callable[..., Stay]
) -> None:
    model, batch = make_model(Task.MORTALITY), collate([make_stay(seed=1), make_stay(frames=2, seed=2)])
    total, parts = objective(model(batch), batch, model.config, ClassWeights())
    assert set(parts) == {"task", "orthogonal", "temporal", "static", "dynamic"}
    factors = {"task": 6.0, "orthogonal": 0.1, "temporal": 1.0, "static": 0.5, "dynamic": 0.1}
    expected = sum(factors[name] * parts[name].item() for name in factors)
    assert total.item() == pytest.approx(expected, rel=1e-12)


def test_auxiliary_dynamic_is_without_class_weights_and_the_objective_with(
    make_model: Callable[..., DiPro], make_stay: Callable[..., Stay]
) -> None:
    model, batch = make_model(Task.MORTALITY), collate([make_stay(seed=1)])
    output = model(batch)
    _, plain = objective(output, batch, model.config, ClassWeights())
    skewed = ClassWeights(progression=torch.tensor([[1.0, 5.0, 0.2]] * 7))
    _, weighted = objective(output, batch, model.config, skewed)
    assert output.auxiliary["dynamic"].item() == plain["dynamic"].item()
    assert weighted["dynamic"].item() == pytest.approx(
        dynamic_loss(output.region_logits, batch.region_progression, output.pair_mask, skewed.progression).item()
    )
    assert abs(weighted["dynamic"].item() - plain["dynamic"].item()) > 1e-3


def test_prediction_needs_no_label_but_the_objective_does(
    make_model: Callable[..., DiPro], make_stay: Callable[..., Stay]
) -> None:
    model, stay = make_model(Task.MORTALITY), make_stay(seed=1)
    labelled, bare = collate([stay]), collate([replace(stay, label=None, region_progression=None)])
    with torch.no_grad():
        output = model(bare)
        torch.testing.assert_close(output.logits, model(labelled).logits, rtol=0, atol=0)
    assert output.auxiliary["dynamic"].item() == 0.0
    with pytest.raises(ValueError, match="expected a batch with label"):
        objective(output, bare, model.config, ClassWeights())


def test_a_label_of_another_task_is_refused(make_model: Callable[..., DiPro], make_stay: Callable[..., Stay]) -> None:
    model, batch = make_model(Task.DISEASE_PROGRESSION), collate([make_stay(task=Task.MORTALITY)])
    with pytest.raises(ValueError, match=r"label: expected shape \[1, 7\] for disease_progression, got \[1\]"):
        objective(model(batch), batch, model.config, ClassWeights())
    assert DiProConfig.published("mortality").loss.task == 6.0
