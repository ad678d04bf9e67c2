"""What a federation must equal: centralized training, where the two do the same work in another place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.records import SiteSpec
from dipro_model.vocabulary import Task
from federation.run_folder import read_history, read_run
from simulation.train import train
from tests.make_cohort import write_cohort
from tests.small_run import federate, last_weights, small_settings


def _largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("task", list(Task))
def test_one_site_with_local_epochs_equals_centralized_training(tmp_path: Path, task: Task) -> None:
    cohort = write_cohort(tmp_path / "north", num_patients=16)
    settings = small_settings(
        f"task={task}",
        "training.epochs=2",
        "federation.rounds=1",
        "federation.local_epochs=2",
        "federation.num_sites=1",
    )
    train([SiteSpec(name="north", cohort=cohort)], settings, tmp_path / "centralized")
    federated = federate(tmp_path / "federated", [cohort], settings)
    assert _largest_difference(federated, last_weights(tmp_path / "centralized")) <= 1e-6


def test_one_full_batch_step_at_several_sites_equals_one_step_on_the_union(tmp_path: Path) -> None:
    # The objective's parts are means over pairs and over region labels, so a mean over sites weighted by samples is
    # the mean over the union only where every stay has as many pairs and labels: the cohorts are made so.
    labels = np.random.default_rng(5).integers(0, 4, 70)
    cohorts = [
        write_cohort(
            tmp_path / name,
            num_patients=size,
            seed=seed,
            first_subject=first,
            num_images=3,
            region_progression=labels,
            ehr_mean=9.0 + seed,
        )
        for name, size, seed, first in (("north", 16, 1, 100), ("south", 24, 2, 500), ("west", 8, 3, 900))
    ]
    settings = small_settings(
        "training.optimizer=sgd",
        "training.weight_decay=0.0",
        "training.schedule=constant",
        "training.learning_rate=0.01",
        "training.batch_size=1000",
        "training.accumulated_batches=1",
        "training.batch_norm=frozen",
        "training.epochs=1",
        "model.dropout=0.0",
        "federation.rounds=1",
        "federation.num_sites=3",
    )
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    train(specs, settings, tmp_path / "centralized")
    federated, centralized = federate(tmp_path / "federated", cohorts, settings), last_weights(tmp_path / "centralized")
    assert _largest_difference(federated, centralized) <= 1e-5
    # So it is where the sites share a batch that holds all of them: 8, 12 and 4 training samples.
    shared = settings.model_copy(
        update={
            "training": settings.training.model_copy(update={"batch_size": 24}),
            "federation": settings.federation.model_copy(
                update={"common_batch": True, "local_work": "steps", "local_steps": 1}
            ),
        }
    )
    assert _largest_difference(federate(tmp_path / "shared", cohorts, shared), centralized) <= 1e-5
    # The step itself is far larger than the tolerance, else the test could not fail.
    alone = train(specs, settings, tmp_path / "alone", only="north")
    assert alone.trained_on == ("north",)
    assert _largest_difference(last_weights(tmp_path / "alone"), centralized) > 1e-4


def test_the_order_of_the_sites_changes_nothing(tmp_path: Path) -> None:
    cohorts = [
        write_cohort(tmp_path / name, num_patients=16, seed=seed, first_subject=first)
        for name, seed, first in (("north", 1, 100), ("south", 2, 500), ("west", 3, 900))
    ]
    settings = small_settings("federation.rounds=2", "federation.num_sites=3")
    once = federate(tmp_path / "once", cohorts, settings)
    again = federate(tmp_path / "again", cohorts[::-1], settings, answer_order=[1, 2, 0])
    assert _largest_difference(once, again) == 0.0
    first, second = read_history(tmp_path / "once"), read_history(tmp_path / "again")
    assert [(line.step, line.site, line.split, line.loss) for line in first] == [
        (line.step, line.site, line.split, line.loss) for line in second
    ]


def test_a_seed_decides_the_run(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "north", num_patients=16)
    spec = SiteSpec(name="north", cohort=cohort)
    for name, seed in (("first", 23), ("second", 23), ("other", 29)):
        train([spec], small_settings("training.epochs=1", f"seed={seed}"), tmp_path / name)
    assert _largest_difference(last_weights(tmp_path / "first"), last_weights(tmp_path / "second")) == 0.0
    assert _largest_difference(last_weights(tmp_path / "first"), last_weights(tmp_path / "other")) > 1e-3
    assert read_run(tmp_path / "first").seed == 23
