"""What a model says of a stay as images arrive: nothing from the future, and the same as a direct call."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from client.cohort import Cohort, open_cohort
from client.dataset import DataError, SampleSet
from client.pictures import stay as stay_picture
from client.pictures.stay import draw_stay, spread
from client.records import SiteRecords, SiteSpec
from client.stay_scores import StayScores, choose_stay, records_of, score_stay
from client.training import place, predict
from dipro_model import ClassWeights, DiPro, Stay, collate
from dipro_model.vocabulary import NOT_MENTIONED, SPLITS, Task
from federation.settings import RunSettings
from tests.client.pictures.figures import catch, unreadable
from tests.make_cohort import reseal, write_cohort, write_table
from tests.small_run import small_settings

STAY = 1030
"""Of a test patient."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return open_cohort(write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=8, num_images=4))


def small(task: Task, *overrides: str) -> tuple[DiPro, RunSettings]:
    settings = small_settings(f"task={task}", *overrides)
    torch.manual_seed(5)
    model = DiPro(settings.config())
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return place(model, torch.device("cpu"), settings), settings


def scored(cohort: Cohort, task: Task, *overrides: str) -> StayScores:
    model, settings = small(task, *overrides)
    return score_stay(model, records_of(cohort, STAY, crop_pixels=16), settings, STAY)


def with_changes(cohort: Cohort, folder: Path, tables: dict[str, pd.DataFrame]) -> Cohort:
    """A copy of the cohort in which some tables are others."""
    for path in cohort.path.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    for name, table in tables.items():
        write_table(folder, name, table)
    reseal(folder)
    return open_cohort(folder)


def test_the_last_word_is_what_evaluation_scores(cohort) -> None:
    for task in (Task.MORTALITY, Task.LENGTH_OF_STAY):
        model, settings = small(task)
        samples = SampleSet([SiteRecords(SiteSpec(name="north", cohort=cohort.path), crop_pixels=16)], task, "test")
        (index,) = [i for i, sample in enumerate(samples.samples) if sample.stay.stay_id == STAY]
        expected = predict(model, samples, settings, ClassWeights())
        found = scored(cohort, task)
        np.testing.assert_allclose(found.words[-1].probabilities, expected.probabilities[index], atol=1e-6)
        assert found.words[-1].label == (expected.labels[index],)
        assert (found.words[-1].begin, found.words[-1].end) == (48, 48)
        assert (found.site, found.split) == ("north", "test")


def test_each_beginning_is_the_model_on_the_images_and_whole_hours_so_far(cohort) -> None:
    model, _ = small(Task.MORTALITY)
    images = cohort.images[cohort.images.stay_id == STAY].sort_values("hours")
    hourly = cohort.ehr_hourly[cohort.ehr_hourly.stay_id == STAY].sort_values("hour")
    values = hourly[[name for name in hourly if f"{name}_mask" in hourly]].to_numpy(np.float32)
    crops = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(cohort.regions[images.index]).float(), 16).round()
    static = cohort.demographics.set_index("stay_id").loc[STAY].to_numpy(np.float32)
    words = scored(cohort, Task.MORTALITY).words
    assert [word.num_images for word in words] == [2, 3, 4, 4]
    for count, word in zip((2, 3, 4), words, strict=False):
        hours = images.hours.to_numpy(np.float32)[:count]
        over = [row for row, hour in enumerate(hourly.hour) if hour + 1 <= hours[-1]]
        stay = Stay(
            regions=crops[:count].to(torch.uint8).unsqueeze(2),
            ehr=torch.tensor(values[over]),
            ehr_hours=torch.tensor([float(hourly.hour.iloc[row]) for row in over]),
            intervals=torch.tensor(list(pairwise(hours.tolist()))),
            demographics=torch.tensor(static),
        )
        with torch.no_grad():
            risk = model.eval()(collate([stay])).logits.sigmoid()
        assert word.probabilities[0, 0] == pytest.approx(risk.item(), abs=1e-6)
        assert (word.begin, word.end) == (pytest.approx(hours[-1]),) * 2


def test_no_word_hears_of_the_future(cohort, tmp_path) -> None:
    third = float(cohort.images[cohort.images.stay_id == STAY].hours.sort_values().iloc[2])
    hourly = cohort.ehr_hourly.copy()
    later = (hourly.stay_id == STAY) & (hourly.hour + 1 > third)
    hourly.loc[later, "Heart Rate"] += 3
    images = cohort.images.copy()
    last = images[images.stay_id == STAY].hours.idxmax()
    images.loc[last, "hours"] += 0.5
    changed = with_changes(cohort, tmp_path, {"ehr_hourly": hourly, "images": images})
    before, after = (scored(each, Task.MORTALITY).words for each in (cohort, changed))
    for one, other in zip(before[:2], after[:2], strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    for one, other in zip(before[2:], after[2:], strict=True):
        assert one.probabilities[0, 0] != other.probabilities[0, 0]


def test_a_first_image_before_any_whole_hour_is_no_obstacle(cohort, tmp_path) -> None:
    images = cohort.images.copy()
    own = images[images.stay_id == STAY].sort_values("hours").index
    images.loc[own, "hours"] = [0.1, 0.4, 20.0, 30.0]
    words = scored(with_changes(cohort, tmp_path, {"images": images}), Task.MORTALITY).words
    assert words[0].end == pytest.approx(0.4)
    assert 0 < words[0].probabilities[0, 0] < 1


def test_glances_are_the_attention_to_each_pair(cohort) -> None:
    model, _ = small(Task.LENGTH_OF_STAY)
    samples = SampleSet([records_of(cohort, STAY, crop_pixels=16)], Task.LENGTH_OF_STAY, "test")
    with torch.no_grad():
        weight = model.eval()(collate([samples[0]])).region_attention[0, 0].numpy()
    found = scored(cohort, Task.LENGTH_OF_STAY)
    dicoms = [dicom for dicom, _ in found.images]
    assert list(found.glances) == dicoms[1:], "the first image completes no pair"
    for pair, dicom in enumerate(dicoms[1:]):
        np.testing.assert_allclose(found.glances[dicom].shares, weight[pair] / weight[pair].sum(), rtol=1e-5)
        assert found.glances[dicom].of_stay == pytest.approx(weight[pair].sum() / weight.sum(), rel=1e-5)
    assert sum(glance.of_stay for glance in found.glances.values()) == pytest.approx(1)


def test_progression_has_a_word_for_each_pair(cohort) -> None:
    model, settings = small(Task.DISEASE_PROGRESSION)
    samples = SampleSet([records_of(cohort, STAY, crop_pixels=16)], Task.DISEASE_PROGRESSION, "test")
    expected = predict(model, samples, settings, ClassWeights())
    found = scored(cohort, Task.DISEASE_PROGRESSION)
    pairs = cohort.pairs[cohort.pairs.stay_id == STAY].sort_values("first_hour")
    np.testing.assert_allclose([(word.begin, word.end) for word in found.words], pairs[["first_hour", "second_hour"]])
    np.testing.assert_allclose([word.probabilities for word in found.words], expected.probabilities, atol=1e-6)
    assert [word.label for word in found.words] == [tuple(row) for row in expected.labels.tolist()]
    for dicom, shares in zip(pairs.second_dicom_id, expected.attention.mean(axis=1), strict=True):
        np.testing.assert_allclose(found.glances[dicom].shares, shares / shares.sum(), rtol=1e-5)
        assert found.glances[dicom].of_stay == 1


def test_a_model_without_radiographs_glances_at_none_and_one_of_the_last_at_the_last(cohort) -> None:
    assert scored(cohort, Task.MORTALITY, "parts.radiographs=false").glances == {}
    found = scored(cohort, Task.MORTALITY, "parts.sequence=false")
    assert list(found.glances) == [found.images[-1][0]]


def test_the_chosen_stay_has_the_most_images_in_its_window(tmp_path) -> None:
    cohort = open_cohort(write_cohort(tmp_path / "north", num_patients=24))
    for split in SPLITS:
        counts = {
            stay: sum((cohort.images.stay_id == stay) & (cohort.images.hours < 48))
            for stay in cohort.stays[cohort.stays.split == split].stay_id
        }
        most = min(stay for stay, count in counts.items() if count == max(counts.values()))
        assert choose_stay(cohort, Task.MORTALITY, split) == most
        assert choose_stay(cohort, Task.DISEASE_PROGRESSION, split) == most, "each image but the first ends a pair"


def test_a_stay_that_cannot_be_scored_is_named(cohort, tmp_path) -> None:
    with pytest.raises(DataError, match="has no stay 5; choose another one"):
        records_of(cohort, 5, crop_pixels=16)
    samples = cohort.samples_mortality
    fewer = with_changes(cohort, tmp_path, {"samples_mortality": samples[samples.stay_id != STAY]})
    with pytest.raises(DataError, match=f"stay {STAY} has no sample for mortality"):
        scored(fewer, Task.MORTALITY)
    none = with_changes(cohort, tmp_path, {"samples_mortality": samples[samples.split != "test"]})
    with pytest.raises(DataError, match="no sample for mortality in the test split"):
        choose_stay(none, Task.MORTALITY, "test")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    return catch(monkeypatch, stay_picture)


@pytest.mark.parametrize("task", list(Task))
def test_a_stay_is_drawn_with_its_scores_and_no_text_over_another(cohort, figures, tmp_path, task: Task) -> None:
    found = scored(cohort, task)
    draw_stay(cohort, found, tmp_path / "stay.png")
    (figure,) = figures
    assert unreadable(figure) == []
    titles = [axes.get_title("left") for axes in figure.axes]
    for number, (_, hour) in enumerate(found.images, start=1):
        assert any(title.startswith(f"{number} · hour {hour:.1f}") for title in titles)
    labels = {axes.get_ylabel(): axes for axes in figure.axes}
    if task is Task.MORTALITY:
        dots = labels["risk of death\nin hospital"].lines[1]
        np.testing.assert_allclose(dots.get_xdata(), [word.end for word in found.words[:-1]])
        np.testing.assert_allclose(dots.get_ydata(), [word.probabilities[0, 0] for word in found.words[:-1]])
    elif task is Task.LENGTH_OF_STAY:
        heights = [patch.get_height() for patch in labels["probability of\neach class"].patches]
        np.testing.assert_allclose(heights, np.concatenate([word.probabilities[0] for word in found.words]))
    else:
        outlined = [patch for patch in labels["pneumonia"].patches if not patch.get_fill()]
        said = [word for word in found.words if word.label[6] != NOT_MENTIONED]
        np.testing.assert_allclose(
            [(patch.get_x(), patch.get_height()) for patch in outlined],
            [(word.begin, word.probabilities[6, word.label[6]]) for word in said],
        )


def test_the_caption_says_what_a_model_of_the_last_radiograph_is_given(cohort, figures, tmp_path) -> None:
    for task in (Task.MORTALITY, Task.DISEASE_PROGRESSION):
        draw_stay(cohort, scored(cohort, task, "parts.sequence=false"), tmp_path / "stay.png")
    draw_stay(cohort, scored(cohort, Task.MORTALITY), tmp_path / "stay.png")
    stay, pairs, sequence = (figure.get_supxlabel() for figure in figures)
    assert "latest image, as a pair with itself" in stay
    assert "images so far" not in stay
    assert "not given the first" in pairs
    assert "images so far" in sequence
    assert all(unreadable(figure) == [] for figure in figures)


def test_many_images_and_absent_regions_are_drawn(cohort, figures, tmp_path) -> None:
    many = open_cohort(write_cohort(tmp_path / "many", num_patients=4, num_images=14, first_subject=100))
    boxes = many.boxes.copy()
    dicoms = many.images[many.images.stay_id == STAY].sort_values("hours").dicom_id.tolist()
    boxes.loc[(boxes.dicom_id == dicoms[1]) & (boxes.region == "mediastinum"), ["x1", "y1", "x2", "y2"]] = 0
    boxes.loc[boxes.dicom_id == dicoms[2], ["x1", "y1", "x2", "y2"]] = 0
    write_table(many.path, "boxes", boxes)
    reseal(many.path)
    many = open_cohort(many.path)
    draw_stay(many, scored(many, Task.MORTALITY), tmp_path / "stay.png")
    (figure,) = figures
    assert unreadable(figure) == []
    images = [axes for axes in figure.axes if axes.images and axes.get_title("left")]
    assert [len(axes.patches) for axes in images[:3]] == [10, 9, 0], "absent regions have no box"
    blind = replace(scored(many, Task.MORTALITY), glances={})
    draw_stay(many, blind, tmp_path / "stay.png")
    assert "reads no radiographs" in figures[1].get_supxlabel()


def test_numbers_of_images_keep_apart_and_inside() -> None:
    assert spread([1.0, 5.0, 9.0], 2.0, 10.0) == [1.0, 5.0, 9.0]
    assert spread([1.0, 1.1, 1.2, 8.0], 2.0, 10.0) == [1.0, 3.0, 5.0, 8.0]
    assert spread([9.0, 9.5, 9.9], 2.0, 10.0) == [6.0, 8.0, 10.0]
