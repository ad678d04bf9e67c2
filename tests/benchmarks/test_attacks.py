"""The attacks of benchmarks/ on what is known to leak; their arithmetic against scikit-learn, scipy and autograd."""

import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial.distance import cosine
from scipy.stats import norm
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from dipro_model import Batch, ClassWeights, collate, objective
from federation.initial import initial_model
from tests.make_cohort import write_cohort

SMALL = (
    *("model.backbone_depth=10", "model.crop_pixels=16", "model.width=16", "model.num_transformer_layers=1"),
    *("model.dropout=0.0", "training.batch_norm=frozen", "training.class_weights=none", "training.weight_decay=0.0"),
    *("training.optimizer=sgd", "training.learning_rate=1.0", "training.schedule=constant", "training.batch_size=1"),
    *("training.accumulated_batches=1", "federation.rounds=1", "federation.local_work=steps"),
    *("federation.local_steps=1", "federation.check_duplicates=false"),
)


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Any:
    """Benchmarks are scripts that import their neighbours."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def membership(_scripts: None) -> Any:
    return importlib.import_module("membership")


@pytest.fixture(scope="module")
def inversion(_scripts: None) -> Any:
    return importlib.import_module("inversion")


@pytest.fixture(scope="module")
def site_training(_scripts: None) -> Any:
    return importlib.import_module("site_training")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "site", num_patients=16)


def _halves(models: int, patients: int, seed: int = 0) -> np.ndarray:
    """bool [model, patient]: half of the models have each patient."""
    return np.random.default_rng(seed).random((models, patients)).argsort(axis=0) < models // 2


@pytest.mark.parametrize("digits", [1, 8])
def test_the_threshold_is_the_best_of_the_roc_curve(membership: Any, digits: int) -> None:
    """With one digit many scores are equal."""
    generator, inside = np.random.default_rng(1), _halves(8, 50).ravel()
    scores = np.round(generator.normal(size=inside.size) + 0.7 * inside, digits)
    false, true, thresholds = roc_curve(inside, scores, drop_intermediate=False)
    found = membership._best_threshold(scores, inside)
    called = scores >= found
    assert called[inside].mean() - called[~inside].mean() == pytest.approx((true - false).max(), abs=1e-12)
    assert found in thresholds[np.isclose(true - false, (true - false).max())]


def test_the_advantage_of_a_target_is_read_off_its_own_roc_curve(membership: Any) -> None:
    inside = _halves(6, 40)
    scores = np.random.default_rng(2).normal(size=inside.shape) + inside
    for target, advantage in enumerate(membership.advantages(scores, inside)):
        others = np.arange(6) != target
        false, true, thresholds = roc_curve(inside[others].ravel(), scores[others].ravel(), drop_intermediate=False)
        threshold = thresholds[np.argmax(true - false)]
        false, true, thresholds = roc_curve(inside[target], scores[target], drop_intermediate=False)
        place = np.flatnonzero(thresholds >= threshold)[-1]
        assert advantage == pytest.approx((true - false)[place], abs=1e-12)


def test_the_likelihood_ratio_is_that_of_two_normal_distributions(membership: Any) -> None:
    inside = _halves(10, 7)
    margin = np.random.default_rng(3).normal(size=inside.shape) + 2 * inside
    found = membership.likelihood_ratios(margin, inside)
    for target in range(10):
        others = [model for model in range(10) if model != target]
        logs = []
        for kind in (True, False):
            values = {each: [margin[m, each] for m in others if inside[m, each] == kind] for each in range(7)}
            means = {each: np.mean(values[each]) for each in range(7)}
            spread = math.sqrt(np.mean([(v - means[each]) ** 2 for each in range(7) for v in values[each]]))
            logs.append(np.array([norm.logpdf(margin[target, each], means[each], spread) for each in range(7)]))
        np.testing.assert_allclose(found[target], logs[0] - logs[1], atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_what_is_allowed_is_the_most_that_any_attack_can_have(membership: Any, epsilon: float) -> None:
    """The largest true less false positive rate within the inequalities of (epsilon, delta), by a linear program."""
    delta, factor = 0.01, math.exp(epsilon)
    # true <= factor false + delta, false <= factor true + delta, and the same of those who are not called
    rows = [[1, -factor], [-factor, 1], [-1, factor], [factor, -1]]
    bounds = [delta, delta, factor - 1 + delta, factor - 1 + delta]
    best = linprog([-1, 1], A_ub=rows, b_ub=bounds, bounds=[(0, 1), (0, 1)])
    assert membership.allowed(epsilon, delta) == pytest.approx(-best.fun, abs=1e-9)


class Memory(nn.Module):
    """A model that knows its members' outcomes by heart, by their demographics, and nothing of anybody else's."""

    def __init__(self, members: Batch, seed: int) -> None:
        super().__init__()
        assert members.label is not None
        self._known = dict(zip(map(_who, members.demographics), members.label.tolist(), strict=True))
        self._draw = np.random.default_rng(seed)

    def forward(self, batch: Batch) -> SimpleNamespace:
        logits = [
            (6.0 if self._known[_who(each)] else -6.0) if _who(each) in self._known else 0.0
            for each in batch.demographics
        ]
        noisy = torch.tensor(logits) + torch.from_numpy(self._draw.normal(size=len(logits)))
        return SimpleNamespace(logits=noisy[:, None, None])


def _who(demographics: Tensor) -> bytes:
    return demographics.numpy().tobytes()


@pytest.mark.parametrize(("remembers", "least", "most"), [(True, 0.9, 1.0), (False, -0.35, 0.35)])
def test_both_attacks_find_members_that_a_model_has_by_heart_and_no_others(
    membership: Any, site_training: Any, cohort: Path, remembers: bool, least: float, most: float
) -> None:
    (settings,) = site_training.defences(SMALL, (), ()).values()
    made = iter(range(100))

    def train(members: Any) -> Memory:
        model = Memory(collate([members[number] for number in range(len(members))]), next(made))
        if not remembers:
            model._known = {}
        return model

    everybody = len({subject for _, subject in site_training.samples_of(cohort, settings, "train").patients})
    found = membership.attack(train, cohort, settings, _halves(12, everybody))
    for attack in ("loss threshold", "likelihood ratio"):
        assert least <= found[attack]["advantage"] <= most, attack
    assert (found["right_outcomes"]["members"] == 1.0) is remembers


def test_defences_are_settings_without_and_with_the_guarantee(site_training: Any) -> None:
    private = ("patient_privacy.sampling_rate=1.0", "patient_privacy.statistics=public")
    found = site_training.defences(SMALL, private, [8, 1])
    assert list(found) == [None, 8, 1]
    assert [each.patient_privacy.enabled for each in found.values()] == [False, True, True]
    assert [found[epsilon].patient_privacy.epsilon for epsilon in (8, 1)] == [8.0, 1.0]
    assert found[8].training == found[1].training == found[None].training


def test_a_plain_step_of_one_patient_is_the_gradient(inversion: Any, site_training: Any, cohort: Path) -> None:
    (settings,) = site_training.defences(SMALL, (), ()).values()
    samples = site_training.samples_of(cohort, settings, "train")
    samples = site_training.samples_of(cohort, settings, "train", [samples.patients[0][1]])
    update = inversion.update_of(site_training.site_training(settings), settings, samples)
    model, batch = initial_model(settings).eval(), collate([samples[0]])
    total, _ = objective(model(batch), batch, model.config, ClassWeights())
    parameters = list(model.parameters())
    expected = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    # A step is made of weights in float32: each lost what its last bit holds.
    for found, gradient, weight in zip(update, expected, parameters, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=float(weight.detach().abs().max()) * 2e-7 + 1e-6)
    assert sum(float(each.abs().sum()) for each in update) > 0


def test_distance_and_likeness_are_those_of_others(inversion: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = ([torch.randn(shape, generator=generator) for shape in ((3, 4), (5,))] for _ in range(2))
    flat = [np.concatenate([each.numpy().ravel() for each in one]) for one in (ours, theirs)]
    assert float(inversion._distance(tuple(ours), theirs)) == pytest.approx(cosine(*flat), abs=1e-6)
    true, other = (torch.rand((8, 8), generator=generator) for _ in range(2))
    found = inversion.likeness(other, true)
    error = np.mean((true.numpy() - other.numpy()) ** 2)
    assert found["correlation"] == round(float(np.corrcoef(true.numpy().ravel(), other.numpy().ravel())[0, 1]), 3)
    assert found["psnr_db"] == round(10 * math.log10(1 / error), 1)
    assert inversion.likeness(torch.full((8, 8), 0.5), true)["correlation"] == 0.0


@dataclass(frozen=True)
class Regions:
    """As much of a batch as the search for a region looks at."""

    regions: Tensor


class Linear:
    """A model whose gradient is the first region: it tells every pixel."""

    config = None

    def __init__(self) -> None:
        self._weights = nn.Parameter(torch.zeros(12, 12))

    def parameters(self) -> list[nn.Parameter]:
        return [self._weights]

    def __call__(self, batch: Regions) -> Tensor:
        return batch.regions[0, 0, 0, 0] * self._weights


def test_a_region_is_rebuilt_from_a_gradient_that_tells_it(inversion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "objective", lambda output, *rest, **more: (output.sum(), {}))
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 12), torch.linspace(0, 3, 12), indexing="ij")
    true = 0.5 + 0.4 * torch.sin(rows) * torch.cos(columns)
    batch = Regions(torch.zeros(1, 2, 1, 1, 12, 12))
    found = inversion.rebuilt(Linear(), batch, [true], 120, separable=False)
    assert inversion.likeness(found, true)["correlation"] > 0.95
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32))
    blind = inversion.rebuilt(Linear(), batch, [noise], 120, separable=False)
    assert abs(inversion.likeness(blind, true)["correlation"]) < 0.5, "of noise comes no region"


def test_one_region_of_one_radiograph_is_put_in_and_no_other(inversion: Any) -> None:
    batch, region = Regions(torch.zeros(1, 2, 3, 1, 4, 4)), torch.rand(4, 4)
    changed = inversion.with_region(batch, region).regions
    assert torch.equal(changed[0, 0, 0, 0], region)
    assert float(changed.abs().sum()) == pytest.approx(float(region.sum()))
    assert float(batch.regions.abs().sum()) == 0
