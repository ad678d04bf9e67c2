"""A frozen image network's features in place of crops change nothing but the time."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.app import app
from client.cohort import FEATURE_FOLDER, open_cohort
from client.dataset import SampleSet
from client.features import inputs_of, weights_sha256
from client.records import SiteRecords, SiteSpec
from client.site import Site
from client.training import class_weights, make_optimizer, place, train_epoch
from dipro_model import DiPro, collate
from dipro_model.vocabulary import REGIONS, Task
from federation.agreement import agree
from federation.initial import initial_model
from federation.messages import Instruction
from federation.settings import RunFiles, RunSettings, to_run_config
from federation.weights import flatten_weights
from server.app import coordinate
from simulation.in_process import InProcessGrid
from tests.make_cohort import reseal, write_cohort
from tests.small_run import last_weights, small_settings

CPU = torch.device("cpu")


def frozen_settings(*overrides: str) -> RunSettings:
    return small_settings("model.freeze_backbone=true", *overrides)


def placed_model(settings: RunSettings) -> DiPro:
    """A model whose residual network has batch statistics of its own, as trained ones have."""
    model = initial_model(settings)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.backbone.resnet.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return place(model, CPU, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "north", num_patients=16)


def features_in(folder: Path) -> list[Path]:
    return sorted((folder / FEATURE_FOLDER).glob("*.npy"))


@pytest.mark.parametrize(("depth", "pixels"), [(10, 16), (18, 48), (34, 32), (50, 224)])
@torch.no_grad()
def test_logits_of_features_are_those_of_crops(tmp_path: Path, depth: int, pixels: int) -> None:
    folder = write_cohort(tmp_path / "north", num_patients=1, num_images=2, splits=("train",))
    settings = frozen_settings(f"model.backbone_depth={depth}", f"model.crop_pixels={pixels}")
    site, model = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=pixels), placed_model(settings)
    crops = SampleSet([site], Task.MORTALITY, "train")
    features = SampleSet([site], Task.MORTALITY, "train", inputs_of([site], model, settings))
    assert features[0].regions.shape == (2, len(REGIONS), model.config.backbone.num_features)
    model.eval()
    expected, found = (model(collate([each[0]])).logits for each in (crops, features))
    assert float((expected - found).abs().max()) <= 1e-5
    assert float(features[0].regions.std(dim=1).max()) > 1e-3  # each region has features of its own


def test_training_on_features_ends_with_the_same_weights(folder: Path) -> None:
    settings = frozen_settings("training.optimizer=sgd", "training.learning_rate=0.05")
    site = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=16)
    ends = []
    for cached in (False, True):
        model = placed_model(settings)
        inputs = inputs_of([site], model, settings)
        samples = SampleSet([site], settings.task, "train", inputs if cached else replace(inputs, features={}))
        assert samples[0].regions.ndim == (3 if cached else 5)
        start, weights = flatten_weights(model), class_weights(samples, settings)
        optimizer = make_optimizer(model, settings)
        for epoch in range(2):
            train_epoch(model, samples, optimizer, settings, weights, epoch=epoch, num_epochs=2)
        ends.append(flatten_weights(model))
    assert np.abs(ends[0] - ends[1]).max() <= 1e-6
    assert np.abs(ends[0] - start).max() > 1e-3  # there was something to get wrong


def test_sites_of_one_cohort_share_its_features(folder: Path) -> None:
    subjects = open_cohort(folder).stays.subject_id.tolist()
    settings = frozen_settings()
    model = placed_model(settings)
    sites = [
        SiteRecords(SiteSpec(name=name, cohort=folder, subjects=tuple(part)), crop_pixels=16)
        for name, part in (("east", subjects[:6]), ("west", subjects[6:]))
    ]
    samples = SampleSet(sites, Task.MORTALITY, "train", inputs_of(sites, model, settings))
    assert len(features_in(folder)) == 1
    for index, sample in enumerate(samples.samples):
        crops = samples.sites[sample.site].crops(sample.stay.image_rows[sample.frames])
        np.testing.assert_allclose(samples[index].regions, model.backbone.features(crops), atol=1e-5)


def test_what_the_features_depend_on_makes_them_new(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Of few channels the first may be one that no picture reaches.
    settings = frozen_settings("model.crop_pixels=24", "model.backbone_channels=64")
    spec, model = SiteSpec(name="north", cohort=folder), placed_model(settings)

    def first_features() -> np.ndarray:
        site = SiteRecords(spec, crop_pixels=settings.model.crop_pixels)
        caplog.clear()
        return inputs_of([site], model, settings).features["north"][0]

    before = first_features()
    np.testing.assert_array_equal(first_features(), before)
    assert not caplog.records
    with torch.no_grad():
        model.backbone.resnet.state_dict()["bn1.running_mean"][0] += 0.5
    moved = first_features()
    assert np.abs(moved - before).max() > 1e-3
    assert "its weights_sha256 is" in caplog.text
    half = model.backbone.execution
    model.backbone.execute(replace(half, precision="bf16"))
    coarse = first_features()
    assert 0 < np.abs(coarse - moved).max() < 0.1 * np.abs(moved).max()
    assert "its precision is fp32, not bf16" in caplog.text
    model.backbone.execute(half)
    regions = np.load(folder / "regions.npy")
    np.save(folder / "regions.npy", 255 - regions)
    reseal(folder)
    assert np.abs(first_features() - moved).max() > 1e-3
    assert "computing these features again, because its regions_sha256 is" in caplog.text
    assert len(features_in(folder)) == 3


def test_only_a_frozen_network_that_looks_has_features(folder: Path) -> None:
    site = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=16)
    for override in ("model.freeze_backbone=false", "parts.radiographs=false"):
        settings = frozen_settings(override)
        assert not inputs_of([site], placed_model(settings), settings).features
    assert not (folder / FEATURE_FOLDER).exists()


def test_the_digest_of_weights_sees_values_and_not_where_they_lie() -> None:
    model = initial_model(frozen_settings()).backbone.resnet
    digest = weights_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == digest  # pyright: ignore
    tensors = model.state_dict()
    tensors["bn1.num_batches_tracked"] += 1  # read by nobody
    assert weights_sha256(model) == digest
    tensors["layer4.0.conv1.weight"][3, 5, 0, 0].nextafter_(torch.tensor(9.0))
    assert weights_sha256(model) != digest


def test_a_site_trains_and_scores_on_features(folder: Path) -> None:
    settings = frozen_settings()
    records = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=16)
    newcomer, model = Site(records=records, settings=settings, device=CPU), initial_model(settings)
    start = flatten_weights(model)
    instruction = Instruction(server_round=1, code_digest="", layout_digest="", weights=start)
    site = replace(newcomer, agreement=agree([newcomer.join(instruction, since=0.0).statistics]))
    reply = site.train(model, instruction)
    assert site.samples("train", model)[0].regions.ndim == 3
    flat = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    frozen = np.concatenate([np.full(t.numel(), name.startswith("backbone.resnet.")) for name, t in flat.items()])
    np.testing.assert_array_equal(reply.weights[frozen], start[frozen])
    assert np.abs(reply.weights[~frozen] - start[~frozen]).max() > 1e-4
    assert len(features_in(folder)) == 1


def test_a_federation_computes_the_features_of_a_cohort_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Their sizes differ, so that a weighted mean of the frozen weights would change them in the last bit.
    cohorts = [
        write_cohort(tmp_path / name, num_patients=size, seed=seed, first_subject=first)
        for name, size, seed, first in (("north", 8, 1, 100), ("south", 12, 2, 500))
    ]
    settings = frozen_settings("federation.rounds=2", "federation.num_sites=2")
    nodes = [{"site": cohort.name, "cohort": str(cohort), "folder": str(tmp_path / "own")} for cohort in cohorts]
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO, "client.feature_cache"):
        coordinate(InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(run))), nodes), settings, run)
    assert [len(features_in(cohort)) for cohort in cohorts] == [1, 1]
    assert sum("computing the features" in record.message for record in caplog.records) == 2
    weights, start = last_weights(run), initial_model(settings).state_dict()
    assert all(torch.equal(start[name], weights[name]) for name in weights if name.startswith("backbone.resnet."))
    assert not all(torch.equal(start[name], weights[name]) for name in weights)
