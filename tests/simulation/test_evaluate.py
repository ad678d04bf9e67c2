"""Finished models on cohorts: the same scores as in training, as a direct call, and beside other runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dataset import DataError, SampleSet
from client.predictions import Predictions, read_predictions
from client.records import SiteRecords, SiteSpec
from dipro_model import DiPro, DiProConfig, collate
from dipro_model.vocabulary import SPLITS, Task
from federation.checkpoint import save_checkpoint
from federation.run_folder import RunError, read_run, write_run
from federation.trained import load_trained
from simulation.compare import compare
from simulation.comparison.study import study
from simulation.evaluate import evaluate, predict
from simulation.report import render_report
from simulation.runs import load_runs
from simulation.train import train
from tests.federation.test_trained import released
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def run(specs: list[SiteSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(specs, small_settings("training.epochs=2", "training.class_weights=none"), folder)
    return folder


def of_split(predictions: Predictions, split: str) -> Predictions:
    return predictions.select(predictions.split == split)


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluation_repeats_what_training_scored(run: Path, specs: list[SiteSpec], tmp_path: Path, split: str) -> None:
    record = evaluate(specs, load_trained(run), tmp_path / "again", split=split)
    assert record == read_run(tmp_path / "again")
    trained = read_run(run)
    assert (record.kind, record.name, record.status) == ("evaluated", "centralized", "finished")
    assert (record.best_step, record.trained_on) == (trained.best_step, ("north", "south"))
    assert record.more["cohorts"] == trained.more["cohorts"]
    names = ["north", "south"]
    before = of_split(read_predictions(run, Task.MORTALITY, names), split)
    after = read_predictions(tmp_path / "again", Task.MORTALITY, names)
    assert after.sample_id.tolist() == before.sample_id.tolist()
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-6)
    np.testing.assert_allclose(after.attention, before.attention, atol=1e-6)
    for site in names:
        assert record.more["results"][site] == {split: pytest.approx(trained.more["results"][site][split], nan_ok=True)}


@pytest.mark.parametrize("task", list(Task))
def test_predictions_equal_a_direct_call_of_the_model(specs: list[SiteSpec], tmp_path: Path, task: Task) -> None:
    torch.manual_seed(2)
    settings = small_settings(f"task={task}")
    model = DiPro(settings.config())
    save_checkpoint(tmp_path / "model.pt", model, step=1, settings=settings.model_dump(mode="json"))
    found = predict(specs, load_trained(tmp_path / "model.pt"))
    rows = {key: row for row, key in enumerate(zip(found.site, found.split, found.sample_id, strict=True))}
    num_samples = 0
    for spec in specs:
        site = SiteRecords(spec, crop_pixels=16)
        for split in SPLITS:
            samples = SampleSet([site], task, split)
            for index, sample in enumerate(samples.samples):
                with torch.no_grad():
                    output = model.eval()(collate([samples[index]]))
                logits = output.logits[0]
                expected = logits.sigmoid() if task is Task.MORTALITY else logits.softmax(dim=-1)
                row = rows[spec.name, split, sample.sample_id]
                np.testing.assert_allclose(found.probabilities[row], expected.numpy(), atol=1e-5)
                np.testing.assert_allclose(found.attention[row], output.region_attention[0].mean(dim=1), atol=1e-5)
                num_samples += 1
    assert len(found) == num_samples > 0


def test_a_released_checkpoint_is_scored_at_its_own_size(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", num_patients=2, num_images=2, splits=("train", "test"))
    torch.manual_seed(4)
    model = DiPro(DiProConfig.published(Task.LENGTH_OF_STAY))
    torch.save({"state_dict": released(model)}, tmp_path / "released.ckpt")
    spec, trained = (
        SiteSpec(name="cohort", cohort=cohort),
        load_trained(tmp_path / "released.ckpt", Task.LENGTH_OF_STAY),
    )
    record = evaluate([spec], trained, tmp_path / "out", name="released")
    assert (record.best_step, record.trained_on, record.name) == (None, (), "released")
    samples = SampleSet([SiteRecords(spec)], Task.LENGTH_OF_STAY, "test")
    with torch.no_grad():
        expected = model.eval()(collate([samples[0]])).logits[0].softmax(dim=-1)
    found = read_predictions(tmp_path / "out", Task.LENGTH_OF_STAY, ["cohort"])
    np.testing.assert_allclose(found.probabilities[0], expected.numpy(), atol=1e-5)


def test_an_evaluated_model_is_compared_with_trainings(run: Path, specs: list[SiteSpec], tmp_path: Path) -> None:
    train(specs, small_settings("training.epochs=1", "seed=5"), tmp_path / "other", name="other")
    evaluate(specs, load_trained(tmp_path / "other"), tmp_path / "again", name="again")
    runs = load_runs([tmp_path / "again", run])
    assert [each.label for each in runs] == ["centralized", "again"]
    comparison = compare(runs, num_resamples=20)
    alone = compare(load_runs([tmp_path / "other"]), num_resamples=20)
    for site in ("pooled", "north"):
        cell, other = comparison.cells["auroc", "again", site], alone.cells["auroc", "other", site]
        assert (cell.result.value, cell.interval) == (other.result.value, other.interval)
    page = render_report(study(comparison))
    assert "a finished model, scored as it is" in page
    assert "whom none of them was trained on" not in page, "where a model comes from is not known"
    with pytest.raises(RunError, match="expected scores of the val split, found those of test alone"):
        compare(runs, split="val", num_resamples=20)


def test_an_evaluation_of_other_patients_is_not_compared(run: Path, specs: list[SiteSpec], tmp_path: Path) -> None:
    grown = SiteSpec(name="south", cohort=write_cohort(tmp_path / "south", num_patients=20, seed=2, first_subject=500))
    evaluate([specs[0], grown], load_trained(run), tmp_path / "again")
    with pytest.raises(RunError, match="1 samples are only in the second"):
        load_runs([run, tmp_path / "again"])


def test_evaluations_alone_and_of_unknown_origin_have_a_report(
    run: Path, specs: list[SiteSpec], tmp_path: Path
) -> None:
    record = evaluate(specs, load_trained(run), tmp_path / "again")
    write_run(tmp_path / "again", replace(record, trained_on=()))
    page = render_report(study(compare(load_runs([tmp_path / "again"]), num_resamples=20)))
    assert "Death in hospital: finished models" in page
    assert "not known" in page


def test_a_split_without_samples_leaves_nothing(run: Path, tmp_path: Path) -> None:
    spec = SiteSpec(name="east", cohort=write_cohort(tmp_path / "east", num_patients=4, splits=("train", "test")))
    with pytest.raises(DataError, match="east: no patient with a sample for mortality in the val split"):
        evaluate([spec], load_trained(run), tmp_path / "out", split="val")
    assert not (tmp_path / "out").exists()
    assert set(predict([spec], load_trained(run)).split) == {"train", "test"}
    with pytest.raises(DataError, match="east: no sample for mortality in the splits val"):
        predict([spec], load_trained(run), splits=["val"])
