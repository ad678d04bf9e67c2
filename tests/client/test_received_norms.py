"""Batch norm by received statistics: they normalise what goes through; told afterwards are those of the work."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from client.received_norms import received_norms


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()


def test_statistics_are_those_of_all_that_went_in_and_change_nothing_before_the_end() -> None:
    network, values = _network(), torch.randn(50, 3) * 7 + 100
    norm = network[1]
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(4.0)
    expected = network(values)
    with received_norms(network):
        parts = torch.cat([network(part) for part in values.split([1, 20, 29])])
        torch.testing.assert_close(parts, expected)
        assert norm.running_mean.tolist() == [5.0] * 4
    went_in = network[0](values).detach().double().numpy()
    np.testing.assert_allclose(norm.running_mean.numpy(), went_in.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), went_in.var(axis=0, ddof=1), rtol=1e-5)
    network(values)
    np.testing.assert_allclose(norm.running_mean.numpy(), went_in.mean(axis=0), rtol=1e-6)


def test_images_are_counted_by_channel() -> None:
    network, images = nn.Sequential(nn.BatchNorm2d(3)).eval(), torch.randn(5, 3, 4, 6)
    with received_norms(network):
        network(images)
    torch.testing.assert_close(network[0].running_mean, images.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network[0].running_var, images.var(dim=(0, 2, 3)))


def test_frozen_layers_and_a_single_value_change_nothing() -> None:
    frozen = _network().requires_grad_(False)
    before = frozen[1].running_mean.clone()
    with received_norms(frozen):
        frozen(torch.randn(9, 3))
    torch.testing.assert_close(frozen[1].running_mean, before)
    network = _network()
    with received_norms(network):
        network(torch.randn(1, 3))
    torch.testing.assert_close(network[1].running_mean, before)


def test_work_that_fails_changes_nothing() -> None:
    network = _network()
    before = network[1].running_mean.clone()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), received_norms(network):
        torch.stack([network(torch.randn(9, size)) for size in (3, 5)])
    torch.testing.assert_close(network[1].running_mean, before)
    assert not network[1]._forward_pre_hooks


def _gradients(network: nn.Module, losses: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    network.zero_grad()
    for loss in losses:
        loss.backward()
    return [each.grad.clone() for each in network.parameters() if each.grad is not None]


def _loss(network: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Mean over the values, of a kind that cares for the sign; the norm is used twice, as DiPro uses its own."""
    return (network(values) - 1).pow(2).mean() + network(2 * values).pow(3).mean()


@pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
def test_gradients_of_two_sites_are_those_of_one_batch_of_both(images: bool) -> None:
    """With the statistics of both and the gradients of both's batch norm; torch's own batch norm is the reference."""
    torch.manual_seed(0)
    shape = (3, 4, 5) if images else (3,)
    first = nn.Conv2d(3, 4, 1) if images else nn.Linear(3, 4)
    network = nn.Sequential(first, nn.BatchNorm2d(4) if images else nn.BatchNorm1d(4), nn.Tanh()).double()
    nn.init.normal_(network[1].weight)
    sites = [torch.randn(10, *shape).double() - 2, torch.randn(30, *shape).double() + 2]
    union = torch.cat(sites)

    # One batch of all with each use's own statistics would need them by use; here both uses share those of the first.
    def one_batch(values: torch.Tensor) -> torch.Tensor:
        entering = network[0](torch.cat([values, 2 * values]))
        normed = nn.functional.batch_norm(
            entering, None, None, network[1].weight, network[1].bias, training=True, eps=network[1].eps
        )
        once, twice = network[2](normed).split(len(values))
        return (once - 1).pow(2).mean() + twice.pow(3).mean()

    expected = _gradients(network, [one_batch(union)])
    norm = network.eval()[1]
    with torch.no_grad():
        entering = network[0](torch.cat([union, 2 * union])).transpose(0, 1).flatten(1)
    norm.running_mean.copy_(entering.mean(dim=1))
    norm.running_var.copy_(entering.var(dim=1, correction=0))
    shares = [0.25, 0.75]
    told = np.zeros(8)
    for site, share in zip(sites, shares, strict=True):
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        with received_norms(network) as norms:
            _gradients(network, [_loss(network, site)])
            norms.note_gradients()
        told += share * norms.gradients
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    np.testing.assert_allclose(told, torch.cat(expected[2:4]).numpy(), rtol=1e-5)
    found: list[torch.Tensor] = []
    apart: list[torch.Tensor] = []
    for gradients, sums in ((told, found), (None, apart)):
        for site, share in zip(sites, shares, strict=True):
            mean, variance = norm.running_mean.clone(), norm.running_var.clone()
            with received_norms(network, gradients):
                own = [share * each for each in _gradients(network, [_loss(network, site)])]
            sums[:] = own if not sums else [a + b for a, b in zip(sums, own, strict=True)]
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # what is told is float32
    # Statistics taken for constants give another gradient of what lies before the norm, and the same of the norm.
    assert (apart[0] - expected[0]).abs().max() > 0.01
    torch.testing.assert_close(apart[2], expected[2], rtol=1e-6, atol=1e-9)


def test_accumulated_batches_share_what_comes_through_the_statistics() -> None:
    network, values = _network().double(), torch.randn(40, 3).double()
    gradients = np.random.default_rng(0).normal(size=8)
    with received_norms(network, gradients):
        whole = _gradients(network, [_loss(network, values)])
    network = _network().double()
    with received_norms(network, gradients, batch_share=0.5):
        halves = _gradients(network, (_loss(network, part) / 2 for part in values.split(20)))
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_told_are_the_mean_over_the_steps() -> None:
    network = _network()
    with received_norms(network) as norms:
        own = []
        for values in torch.randn(3, 20, 3):
            network.zero_grad()
            _loss(network, values).backward()
            norms.note_gradients()
            own.append(torch.cat([network[1].weight.grad, network[1].bias.grad]))
    np.testing.assert_allclose(norms.gradients, torch.stack(own).mean(dim=0).numpy(), rtol=1e-6)
    assert norms.gradients.dtype == np.float32
    with received_norms(_network()) as unused:
        unused.note_gradients()
    assert not unused.gradients.any()
