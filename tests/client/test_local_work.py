"""A site's work in a round: which samples it goes through, and its part of a batch of all sites."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from client.dataset import SampleSet
from client.local_work import LocalWork, of_common_batch
from client.records import SiteRecords, SiteSpec
from client.training import make_optimizer
from dipro_model import ClassWeights
from dipro_model.vocabulary import Task
from federation.initial import initial_model
from federation.settings import RunSettings
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


class _Watched(SampleSet):
    """Notes which samples are read."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.read: list[int] = []

    def __getitem__(self, index: int):
        self.read.append(index)
        return super().__getitem__(index)


def _read_in(rounds: int, samples: _Watched, settings: RunSettings) -> list[list[int]]:
    """The samples of each round, in their order."""
    found = []
    for number in range(1, rounds + 1):
        model, samples.read = initial_model(settings), []
        LocalWork(settings=settings, server_round=number).run(
            model, samples, make_optimizer(model, settings), ClassWeights()
        )
        found.append(samples.read)
    return found


@pytest.fixture
def samples(tmp_path: Path) -> _Watched:
    cohort = write_cohort(tmp_path / "north", num_patients=22, splits=("train",))
    site = SiteRecords(SiteSpec(name="north", cohort=cohort), crop_pixels=16)
    return _Watched([site], Task.MORTALITY, "train")


def test_steps_go_on_through_the_samples_from_round_to_round(samples: _Watched) -> None:
    settings = small_settings(
        "federation.local_work=steps",
        "federation.local_steps=2",
        "training.batch_size=2",
        "training.accumulated_batches=2",
    )
    rounds = _read_in(11, samples, settings)
    assert [len(each) for each in rounds] == [8] * 11
    read = [number for each in rounds for number in each]
    for start in range(0, 88, 22):
        assert sorted(read[start : start + 22]) == list(range(22))
    assert read[:22] != read[22:44]
    # A round that is asked for again, alone, is the same.
    model, samples.read = initial_model(settings), []
    LocalWork(settings=settings, server_round=4).run(model, samples, make_optimizer(model, settings), ClassWeights())
    assert samples.read == rounds[3]


def test_a_step_that_takes_all_samples_reads_each_once(samples: _Watched) -> None:
    settings = small_settings(
        "federation.local_work=steps",
        "federation.local_steps=3",
        "training.batch_size=30",
        "training.accumulated_batches=1",
    )
    (read,) = _read_in(1, samples, settings)
    assert Counter(read) == dict.fromkeys(range(22), 3)


def test_a_sites_part_of_a_common_batch_is_its_share_of_the_samples() -> None:
    settings = small_settings("federation.common_batch=true", "training.batch_size=80", "training.learning_rate=0.25")
    parts = [of_common_batch(settings, size, 1992) for size in (28, 190, 1200, 390, 184)]
    assert [each.training.batch_size for each in parts] == [1, 8, 48, 16, 7]
    assert {each.training.learning_rate for each in parts} == {0.25}
    assert of_common_batch(settings, 3, 10_000).training.batch_size == 1
    assert of_common_batch(settings, 10, 10).training.batch_size == 80
    apart = small_settings("training.batch_size=80")
    assert of_common_batch(apart, 28, 1992) is apart


def test_the_rate_of_a_common_batch_is_that_of_the_whole() -> None:
    settings = RunSettings.model_validate({"federation": {"common_batch": True}, "training": {"batch_size": 40}})
    part = of_common_batch(settings, 100, 1000)
    assert part.training.batch_size == 4
    assert part.training.start_rate(Task.MORTALITY) == settings.training.start_rate(Task.MORTALITY)
    model = initial_model(small_settings())
    torch.testing.assert_close(make_optimizer(model, part).param_groups[0]["lr"], 1e-5 * 40 * 4)
