"""Batch norm by received statistics: they normalise what goes through; told afterwards are those of the work."""

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


def test_gradients_of_two_sites_are_those_of_their_union() -> None:
    """With the batch's own statistics they are not: the sites' values lie apart."""
    network = _network()
    sites = [torch.randn(30, 3) - 2, torch.randn(30, 3) + 2]

    def gradient(values: torch.Tensor) -> torch.Tensor:
        network.zero_grad()
        network(values).square().mean().backward()
        found = network[0].weight.grad
        assert found is not None
        return found.clone()

    with received_norms(network):
        together = sum(gradient(site) for site in sites) / 2
        torch.testing.assert_close(together, gradient(torch.cat(sites)))
    network.train()
    apart = sum(gradient(site) for site in sites) / 2
    assert (apart - gradient(torch.cat(sites))).abs().max() > 0.01
