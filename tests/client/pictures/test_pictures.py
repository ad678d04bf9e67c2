"""What pictures of runs show, read back from the drawn figure and compared with scikit-learn or a slow loop."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from client.pictures import attention, bands, scores, training
from client.pictures.attention import AROUND, attention_shares, draw_attention
from client.pictures.scores import draw_scores
from client.pictures.style import line_styles, save
from client.pictures.training import draw_training
from client.predictions import Predictions
from dipro_model.metrics import score
from dipro_model.vocabulary import REGIONS, TASK_CLASSES, Task
from federation.run_folder import Measurement, RunRecord
from tests.client.pictures.figures import catch, unreadable
from tests.run_folders import SITES, make_history, make_patients, with_scores


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "NUM_RESAMPLES", 20)
    monkeypatch.setattr(attention, "NUM_RESAMPLES", 20)


def scored(task: Task, num_patients: int = 60) -> Predictions:
    own = with_scores(make_patients(task, num_patients=num_patients), 1.0, 1)
    return own.select(own.split == "test")


def record(kind: str = "centralized", best_step: int | None = 3) -> RunRecord:
    return RunRecord(
        kind=kind,
        name=kind,
        task=Task.MORTALITY,
        seed=1,
        step_unit="round" if kind == "federated" else "epoch",
        sites=SITES,
        trained_on=SITES,
        settings={},
        status="finished",
        best_step=best_step,
        monitor="auprc",
        seconds=1.0,
    )


def panel(figure: Figure, title: str) -> Axes:
    (found,) = [axes for axes in figure.axes if title in (axes.get_title("left"), axes.get_ylabel())]
    return found


def legend(axes: Axes) -> list[str]:
    own = axes.get_legend()
    return [] if own is None else [text.get_text() for text in own.get_texts()]


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("skill", [0.0, 6.0])
def test_no_legend_lies_over_a_curve(monkeypatch, tmp_path, task: Task, skill: float) -> None:
    figures = catch(monkeypatch, scores)
    patients = make_patients(task, num_patients=300)
    draw_scores(with_scores(patients, skill, 1), tmp_path / "scores.png", title="t")
    for axes in figures[0].axes:
        if legend(axes):
            box = axes.get_legend().get_window_extent()
            curves = [line for line in axes.lines if line.get_linestyle() == "-"]
            corners = np.concatenate([axes.transData.transform(line.get_xydata()) for line in curves])
            assert not any(box.contains(*corner) for corner in corners.tolist()), axes.get_xlabel()
            assert not box.overlaps(axes.xaxis.label.get_window_extent())


def test_scores_of_death_are_the_curves_and_areas_of_scikit_learn(monkeypatch, tmp_path) -> None:
    own, figures = scored(Task.MORTALITY), catch(monkeypatch, scores)
    draw_scores(own, tmp_path / "scores.png", title="centralized: death")
    died, risk = own.labels == 1, own.probabilities[:, 0, 0]
    (figure,) = figures
    roc = panel(figure, "true positive rate")
    x, y, _ = roc_curve(died, risk, drop_intermediate=False)
    np.testing.assert_allclose(np.transpose(roc.lines[-1].get_data()), np.stack([x, y], axis=1))
    precision, recall, _ = precision_recall_curve(died, risk)
    pr = panel(figure, "precision")
    drawn = np.transpose(pr.lines[-1].get_data())
    np.testing.assert_allclose(drawn, np.stack([recall, precision], axis=1)[::-1])
    assert pr.lines[-1].get_drawstyle() == "steps-pre", "as average precision sums"
    assert pr.lines[0].get_ydata()[0] == pytest.approx(died.mean()), "what guessing reaches"
    areas = score(Task.MORTALITY, own.labels, own.probabilities)
    for axes, name in ((roc, "auroc"), (pr, "auprc")):
        (text,) = legend(axes)
        assert text.startswith(f"died  {areas[name].value:.2f} (")
    assert unreadable(figure) == []


def test_reliability_counts_every_sample_once(monkeypatch, tmp_path) -> None:
    own, figures = scored(Task.MORTALITY), catch(monkeypatch, scores)
    draw_scores(own, tmp_path / "scores.png", title="t")
    risk, counts = own.probabilities[:, 0, 0], panel(figures[0], "samples\nin bin")
    assert sum(counts.lines[0].get_ydata()) == len(own)
    line = panel(figures[0], "observed share").lines[1]
    place = int(np.argmax(counts.lines[0].get_ydata()))
    middle = line.get_xdata()[place]
    inside = np.ceil(risk * 10) == np.ceil(middle * 10)
    assert middle == pytest.approx(risk[inside].mean())
    assert line.get_ydata()[place] == pytest.approx((own.labels[inside] == 1).mean())


@pytest.mark.parametrize("task", [Task.LENGTH_OF_STAY, Task.DISEASE_PROGRESSION])
def test_every_class_has_its_curve_and_area(monkeypatch, tmp_path, task: Task) -> None:
    own, figures = scored(task), catch(monkeypatch, scores)
    draw_scores(own, tmp_path / "scores.png", title="t")
    areas = score(task, own.labels, own.probabilities)
    names = TASK_CLASSES[task]
    shown = [legend(axes) for axes in figures[0].axes if axes.get_xlabel() == "false positive rate"]
    if task is Task.LENGTH_OF_STAY:
        assert [text.split("  ")[0] for (text,) in shown] == list(names)
        values = [float(text.split("  ")[1][:4]) for (text,) in shown]
        assert np.mean(values) == pytest.approx(areas["auroc"].value, abs=0.006)
    else:
        assert [[text.split("  ")[0] for text in texts] for texts in shown] == [list(names)] * 7
        values = [float(text.split("  ")[1][:4]) for text in shown[2]]
        assert np.mean(values) == pytest.approx(areas["auroc/consolidation"].value, abs=0.006)
    assert unreadable(figures[0]) == []


def test_a_disease_without_labels_says_so_and_none_at_all_is_refused(monkeypatch, tmp_path) -> None:
    own, figures = scored(Task.DISEASE_PROGRESSION), catch(monkeypatch, scores)
    labels = own.labels.copy()
    labels[:, 4] = 3
    labels[:, 5] = 1
    draw_scores(replace(own, labels=labels), tmp_path / "scores.png", title="t")
    opacity, effusion = [axes for axes in figures[0].axes if axes.get_xlabel() == "recall"][4:6]
    assert [text.get_text() for text in opacity.texts] == ["no sample has a label"]
    assert effusion.texts[0].get_text().replace("\n", " ") == "no sample is of the class “worsened”"
    assert unreadable(figures[0]) == []
    with pytest.raises(ValueError, match="t: no sample to draw curves of"):
        draw_scores(own.select(np.zeros(len(own), bool)), tmp_path / "none.png", title="t")


def test_a_training_shows_every_measured_value_and_the_chosen_step(monkeypatch, tmp_path) -> None:
    history, figures = make_history(Task.MORTALITY, "centralized", SITES, 14, seed=3), catch(monkeypatch, training)
    draw_training(record(), history, tmp_path / "training.png")
    titles = [axes.get_title("left") for axes in figures[0].axes if axes.axison]
    assert titles == ["objective", "task", "orthogonal (static, dynamic)", "auprc (higher is better)"]
    for title, value in (("objective", lambda each: each.loss), (titles[3], lambda each: each.metrics["auprc"])):
        axes = panel(figures[0], title)
        for line, split in zip(axes.lines, ("train", "val"), strict=False):
            assert list(line.get_ydata()) == [value(each) for each in history if each.split == split]
        assert axes.lines[-1].get_xdata()[0] == 3, "the chosen step"
    assert unreadable(figures[0]) == []


def test_a_federation_shows_the_mean_of_its_sites_by_samples(monkeypatch, tmp_path) -> None:
    rows = [("a", 10, 2.0, 0.5), ("b", 30, 4.0, None)]
    history = [
        Measurement(
            step=1,
            site=site,
            split="val",
            loss=loss,
            parts={"task": loss / 2, "temporal": 0.0},
            metrics={"auprc": auprc},
            num_samples=count,
            seconds=1.0,
        )
        for site, count, loss, auprc in rows
    ]
    figures = catch(monkeypatch, training)
    draw_training(record("federated", best_step=None), history, tmp_path / "training.png")
    drawn = {
        axes.get_title("left"): [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata())]
        for axes in figures[0].axes
    }
    assert drawn == {
        "objective": [[2.0], [4.0], [3.5]],
        "task": [[1.0], [2.0], [1.75]],
        "auprc (higher is better)": [[0.5], [0.5]],
    }, "a term that is 0 throughout is off, and a site without a metric has no say"
    with pytest.raises(ValueError, match="holds no loss and no metric"):
        draw_training(record(), [], tmp_path / "none.png")


def test_shares_of_attention_equal_a_loop_and_lie_in_their_interval() -> None:
    own = scored(Task.DISEASE_PROGRESSION)
    faint = own.attention.copy()
    faint[::2] *= 0.01
    faint[3] = 0
    mean, low, high = attention_shares(replace(own, attention=faint))
    shares = []
    for sample in np.delete(faint, 3, axis=0).astype(float):
        weights = [sum(sample[output][region] for output in range(7)) / 7 for region in range(len(REGIONS))]
        shares.append([weight / sum(weights) for weight in weights])
    np.testing.assert_allclose(mean, np.mean(shares, axis=0))
    assert mean.sum() == pytest.approx(1)
    assert ((low < mean) & (mean < high)).all()
    one = own.select(own.patients == own.patients[0])
    assert np.isnan(attention_shares(one)[1:]).all(), "one patient has no interval"
    with pytest.raises(ValueError, match=r"blind: none of its .* it reads no radiographs"):
        attention_shares(replace(own, attention=np.zeros_like(faint)), "blind")


def test_each_region_lies_at_its_own_angle(monkeypatch, tmp_path) -> None:
    own, figures = scored(Task.MORTALITY), catch(monkeypatch, attention)
    weights = np.full((len(own), 1, len(REGIONS)), 0.01, np.float32)
    weights[:, 0, REGIONS.index("cardiac silhouette")] = 0.11
    draw_attention({"steady": own, "keen": replace(own, attention=weights)}, tmp_path / "attention.png", title="t")
    (axes,) = figures[0].axes
    line = axes.lines[-1]
    assert line.get_ydata()[AROUND.index("cardiac silhouette")] == pytest.approx(0.55)
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    assert tuple(names) == AROUND
    assert sorted(AROUND) == sorted(REGIONS)
    np.testing.assert_allclose(line.get_xdata()[:-1], axes.get_xticks())
    assert unreadable(figures[0]) == []


def test_a_picture_is_whole_and_as_large_as_its_figure(tmp_path) -> None:
    figure = Figure(figsize=(3, 2))
    figure.text(0.5, 0.5, "here")
    assert save(figure, tmp_path / "new" / "picture.png") == tmp_path / "new" / "picture.png"
    with Image.open(tmp_path / "new" / "picture.png") as image:
        assert image.size == (360, 240)
        assert image.convert("L").getextrema()[0] < 50
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]


def test_many_lines_stay_apart() -> None:
    assert len(set(line_styles(20))) == 20
