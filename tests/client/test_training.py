"""The schedule, the accumulation and the scores, each against a plain computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client import training
from client.dataset import SampleSet
from client.features import inputs_of
from client.records import SiteRecords, SiteSpec
from client.training import (
    TrainingError,
    choose_device,
    class_weights,
    learning_rate,
    make_optimizer,
    place,
    predict,
    train_epoch,
)
from dipro_model import DiPro, LossWeights, collate, objective
from dipro_model.vocabulary import Task
from federation.initial import initial_model
from federation.settings import RunSettings
from federation.weights import flatten_weights
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> SiteRecords:
    cohort = write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=20)
    return SiteRecords(SiteSpec(name="north", cohort=cohort), crop_pixels=16)


def _one_epoch(model: DiPro, samples: SampleSet, settings: RunSettings, epoch: int = 0) -> dict[str, float]:
    optimizer, weights = make_optimizer(model, settings), class_weights(samples, settings)
    return train_epoch(model, samples, optimizer, settings, weights, epoch=epoch, num_epochs=9)


def test_the_rate_falls_as_a_cosine() -> None:
    settings = small_settings("training.learning_rate=0.02", "training.final_learning_rate=0.01")
    rates = [learning_rate(settings, epoch, 10) for epoch in range(11)]
    assert rates[0] == 0.02
    assert rates[5] == pytest.approx(0.015)
    assert rates[10] == pytest.approx(0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer := torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02), T_max=10, eta_min=0.01
    )
    for rate in rates[:-1]:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.step()
        scheduler.step()
    assert learning_rate(small_settings("training.schedule=constant"), 7, 10) == 1e-3


def test_static_fusion_learns_at_its_own_rate(site: SiteRecords) -> None:
    steps = {}
    for factor in (1.0, 4.0):
        settings = small_settings(
            f"training.static_fusion_rate={factor}",
            "training.optimizer=sgd",
            "training.batch_size=10",
            "training.learning_rate=1.0",  # large steps, so that their rounding does not matter
        )
        samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
        before = {name: value.clone() for name, value in model.named_parameters()}
        _one_epoch(model, samples, settings, epoch=3)
        steps[factor] = {name: value.detach() - before[name] for name, value in model.named_parameters()}
    for name, step in steps[1.0].items():
        times = 4.0 if name.startswith("static_fusion.") else 1.0
        torch.testing.assert_close(steps[4.0][name], times * step, rtol=1e-3, atol=1e-6)


def test_accumulated_batches_make_the_step_of_one_large_batch(site: SiteRecords) -> None:
    # Without batch statistics, dropout and terms that are means over pairs, three batches of 4, 4 and 2 samples must
    # give the gradient of one batch of ten.
    common = ("training.optimizer=sgd", "training.batch_norm=frozen", "model.dropout=0.0", "training.weight_decay=0.0")
    samples, results = SampleSet([site], Task.LENGTH_OF_STAY, "train"), []
    assert len(samples) == 10
    for sizes in (("training.batch_size=4", "training.accumulated_batches=3"), ("training.batch_size=10",)):
        settings = small_settings("task=length_of_stay", *common, *sizes)
        torch.manual_seed(0)
        config = settings.config()
        model = DiPro(
            replace(config, loss=LossWeights(task=1.0, orthogonal=0.0, temporal=0.0, static=0.0, dynamic=0.0))
        )
        losses = _one_epoch(model, samples, settings)
        results.append((flatten_weights(model), losses["task"]))
    assert np.abs(results[0][0] - results[1][0]).max() < 1e-6
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_scores_are_those_of_single_stays(site: SiteRecords) -> None:
    settings = small_settings()
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    scores = predict(model, samples, settings, class_weights(samples, settings))
    assert scores.probabilities.shape == (10, 1, 1)
    model.eval()
    with torch.no_grad():
        alone = [float(model(collate([samples[index]])).logits.sigmoid()) for index in range(len(samples))]
    np.testing.assert_allclose(scores.probabilities[:, 0, 0], alone, atol=1e-5)
    np.testing.assert_array_equal(scores.labels, samples.labels)


def test_training_lowers_the_loss(site: SiteRecords) -> None:
    for task in Task:
        # Without dropout, whose draws decide at so few stays.
        settings = small_settings(f"task={task}", "training.learning_rate=3e-3", "model.dropout=0")
        samples, model = SampleSet([site], task, "train"), initial_model(settings)
        optimizer, weights = make_optimizer(model, settings), class_weights(samples, settings)
        before = predict(model, samples, settings, weights).losses["total"]
        for epoch in range(12):
            train_epoch(model, samples, optimizer, settings, weights, epoch=epoch, num_epochs=12)
        after = predict(model, samples, settings, weights).losses["total"]
        assert after < before * (0.8 if task is Task.MORTALITY else 1.0)  # only deaths follow what the model sees


def test_death_weighs_what_the_training_labels_say(site: SiteRecords) -> None:
    samples = SampleSet([site], Task.MORTALITY, "train")
    deaths, total = int(samples.labels.sum()), len(samples)
    expected = {"balanced": (total - deaths) / deaths, "published": deaths / total}
    for weighting, value in expected.items():
        weights = class_weights(samples, small_settings(f"training.class_weights={weighting}"))
        assert float(weights.mortality_positive) == pytest.approx(value)
    assert class_weights(samples, small_settings("training.class_weights=none")).mortality_positive is None


def test_frozen_batch_norm_keeps_its_statistics(site: SiteRecords) -> None:
    samples = SampleSet([site], Task.MORTALITY, "train")
    for mode, moves in (("frozen", False), ("train", True)):
        settings = small_settings(f"training.batch_norm={mode}")
        model = initial_model(settings)
        before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
        _one_epoch(model, samples, settings)
        after = dict(model.named_buffers())
        assert any(not torch.equal(value, after[name]) for name, value in before.items()) is moves


def test_a_loss_that_is_not_finite_stops_before_the_step(site: SiteRecords) -> None:
    settings = small_settings()
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    with torch.no_grad():
        model.heads[0][-1].bias.fill_(math.nan)  # pyright: ignore
    before = flatten_weights(model)
    with pytest.raises(TrainingError, match=r"epoch 3, step 1: the loss is not finite \(task\)"):
        _one_epoch(model, samples, settings, epoch=2)
    moved = flatten_weights(model) != before
    names = [
        name for name, value in model.state_dict().items() if value.is_floating_point() for _ in range(value.numel())
    ]
    changed = {name for name, different in zip(names, moved, strict=True) if different}
    assert all("running" in name or name.startswith("heads.0.") for name in changed)


def test_the_stay_that_breaks_the_loss_is_named(site: SiteRecords) -> None:
    settings = small_settings("parts.radiographs=false", "training.batch_size=4", "training.accumulated_batches=1")
    samples = SampleSet([site], Task.MORTALITY, "train", inputs_of([site], initial_model(settings), settings))
    broken = replace(samples.samples[3].stay, ehr=np.full_like(samples.samples[3].stay.ehr, 1e38))
    samples.samples[3] = replace(samples.samples[3], stay=broken)
    with pytest.raises(TrainingError) as error:
        _one_epoch(initial_model(settings), samples, settings)
    assert f"north, stay {broken.stay_id} (task); nothing was learned from this step" in str(error.value)
    others = {sample.stay.stay_id for sample in samples.samples} - {broken.stay_id}
    assert not any(f"stay {stay}" in str(error.value) for stay in others)
    with pytest.raises(
        TrainingError, match=rf"scoring the train split: .*\(task\), because of north, stay {broken.stay_id} "
    ):
        predict(initial_model(settings), samples, settings, class_weights(samples, settings))


@pytest.mark.parametrize(
    ("raised", "explained"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_too_little_memory_says_what_to_lower(
    site: SiteRecords, monkeypatch: pytest.MonkeyPatch, raised: RuntimeError, explained: bool
) -> None:
    settings = small_settings("training.batch_size=5")
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)

    def fail(*args) -> None:
        raise raised

    monkeypatch.setattr("client.training.objective", fail)
    with pytest.raises(TrainingError if explained else RuntimeError) as error:
        _one_epoch(model, samples, settings)
    words = ("epoch 1, step 1", "a batch of 5 samples", "at 16 pixels", "training.checkpoint_activations=true")
    assert all(each in str(error.value) for each in words) is explained


def test_too_little_memory_for_the_optimizer_is_said(site: SiteRecords) -> None:
    settings = small_settings()
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    optimizer = make_optimizer(model, settings)

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    optimizer.step = fail
    with pytest.raises(TrainingError, match="epoch 1, step 1: memory does not suffice"):
        train_epoch(model, samples, optimizer, settings, class_weights(samples, settings), epoch=0, num_epochs=1)


def test_reading_ahead_in_other_processes_changes_nothing(site: SiteRecords) -> None:
    weights = []
    for workers in (0, 2):
        settings = small_settings(f"training.loader_workers={workers}")
        model = initial_model(settings)
        _one_epoch(model, SampleSet([site], Task.MORTALITY, "train"), settings)
        weights.append(flatten_weights(model))
    np.testing.assert_array_equal(*weights)


def test_the_loss_reported_is_the_objective(site: SiteRecords) -> None:
    settings = small_settings("training.batch_size=10")
    samples, model = SampleSet([site], Task.MORTALITY, "train"), initial_model(settings)
    weights = class_weights(samples, settings)
    losses = predict(model, samples, settings, weights).losses
    batch = collate([samples[index] for index in range(len(samples))])
    model.eval()
    with torch.no_grad():
        total, parts = objective(model(batch), batch, model.config, weights)
    assert losses["total"] == pytest.approx(float(total), rel=1e-5)
    assert set(losses) == {"total", *parts}


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"--device cuda: .*use auto, cpu or cuda"):
            choose_device("cuda")
    with pytest.raises(ValueError, match="--device abacus"):
        choose_device("abacus")


@pytest.mark.parametrize(
    ("overrides", "keeps"),
    [
        ([], True),
        (["training.checkpoint_activations=true"], False),
        # Nothing of the network is computed again where it stays as it is.
        (["training.checkpoint_activations=true", "model.freeze_backbone=true"], True),
    ],
)
def test_a_process_keeps_what_it_frees_unless_memory_is_to_be_saved(overrides, keeps, monkeypatch) -> None:
    """What keeping does is tested where it is written; it would last for the other tests of this process too."""
    told: list[bool] = []
    monkeypatch.setattr("client.training.keep_freed_memory", lambda: told.append(True))
    settings = small_settings(*overrides)
    model = initial_model(settings)
    place(model, torch.device("cpu"), settings)
    assert bool(told) == keeps
    told.clear()
    place(model, torch.device("meta"), settings)
    assert not told, "only a CPU's memory is the C library's"


@pytest.mark.parametrize(
    ("precision", "has", "warns"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bfloat16_on_a_cpu_without_it_is_warned_of_once(precision, has, warns, monkeypatch, caplog) -> None:
    monkeypatch.setattr(training, "_has_bf16", lambda: has)
    training._warn_of_bf16.cache_clear()
    settings = small_settings(f"training.precision={precision}", "model.crop_pixels=17")
    for _ in range(2):
        place(initial_model(settings), torch.device("cpu"), settings)
    assert caplog.text.count("this processor has no instructions for it") == warns


def test_bfloat16_on_a_cpu_wants_crops_that_torch_computes_rightly() -> None:
    def placed(*overrides: str) -> DiPro:
        settings = small_settings("training.precision=bf16", *overrides)
        return place(initial_model(settings), torch.device("cpu"), settings)

    with pytest.raises(TrainingError, match=r"crop_pixels: expected 17 or more .* found 16"):
        placed("model.crop_pixels=16")
    resnet = placed("model.crop_pixels=17").train().backbone
    crops = torch.randint(0, 256, (12, 1, 17, 17), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    first, again = (
        torch.autograd.grad(resnet.features(crops[None]).square().sum(), resnet.resnet.layer4[0].conv1.weight)[0]
        for _ in range(2)
    )
    assert first.isfinite().all()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
