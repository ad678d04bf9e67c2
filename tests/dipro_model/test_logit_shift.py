"""What a site adds to its logits while it trains, against Bayes' rule."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional

from dipro_model import ClassWeights, logit_shift_from_counts
from dipro_model.losses import task_loss
from dipro_model.vocabulary import Task

MANY = 10**7
"""So many labels that the one added to each count is nothing."""


def _posteriors(shares: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[value, class]: by Bayes' rule, where values of class c are normal about c."""
    densities = norm.pdf(values[:, None], loc=np.arange(len(shares)))
    return shares * densities / (shares * densities).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("task", [Task.MORTALITY, Task.LENGTH_OF_STAY])
def test_the_logits_of_all_sites_with_the_shift_are_a_sites_own_posterior(task: Task) -> None:
    shares = [[0.2, 0.8], [0.9, 0.1]] if task is Task.MORTALITY else [[0.1, 0.2, 0.3, 0.4], [0.6, 0.2, 0.15, 0.05]]
    own, everywhere = np.array(shares)
    values = np.linspace(-3, 6, 50)
    shift = logit_shift_from_counts(
        [(own * MANY).astype(int).tolist()], [(everywhere * MANY).astype(int).tolist()], task
    )
    logs = torch.from_numpy(np.log(_posteriors(everywhere, values)))
    if task is Task.MORTALITY:
        found = ((logs[:, 1:] - logs[:, :1]) + shift).sigmoid()
        expected = _posteriors(own, values)[:, 1:]
    else:
        found, expected = (logs + shift).softmax(dim=1), _posteriors(own, values)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_equal_shares_are_shifted_by_nothing() -> None:
    counts = [[40, 7, 3]] * 7
    assert not logit_shift_from_counts(counts, counts, Task.DISEASE_PROGRESSION).any()
    assert not logit_shift_from_counts([[5, 5]], [[700, 700]], Task.MORTALITY).any()


def test_a_class_that_the_site_lacks_has_a_finite_shift() -> None:
    shift = logit_shift_from_counts([[0, 30, 0, 10]], [[100, 100, 0, 100]], Task.LENGTH_OF_STAY)
    assert shift.shape == (1, 4)
    assert shift.isfinite().all()
    assert shift[0, 0] < -2 < 0 < shift[0, 1]
    with pytest.raises(ValueError, match=r"counts of mortality labels: expected \[1, 2\]"):
        logit_shift_from_counts([[1, 2, 3]], [[1, 2, 3]], Task.MORTALITY)


def test_the_tasks_own_loss_takes_it() -> None:
    logits, label = torch.randn(6, 1, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    weights = ClassWeights(logit_shift=torch.tensor([[1.5]]))
    expected = functional.binary_cross_entropy_with_logits(logits[:, 0, 0] + 1.5, label.float())
    torch.testing.assert_close(task_loss(logits, label, Task.MORTALITY, weights.to("cpu")), expected)
    logits, label = torch.randn(6, 7, 3), torch.randint(0, 4, (6, 7))
    shift = torch.randn(7, 3)
    found = task_loss(logits, label, Task.DISEASE_PROGRESSION, ClassWeights(logit_shift=shift))
    expected = sum(functional.cross_entropy(logits[:, k] + shift[k], label[:, k], ignore_index=3) for k in range(7))
    torch.testing.assert_close(found, expected)
