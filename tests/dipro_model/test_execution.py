"""However the image network is computed, the result is the same: exactly, or to what bfloat16 can hold."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dipro_model import Batch, ClassWeights, DiPro, Execution, Stay, collate, objective
from dipro_model.vocabulary import Task


@pytest.fixture
def batch(make_stay: Callable[..., Stay]) -> Batch:
    stays = [make_stay(frames=2, seed=1, pixels=32), make_stay(frames=3, seed=2, pixels=32)]
    return collate(stays)


def step(model: DiPro, batch: Batch, execution: Execution) -> tuple[DiPro, float]:
    """A copy of the model after a forward and backward pass in training mode, and its loss."""
    model = copy.deepcopy(model).train()
    model.backbone.execute(execution)
    torch.manual_seed(3)
    total, _ = objective(model(batch), batch, model.config, ClassWeights())
    total.backward()
    return model, float(total.detach())


def test_activations_computed_again_change_nothing(make_model, batch: Batch) -> None:
    model = make_model(Task.MORTALITY)
    kept, kept_loss = step(model, batch, Execution())
    again, again_loss = step(model, batch, Execution(checkpoint_activations=True))
    assert again_loss == kept_loss
    for (name, one), other in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    # Running statistics move once, although the network ran twice.
    for (name, one), other in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert all(norm.momentum for norm in again.modules() if isinstance(norm, torch.nn.BatchNorm2d))


class _Convolutions(TorchDispatchMode):
    """Counts convolutions and the number formats that they are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.formats = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.count += 1
            self.formats.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_activations_are_indeed_computed_again(make_model, batch: Batch) -> None:
    model, counts = make_model(Task.MORTALITY), {}
    for again in (False, True):
        with _Convolutions() as seen:
            step(model, batch, Execution(checkpoint_activations=again))
        counts[again] = seen.count
    assert counts[True] == 2 * counts[False] > 0


def test_half_precision_is_close_and_stays_in_the_image_network(make_model, batch: Batch) -> None:
    model = make_model(Task.MORTALITY, channels=64).float()
    exact, exact_loss = step(model, batch, Execution())
    with _Convolutions() as seen:
        half, half_loss = step(model, batch, Execution(precision="bf16"))
    assert seen.formats == {torch.bfloat16}
    assert half_loss == pytest.approx(exact_loss, rel=1e-2)
    assert half_loss != exact_loss
    assert {value.dtype for value in half.state_dict().values() if value.is_floating_point()} == {torch.float32}
    gradients = [
        torch.cat([p.grad.flatten() for p in each.heads.parameters() if p.grad is not None]) for each in (exact, half)
    ]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_scoring_keeps_no_activations(make_model, batch: Batch) -> None:
    model = make_model(Task.MORTALITY)
    with torch.no_grad():
        plain = model(batch).logits
        model.backbone.execute(Execution(checkpoint_activations=True))
        assert torch.equal(model(batch).logits, plain)


def test_two_ways_of_planning_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of the two"):
        Execution(compile=True, checkpoint_activations=True)
