"""Linear heads on principal components: against scikit-learn, and what of the network they leave alone."""

from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from dipro_model import DiPro, DiProConfig
from dipro_model.readout import LinearReadout, components_of, linear_readout
from dipro_model.vocabulary import Task


@pytest.fixture
def tokens() -> torch.Tensor:
    """[stay, width] of spreads from 10 to 0.01, far from zero, as class tokens are."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    return torch.randn(200, 12, generator=generator) * torch.logspace(1, -2, 12) @ mixed + 30


def test_components_are_those_of_an_independent_analysis(tokens: torch.Tensor) -> None:
    ours = components_of(tokens, 7)(tokens).detach().double()
    theirs = torch.from_numpy(PCA(7, whiten=True, svd_solver="full").fit_transform(tokens.double().numpy()))
    # The sign of a component is free; scikit-learn divides by one stay less.
    theirs *= (len(tokens) / (len(tokens) - 1)) ** 0.5 * torch.sign((ours * theirs).sum(dim=0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    torch.testing.assert_close(ours.T @ ours / len(ours), torch.eye(7).double(), rtol=0, atol=1e-3)


def test_the_readout_is_the_nearest_linear_head(tokens: torch.Tensor) -> None:
    logits = torch.stack([tokens[:, 0].tanh(), tokens[:, 1] ** 2 / 900], dim=1)
    readout = linear_readout(tokens, logits, 12)
    wanted = LinearRegression().fit(tokens.double().numpy(), logits.numpy()).predict(tokens.double().numpy())
    torch.testing.assert_close(readout(tokens), torch.from_numpy(wanted).float(), rtol=0, atol=2e-3)


def test_more_components_than_directions_are_refused(tokens: torch.Tensor) -> None:
    flat = tokens.clone()
    flat[:, 4:] = 0
    with pytest.raises(ValueError, match="vary in 5 directions or more, found 4"):
        components_of(flat, 5)
    with pytest.raises(ValueError, match="of 3 samples that vary in 3 directions or more, found 2"):
        components_of(tokens[:3], 3)


@pytest.mark.parametrize("task", list(Task))
def test_only_linear_heads_learn(task: Task) -> None:
    config = replace(DiProConfig.published(task), width=16, trained="readout", num_components=5)
    model = DiPro(config)
    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    assert trained.keys() == {
        f"heads.{output}.linear.{name}" for output in range(config.num_outputs) for name in ("weight", "bias")
    }
    assert sum(trained.values()) == config.num_outputs * config.num_classes * 6
    assert all(isinstance(head, LinearReadout) for head in model.heads)


def test_a_file_that_knows_no_components_is_one_without() -> None:
    values = DiProConfig.published(Task.MORTALITY).to_dict()
    del values["num_components"], values["trained"]
    assert DiProConfig.from_dict(values) == DiProConfig.published(Task.MORTALITY)


def test_more_components_than_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="num_components: expected at most the width, 16"):
        replace(DiProConfig.published(Task.MORTALITY), width=16, trained="readout", num_components=17)
