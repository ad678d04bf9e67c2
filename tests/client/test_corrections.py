"""Corrections of gradients against slow loops, autograd and the algorithms' own fixed points."""

import numpy as np
import pytest
import torch
from torch import nn

from client.corrections import (
    CorrectionError,
    GradientCorrection,
    scaffold_control,
    scaffold_correction,
    with_own,
)
from federation.initial import initial_model
from federation.selection import model_entries
from federation.weights import flatten_weights
from server.arithmetic import ControlChange, scaffold_control_step
from tests.small_run import small_settings


def test_scaffolds_control_is_the_mean_gradient_of_plain_steps() -> None:
    random = np.random.default_rng(0)
    start, control, own = random.normal(size=(3, 6))
    rates, gradients = [0.1, 0.05, 0.2], random.normal(size=(3, 6))
    end = start.copy()
    for rate, gradient in zip(rates, gradients, strict=True):
        end = end - rate * (gradient + scaffold_correction(control, own))
    new = scaffold_control(own, control, start, end, sum_of_rates=sum(rates))
    for entry in range(6):  # each gradient by its rate
        mean = sum(rate * gradients[step][entry] for step, rate in enumerate(rates)) / sum(rates)
        assert new[entry] == pytest.approx(mean)


def test_scaffold_finds_the_common_optimum_where_averaging_does_not() -> None:
    """Two sites with quadratics of unlike curvature: many local steps pull plain averaging to the wrong place."""
    curvature, optimum = np.array([[1.0, 8.0], [6.0, 0.5]]), np.array([[1.0, -2.0], [-3.0, 4.0]])
    best = (curvature * optimum).sum(axis=0) / curvature.sum(axis=0)
    rate, steps, num_sites = 0.05, 10, 2

    def run(corrected: bool) -> np.ndarray:
        parameters, control, own = np.zeros(2), np.zeros(2), np.zeros((2, 2))
        for _ in range(300):
            changes, moves = [], []
            for site in range(num_sites):
                local = parameters.copy()
                for _ in range(steps):
                    gradient = curvature[site] * (local - optimum[site])
                    extra = scaffold_correction(control, own[site]) if corrected else 0
                    local = local - rate * (gradient + extra)
                new = scaffold_control(own[site], control, parameters, local, sum_of_rates=rate * steps)
                changes.append(ControlChange(share=0.5, change=new - own[site]))
                moves.append(local - parameters)
                own[site] = new
            parameters, control = parameters + np.mean(moves, axis=0), scaffold_control_step(control, changes)
        return parameters

    np.testing.assert_allclose(run(corrected=True), best, atol=1e-6)
    assert np.abs(run(corrected=False) - best).max() > 0.1


def test_the_pull_is_the_gradient_of_half_the_squared_distance() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    anchor = flatten_weights(other)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    (0.3 / 2 * sum((ours - theirs.detach()).square().sum() for ours, theirs in pairs)).backward()
    expected = _gradients(model)
    _give_gradients(model, np.zeros_like(anchor))
    GradientCorrection(model, anchor=anchor, strength=0.3).apply()
    np.testing.assert_allclose(_gradients(model), expected, rtol=1e-6)


def test_dittos_personal_model_lies_between_its_own_optimum_and_the_global_one() -> None:
    optimum, anchor, strength = torch.tensor([2.0, -1.0, 1.0]), np.array([0.0, 3.0, 1.0], np.float32), 0.5
    model = nn.Linear(2, 1)
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    pull = GradientCorrection(model, anchor=anchor, strength=strength)
    for _ in range(300):
        step.zero_grad()
        flat = torch.cat([model.weight.reshape(-1), model.bias])
        (0.5 * (flat - optimum).square().sum()).backward()
        pull.apply()
        step.step()
    expected = (optimum.numpy() + strength * anchor) / (1 + strength)
    np.testing.assert_allclose(flatten_weights(model), expected, atol=1e-5)


def test_fedbn_keeps_a_sites_batch_norm_and_takes_everything_else() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    entries, own = model_entries(model), flatten_weights(model)
    received = own + np.float32(1)
    merged = with_own(received, entries.batch_norm.take(own), entries.batch_norm)
    place = 0
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            expected = own if name.startswith("1.") else received
            part = slice(place, place + tensor.numel())
            np.testing.assert_array_equal(merged[part], expected[part])
            place += tensor.numel()
    assert place == merged.size
    assert not np.shares_memory(merged, received)


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_a_models_gradients_are_corrected_in_place_as_the_flat_functions_say(freeze: str) -> None:
    model = initial_model(small_settings(f"model.freeze_backbone={freeze}"))
    entries, random = model_entries(model), np.random.default_rng(4)
    weights = entries.parameters.take(flatten_weights(model))
    constant, anchor, gradient = random.normal(size=(3, weights.size)).astype(np.float32)
    _give_gradients(model, gradient)
    GradientCorrection(model, constant=constant, anchor=anchor, strength=0.25).apply()
    expected = gradient + constant + 0.25 * (weights - anchor)
    np.testing.assert_allclose(_gradients(model), expected, rtol=1e-5, atol=1e-6)
    _give_gradients(model, gradient)
    GradientCorrection(model).apply()
    np.testing.assert_array_equal(_gradients(model), gradient)
    assert all(each.grad is None for each in model.parameters() if not each.requires_grad)


def _give_gradients(model: nn.Module, flat: np.ndarray) -> None:
    place = 0
    for name in model.state_dict():
        parameter = dict(model.named_parameters()).get(name)
        if parameter is not None and parameter.requires_grad:
            part = flat[place : place + parameter.numel()]
            parameter.grad = torch.tensor(part).reshape(parameter.shape)
            place += parameter.numel()
    assert place == flat.size


def _gradients(model: nn.Module) -> np.ndarray:
    found = [each.grad.reshape(-1) for each in model.parameters() if each.grad is not None]
    return torch.cat(found).numpy()


def test_a_parameter_without_a_gradient_gets_the_correction_alone() -> None:
    model = nn.Linear(2, 1)
    GradientCorrection(model, constant=np.array([1, 2, 3], np.float32)).apply()
    np.testing.assert_array_equal(_gradients(model), [1, 2, 3])


def test_corrections_that_do_not_fit_are_refused() -> None:
    three, two = np.zeros(3), np.zeros(2)
    with pytest.raises(CorrectionError, match=r"expected arrays \[3\], found \[2\]"):
        scaffold_correction(three, two)
    for rates in (0.0, -1.0, float("nan")):
        with pytest.raises(CorrectionError, match="expected a sum of learning rates above zero"):
            scaffold_control(three, three, three, three, sum_of_rates=rates)
    for strength in (-1.0, float("nan")):
        with pytest.raises(CorrectionError, match="expected a strength of zero or more"):
            GradientCorrection(nn.Linear(2, 1), anchor=three, strength=strength)
    with pytest.raises(CorrectionError, match=r"expected a correction \[3\], found \[2\]"):
        GradientCorrection(nn.Linear(2, 1), constant=two)
