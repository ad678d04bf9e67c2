"""Linear maps by oneDNN against torch's own, on whatever processor runs the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dipro_model import ClassWeights, DiPro, Stay, collate, linear, objective
from dipro_model.execution import faster_on_cpu
from dipro_model.linear import LinearMap
from dipro_model.vocabulary import Task

PRODUCT = linear._product


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN multiplied; here it is taken for the faster one whatever the processor and the size."""
    shapes: list[tuple[int, ...]] = []

    def product(rows: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shapes.append((*rows.shape, len(columns)))
        return PRODUCT(rows, columns, bias)

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "_LEAST_PRODUCTS", 0)
    monkeypatch.setattr(linear, "_product", product)
    return shapes


@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_torchs(products: list[tuple[int, ...]], has_bias: bool) -> None:
    torch.manual_seed(0)
    layer, values = linear.Linear(7, 5, bias=has_bias), torch.randn(2, 3, 7, requires_grad=True)
    expected = layer(values)
    assert not products  # nobody asked for it yet
    with faster_on_cpu():
        found = layer(values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    wanted, factors = [values, *layer.parameters()], torch.randn(2, 3, 5)
    gradients, references = (torch.autograd.grad((each * factors).sum(), wanted) for each in (found, expected))
    torch.testing.assert_close(gradients, references, rtol=1e-6, atol=1e-6)
    assert products == [(6, 7, 5), (6, 5, 7), (5, 6, 7)]


def test_what_needs_no_gradient_is_not_multiplied_for_one(products: list[tuple[int, ...]]) -> None:
    layer = linear.Linear(7, 5)
    layer.weight.requires_grad_(False)
    with faster_on_cpu():
        layer(torch.randn(6, 7)).sum().backward()
    assert products == [(6, 7, 5)]
    assert layer.bias.grad is not None


@pytest.mark.parametrize(
    "values", [torch.randn(6, 7, dtype=torch.float64), torch.randn(6, 7, dtype=torch.bfloat16)], ids=["double", "half"]
)
def test_other_numbers_are_left_to_torch(products: list[tuple[int, ...]], values: torch.Tensor) -> None:
    layer = linear.Linear(7, 5).to(values.dtype)
    with faster_on_cpu():
        assert torch.equal(layer(values), torch.nn.functional.linear(values, layer.weight, layer.bias))
    assert not products


def test_autocast_and_small_products_are_left_to_torch(
    products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, values = linear.Linear(7, 5), torch.randn(6, 7)
    with faster_on_cpu(), torch.autocast("cpu", torch.bfloat16):
        assert layer(values).dtype == torch.bfloat16
    monkeypatch.setattr(linear, "_LEAST_PRODUCTS", 6 * 7 * 5 + 1)
    with faster_on_cpu():
        layer(values)
    assert not products


@pytest.mark.parametrize("task", list(Task))
def test_the_whole_model_says_and_learns_the_same(
    products: list[tuple[int, ...]], make_model: Callable[..., DiPro], make_stay: Callable[..., Stay], task: Task
) -> None:
    model = make_model(task).float()
    batch = collate([make_stay(frames=frames, seed=frames, task=task) for frames in (2, 4)])
    results = []
    for context in (faster_on_cpu, torch.enable_grad):
        with context():
            output = model(batch)
        total, _ = objective(output, batch, model.config, ClassWeights())
        gradients = torch.autograd.grad(total, [each for each in model.parameters() if each.requires_grad])
        results.append((output.logits, output.region_attention, total, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert len(products) > 60


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, capability: str, faster: bool
) -> None:
    processors = tmp_path / "cpuinfo"
    processors.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(linear, "_PROCESSORS", processors)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert linear.onednn_is_faster.__wrapped__() is faster


def test_maps_as_values_are_those_of_their_layers() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 4).double(), nn.Linear(4, 8).double()
    values = torch.randn(5, 6, dtype=torch.float64)
    one = LinearMap.of(second).behind(LinearMap.of(first))
    torch.testing.assert_close(one(values), second(first(values)))
    low, high = one.outputs(2)
    torch.testing.assert_close(torch.cat([low(values), high(values)], dim=-1), one(values))
    torch.testing.assert_close(LinearMap.beside([high, low])(values), torch.cat([high(values), low(values)], dim=-1))


def test_a_map_behind_another_hands_gradients_to_both() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    values = torch.randn(5, 3, dtype=torch.float64)
    parameters = [*first.parameters(), *second.parameters()]
    expected = torch.autograd.grad(second(first(values)).square().sum(), parameters)
    found = torch.autograd.grad(LinearMap.of(second).behind(LinearMap.of(first))(values).square().sum(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
