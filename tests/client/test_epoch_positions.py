"""An epoch that goes on from a position between two optimizer steps equals the epoch that never stopped."""

import copy

import pytest
import torch

from client.dataset import SampleSet
from client.records import SiteRecords, SiteSpec
from client.training import Position, class_weights, make_optimizer, place, train_epoch
from dipro_model import DiPro
from dipro_model.vocabulary import Task
from federation.initial import initial_model
from federation.settings import RunSettings
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> SiteRecords:
    cohort = write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=24)
    return SiteRecords(SiteSpec(name="north", cohort=cohort), crop_pixels=16)


class _Recorder:
    """Keeps everything that a checkpoint would, after each optimizer step."""

    def __init__(self, model: DiPro, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.moments: list[tuple[Position, dict, dict]] = []

    def __call__(self, position: Position) -> None:
        self.moments.append(
            (position, copy.deepcopy(self.model.state_dict()), copy.deepcopy(self.optimizer.state_dict()))
        )


def _start(settings: RunSettings) -> tuple[DiPro, torch.optim.Optimizer]:
    model = place(initial_model(settings), torch.device("cpu"), settings)
    return model, make_optimizer(model, settings)


@pytest.mark.parametrize(
    "overrides",
    [(), ("task=disease_progression",), ("training.optimizer=sgd", "training.loader_workers=1")],
    ids=["mortality", "progression", "sgd and a loader process"],
)
def test_an_epoch_goes_on_from_every_step(site: SiteRecords, overrides: tuple[str, ...]) -> None:
    # Twelve stays in batches of 2, two batches a step: three steps. Progression has more samples and a rest.
    settings = small_settings("training.batch_size=2", "model.dropout=0.2", *overrides)
    samples = SampleSet([site], settings.task, "train")
    weights = class_weights(samples, settings)
    model, optimizer = _start(settings)
    recorder = _Recorder(model, optimizer)
    losses = train_epoch(model, samples, optimizer, settings, weights, epoch=3, num_epochs=9, after_step=recorder)
    final = copy.deepcopy(model.state_dict())
    assert [position.num_steps for position, *_ in recorder.moments] == list(range(1, len(recorder.moments) + 1))
    assert recorder.moments[-1][0].num_samples == len(samples)
    assert len(recorder.moments) == -(-len(samples) // 4) >= 3
    chosen = recorder.moments if settings.task is Task.MORTALITY else recorder.moments[1:2]
    for position, weights_then, optimizer_then in chosen:
        model, optimizer = _start(settings)
        model.load_state_dict(weights_then)
        optimizer.load_state_dict(optimizer_then)
        torch.manual_seed(0)  # whatever ran before
        again = train_epoch(model, samples, optimizer, settings, weights, epoch=3, num_epochs=9, start=position)
        assert again == losses
        assert all(torch.equal(value, final[name]) for name, value in model.state_dict().items())


def test_dropout_goes_on_with_its_own_numbers(site: SiteRecords) -> None:
    """The comparison above can fail: without the random state the same position ends elsewhere."""
    settings = small_settings("training.batch_size=2", "model.dropout=0.2")
    samples = SampleSet([site], settings.task, "train")
    weights = class_weights(samples, settings)
    model, optimizer = _start(settings)
    recorder = _Recorder(model, optimizer)
    losses = train_epoch(model, samples, optimizer, settings, weights, epoch=0, num_epochs=9, after_step=recorder)
    position, weights_then, optimizer_then = recorder.moments[0]
    model.load_state_dict(weights_then)
    optimizer.load_state_dict(optimizer_then)
    others = Position(
        num_steps=position.num_steps,
        num_samples=position.num_samples,
        sums=position.sums,
        random_state=torch.Generator().manual_seed(1).get_state(),
        device_random_state=None,
    )
    assert train_epoch(model, samples, optimizer, settings, weights, epoch=0, num_epochs=9, start=others) != losses
