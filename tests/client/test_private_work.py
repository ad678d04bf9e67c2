"""DP-SGD at a site: who is sampled, how much noise there is, and that nothing is done before it is written down."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.dataset import SampleSet
from client.patient_gradients import clipped_sum
from client.private_work import PrivateWork, patients_of, poisson_sample
from client.records import SiteRecords, SiteSpec
from client.training import TrainingError, class_weights, make_optimizer
from dipro_model.vocabulary import Task
from federation.initial import initial_model
from federation.settings import RunSettings
from federation.weights import flatten_weights
from tests.make_cohort import write_cohort
from tests.small_run import small_settings

PRIVATE = (
    "patient_privacy.enabled=true",
    "training.batch_norm=frozen",
    "training.accumulated_batches=1",
    "federation.minimum_cell=10",
    "federation.local_work=steps",
    "federation.local_steps=1",
    "training.optimizer=sgd",
    "training.learning_rate=1.0",
    "training.weight_decay=0.0",
    "model.dropout=0.0",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> SiteRecords:
    cohort = write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=20)
    return SiteRecords(SiteSpec(name="north", cohort=cohort), crop_pixels=16)


def _work(site: SiteRecords, settings: RunSettings) -> tuple[np.ndarray, list[int]]:
    """How a round moved the weights, and what was asked to be spent."""
    samples, model, asked = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings), []
    before = flatten_weights(model)
    PrivateWork(settings=settings, server_round=1).run(
        model, samples, make_optimizer(model, settings), class_weights(samples, settings), spend=asked.append
    )
    return flatten_weights(model) - before, asked


def test_an_empty_sample_makes_a_step_of_noise_with_the_stated_variance(site: SiteRecords) -> None:
    settings = small_settings(
        *PRIVATE,
        "patient_privacy.noise_multiplier=0.7",
        "patient_privacy.clip=0.2",
        "patient_privacy.sampling_rate=1e-9",
        "patient_privacy.epsilon=1e3",
        "model.backbone_channels=64",  # many draws
    )
    moved, _ = _work(site, settings)
    noise = moved[moved != 0].astype(np.float64)
    expected = 0.7 * 0.2 / (1e-9 * 10)  # ten training patients
    assert len(noise) > 1e6, "the network's trained parameters"
    assert noise.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * len(noise)))
    assert abs(noise.mean()) < 5 * expected / np.sqrt(len(noise))


def test_a_step_is_the_clipped_sum_over_the_expected_number(site: SiteRecords) -> None:
    settings = small_settings(
        *PRIVATE,
        "patient_privacy.noise_multiplier=1e-9",
        "patient_privacy.sampling_rate=1.0",
        "patient_privacy.clip=0.3",
    )
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    patients = [[samples[index] for index in each] for each in patients_of(samples)]
    total = clipped_sum(model, patients, class_weights(samples, settings), clip=0.3)
    moved, asked = _work(site, settings)
    length = sum(float((each**2).sum()) for each in total.values()) ** 0.5 / len(patients)
    assert np.linalg.norm(moved) == pytest.approx(length, rel=1e-3)
    assert asked == [1]
    assert length <= 0.3


def test_private_work_is_never_the_same_twice(site: SiteRecords) -> None:
    settings = small_settings(*PRIVATE, "patient_privacy.noise_multiplier=1.0")
    one, other = (_work(site, settings)[0] for _ in range(2))
    moved = one != 0
    assert abs(np.corrcoef(one[moved], other[moved])[0, 1]) < 0.01


def test_nothing_is_done_where_it_may_not_be_spent(site: SiteRecords) -> None:
    settings = small_settings(*PRIVATE, "patient_privacy.noise_multiplier=1.0")
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    before = flatten_weights(model)

    def refuse(num_steps: int) -> None:
        raise ValueError(f"no {num_steps} steps")

    with pytest.raises(ValueError, match="no 1 steps"):
        PrivateWork(settings=settings, server_round=1).run(
            model, samples, make_optimizer(model, settings), class_weights(samples, settings), spend=refuse
        )
    np.testing.assert_array_equal(flatten_weights(model), before)


def test_batch_norm_that_mixes_patients_is_refused(site: SiteRecords) -> None:
    settings = small_settings(*PRIVATE, "patient_privacy.noise_multiplier=1.0")
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    model.backbone.adapter[1] = torch.nn.BatchNorm1d(16, track_running_stats=False)
    with pytest.raises(TrainingError, match=r"backbone.adapter.1: .*in which patients mix"):
        PrivateWork(settings=settings, server_round=1).run(
            model, samples, make_optimizer(model, settings), class_weights(samples, settings), spend=lambda count: None
        )


def test_both_ways_of_gradients_work_at_a_site(site: SiteRecords) -> None:
    moves = [
        _work(
            site,
            small_settings(
                *PRIVATE,
                "patient_privacy.noise_multiplier=1e-9",
                "patient_privacy.sampling_rate=1.0",
                f"patient_privacy.gradients={way}",
            ),
        )[0]
        for way in ("vmap", "microbatches")
    ]
    np.testing.assert_allclose(moves[0], moves[1], rtol=0, atol=1e-5 * np.linalg.norm(moves[1]))


def test_samples_are_poisson() -> None:
    size, rate, draws = 40, 0.15, 4000
    table = np.zeros((draws, size), bool)
    for number in range(draws):
        table[number, list(poisson_sample(size, rate))] = True
    error = 5 * np.sqrt(rate * (1 - rate) / draws)
    assert np.abs(table.mean(axis=0) - rate).max() < error, "each patient as often as any other"
    sizes = table.sum(axis=1)
    assert sizes.var() == pytest.approx(size * rate * (1 - rate), rel=0.15), "binomial, not a fixed size"
    correlations = np.corrcoef(table.T) - np.eye(size)
    assert np.abs(correlations).max() < 6 / np.sqrt(draws), "patients by themselves"
    assert list(poisson_sample(5, 1.0)) == [0, 1, 2, 3, 4]
    assert list(poisson_sample(0, 0.5)) == []


def test_a_patients_samples_are_kept_together(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "north", num_patients=20)
    site = SiteRecords(SiteSpec(name="north", cohort=cohort), crop_pixels=16)
    samples = SampleSet([site], Task.DISEASE_PROGRESSION, "train")
    groups = patients_of(samples)
    assert sorted(number for group in groups for number in group) == list(range(len(samples)))
    for group in groups:
        assert len({samples.patients[number] for number in group}) == 1
    assert len(groups) == len(set(samples.patients)) < len(samples)
