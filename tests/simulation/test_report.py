"""The report's files: numbers as computed, names harmless, nothing loaded from elsewhere, all files or none."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from markupsafe import escape

from client.predictions import read_predictions
from dipro_model.metrics import CALIBRATION, EQUAL_TO_ACCURACY, HEADLINE, LOWER_IS_BETTER, METRICS
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task
from simulation.compare import ALONE, Comparison, compare
from simulation.comparison.study import Study as Conclusions
from simulation.comparison.study import study as conclude
from simulation.figures import curves, reliability
from simulation.report import render_report as render_study
from simulation.report_folder import FILES
from simulation.report_folder import write_report as write_study_report
from simulation.report_words import meaning
from simulation.runs import load_runs
from simulation.tables import CURVE_COLUMNS, METRIC_NAMES, TABLE_COLUMNS
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run, write_fake_study

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)> & %{x} [red]'


class Page(HTMLParser):
    """Collects the tags, the text outside scripts and styles, and every address that the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


Study = Callable[..., Comparison]


_CONCLUDED: dict[int, Conclusions] = {}
"""By the comparison's id, which no other can take while the study holds it."""


def concluded(comparison: Comparison) -> Conclusions:
    """What follows from a comparison; made once for each."""
    if id(comparison) not in _CONCLUDED:
        _CONCLUDED[id(comparison)] = conclude(comparison)
    return _CONCLUDED[id(comparison)]


def render_report(comparison: Comparison) -> str:
    return render_study(concluded(comparison))


def write_report(comparison: Comparison, folder: Path) -> None:
    write_study_report(concluded(comparison), folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The comparison of a made-up study of a task, mortality where none is named; each is made once."""

    @cache
    def made(task: Task = Task.MORTALITY) -> Comparison:
        return compare(load_runs(write_fake_study(tmp_path_factory.mktemp(task), task)), num_resamples=30)

    return made


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(comparison: Comparison, folder: Path) -> dict[str, str]:
    """The text of every file of a report."""
    write_report(comparison, folder / "written")
    return {each.name: each.read_text(encoding="utf-8") for each in (folder / "written").iterdir()}


def test_table_csv_equals_a_recomputation(study: Study, tmp_path: Path) -> None:
    write_report(study(), tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "table.csv")
    assert tuple(rows[0]) == TABLE_COLUMNS
    values = {(row["metric"], row["model"], row["site"]): float(row["value"]) for row in rows}
    scored = read_predictions(study().runs[1].path, Task.MORTALITY, SITES)
    for site in ("pooled", *SITES):
        own = scored.select((scored.split == "test") & ((scored.site == site) | (site == "pooled")))
        risk = own.probabilities[:, 0, 0].astype(np.float64)
        assert values["auroc", "federated", site] == pytest.approx(sk.roc_auc_score(own.labels, risk), abs=1e-12)
        expected = sk.average_precision_score(own.labels, risk)
        assert values["auprc", "federated", site] == pytest.approx(expected, abs=1e-12)
    assert {row["model"] for row in rows} == {"centralized", "federated", "north alone", "south alone", ALONE}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_table_json_holds_the_comparison_at_full_precision(study: Study, tmp_path: Path) -> None:
    comparison = study(Task.DISEASE_PROGRESSION)
    write_report(comparison, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(facts["cells"]) == len(comparison.cells)
    for cell in facts["cells"]:
        expected = comparison.cells[cell["metric"], cell["model"], cell["site"]]
        assert cell["value"] == expected.result.value
        assert (cell["low"], cell["high"]) == (expected.interval.low, expected.interval.high)
    assert facts["bootstrap"] == {
        "unit": "patient",
        "kind": "percentile",
        "kind_of_ece": "basic",
        "level": 0.95,
        "num_resamples": 30,
        "seed": 0,
    }
    assert facts["differing_settings"]["strategy"] == {"federated": '"fedavg"'}


def test_curves_csv_holds_every_measurement(study: Study, tmp_path: Path) -> None:
    comparison = study()
    write_report(comparison, tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "curves.csv")
    assert tuple(rows[0]) == CURVE_COLUMNS
    found = {
        (row["run"], row["site"], row["split"], int(row["step"])): float(row["value"])
        for row in rows
        if row["quantity"] == "auprc"
    }
    expected = {
        (run.label, each.site, each.split, each.step): each.metrics["auprc"]
        for run in comparison.runs
        for each in run.history
    }
    assert found == expected


@pytest.mark.parametrize("task", list(Task))
def test_the_page_says_what_was_compared(study: Study, task: Task) -> None:
    comparison = study(task)
    page = Page(render_report(comparison))
    pooled = comparison.columns[0]
    assert f"{pooled.num_patients} patients, {pooled.num_samples} " in page.text
    assert "whom none of them was trained on" in page.text
    assert "95 % percentile bootstrap intervals from 30 resamples" in page.text
    assert "training.local_epochs" in page.text
    for metric in comparison.metrics:
        for model in comparison.models:
            cell = comparison.cells[metric, model.label, "pooled"]
            assert f"{cell.result.value:.3f}" in page.text
    assert all(disease in page.text for disease in DISEASES) == (task is Task.DISEASE_PROGRESSION)


@pytest.mark.parametrize("task", list(Task))
def test_published_metrics_come_first_and_open_the_rest_folded(study: Study, task: Task) -> None:
    html = render_report(study(task))
    titles = [METRIC_NAMES[name] for name in METRICS[task]]
    places = {title: html.find(f'<span class="stay">{escape(title)} ') for title in titles}
    further, calibration = html.find("<summary>Further scores"), html.find('id="calibration"')
    shown = [title for title in titles if not title.startswith("Micro")]
    assert sorted(shown, key=places.__getitem__) == shown
    for name in METRICS[task]:
        place = places[METRIC_NAMES[name]]
        if name in HEADLINE[task]:
            assert 0 < place < calibration
            assert further == -1 or place < further
        elif name in CALIBRATION:
            assert place > calibration
        elif name in EQUAL_TO_ACCURACY:
            assert place == -1
        else:
            assert further < place < calibration
    assert (further > 0) == (task is Task.LENGTH_OF_STAY)
    note = "Micro F1, Micro precision and Micro recall equal the accuracy"
    assert (note in Page(html).text) == (task is Task.LENGTH_OF_STAY)


@pytest.mark.parametrize("task", list(Task))
def test_the_page_says_where_lower_is_better(study: Study, tmp_path: Path, task: Task) -> None:
    comparison = study(task)
    for metric in METRICS[task]:
        if metric not in EQUAL_TO_ACCURACY:
            assert ("lower is better" in meaning(comparison, metric)) == (metric in LOWER_IS_BETTER)
    assert json.loads(written(comparison, tmp_path)["table.json"])["lower_is_better"] == list(CALIBRATION)


@pytest.mark.parametrize(("task", "half"), [(Task.MORTALITY, True), (Task.LENGTH_OF_STAY, False)])
def test_the_brier_score_of_knowing_only_the_shares_is_said(study: Study, task: Task, half: bool) -> None:
    comparison = study(task)
    rows = read_predictions(comparison.runs[0].path, task, SITES)
    labels = rows.labels[rows.split == "test"]
    names = range(len(TASK_CLASSES[task]))
    shares = np.tile([(labels == c).mean() for c in names], (len(labels), 1))
    expected = sk.brier_score_loss(labels, shares[:, 1] if half else shares, labels=list(names), scale_by_half=half)
    assert meaning(comparison, "brier").endswith(f" {expected:.3f}")


def test_reliability_is_drawn_and_written_for_every_model(study: Study, tmp_path: Path) -> None:
    comparison = study()
    (figure,) = reliability(comparison)
    diagonal, *traces = figure.traces
    assert (diagonal["x"], diagonal["y"], diagonal["meta"]["color"]) == ([0, 1], [0, 1], None)
    assert [trace["name"] for trace in traces] == [model.label for model in comparison.models]
    rows = read_predictions(study().runs[1].path, Task.MORTALITY, SITES)
    rows = rows.select(rows.split == "test")
    risk = rows.probabilities[:, 0, 0].astype(np.float64)
    observed, predicted = sklearn.calibration.calibration_curve(rows.labels, risk, n_bins=10)
    facts = json.loads(written(comparison, tmp_path)["table.json"])["reliability"]["federated"]["mortality"]
    for x, y, count in (
        (traces[1]["x"], traces[1]["y"], traces[1]["customdata"]),
        (facts["predicted"], facts["observed"], facts["count"]),
    ):
        assert x == pytest.approx(predicted)
        assert y == pytest.approx(observed)
        assert sum(count) == len(rows)


def test_every_disease_with_a_label_has_its_reliability(tmp_path: Path) -> None:
    patients = make_patients(Task.DISEASE_PROGRESSION)
    labels = patients.labels.copy()
    labels[:, DISEASES.index("pneumonia")] = NOT_MENTIONED
    run = write_fake_run(tmp_path / "run", with_scores(replace(patients, labels=labels), 1.0, 1), kind="federated")
    comparison = compare(load_runs([run]), num_resamples=5)
    assert [figure.title.lower() for figure in reliability(comparison)] == list(DISEASES[:-1])
    html = render_report(comparison)
    assert html.count('id="plot-reliability-') == 6
    assert comparison.reliability["federated"]["pneumonia"].reason == "no sample has a label"


def test_the_page_needs_no_network(study: Study) -> None:
    page = Page(render_report(study()))
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    assert all(address.startswith("#note-") for address in page.addresses)


def test_hostile_names_stay_text(study: Study, tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY, sites=(HOSTILE, "b"))
    labels = np.where(patients.site == "b", 0, patients.labels).astype(np.int8)
    scored = with_scores(replace(patients, labels=labels), 1.0, 1)
    folders = [
        write_fake_run(tmp_path / "a", scored, kind="federated", name=HOSTILE, settings={HOSTILE: HOSTILE}),
        write_fake_run(tmp_path / "b", scored, kind="local", trained_on=[HOSTILE], settings={}),
    ]
    comparison = compare(load_runs(folders), num_resamples=20)
    html = render_report(comparison)
    page, harmless = Page(html), Page(render_report(study()))
    assert page.tags.count("script") == harmless.tags.count("script") == 3
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.text.count("<img src=x onerror=alert(2)> & %{x} [red]") > 3
    start = html.index('id="figures">') + len('id="figures">')
    figures = json.loads(html[start : html.index("</script>", start)])
    assert [figure["name"] for figure in figures] == ["monitor", "loss-val", "loss-train", "reliability-0"]
    names = [trace.get("name", "") for figure in figures for trace in figure["traces"]]
    assert all("<" not in name and "%{" not in name for name in names)
    write_report(comparison, tmp_path / "out")
    assert HOSTILE in {row["model"] for row in read_csv(tmp_path / "out" / "table.csv")}


def test_undefined_is_said_with_its_reason(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    labels = np.where(patients.site == "south", 0, patients.labels).astype(np.int8)
    run = write_fake_run(tmp_path / "run", with_scores(replace(patients, labels=labels), 1.0, 1), kind="federated")
    comparison = compare(load_runs([run]), num_resamples=20)
    html = render_report(comparison)
    assert Page(html).text.count("undefined 1") == 2
    assert 'title="needs labels of at least two classes, found one class only"' in html
    write_report(comparison, tmp_path / "out")
    south = [row for row in read_csv(tmp_path / "out" / "table.csv") if row["site"] == "south"]
    assert {row["metric"] for row in south} == set(METRICS[Task.MORTALITY])
    for row in south:
        assert (row["value"] == row["low"] == row["high"] == "") == (row["metric"] in HEADLINE[Task.MORTALITY])
        assert ("two classes" in row["reason"]) == (row["value"] == "")


def test_a_history_without_a_validation_metric_still_makes_a_page(tmp_path: Path) -> None:
    runs = load_runs(write_fake_study(tmp_path / "runs", Task.MORTALITY)[:1])
    silent = replace(runs[0], history=[replace(each, loss=None, metrics={}) for each in runs[0].history])
    comparison = compare([silent], num_resamples=5)
    assert curves(comparison) == []
    page = Page(render_report(comparison))
    assert "Training" not in page.texts
    assert "AUROC" in page.text


def test_a_page_without_any_curve_loads_no_script(tmp_path: Path) -> None:
    runs = load_runs(write_fake_study(tmp_path / "runs", Task.MORTALITY)[:1])
    silent = replace(runs[0], history=[])
    nobody = replace(silent, predictions=silent.predictions.select(silent.predictions.split != "test"))
    page = Page(render_report(compare([nobody], num_resamples=5)))
    assert page.tags.count("script") == 0
    assert "no sample has a label" in page.text


def test_an_earlier_report_is_replaced_as_a_whole(study: Study, tmp_path: Path) -> None:
    comparison, out = study(), tmp_path / "deep" / "out"
    write_report(comparison, out)
    (out / "table.csv").write_text("old")
    write_report(comparison, out)
    assert sorted(each.name for each in out.iterdir()) == sorted(FILES)
    assert (out / "table.csv").read_text() != "old"
    assert [each.name for each in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_report(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, out = study(), tmp_path / "out"
    write_report(comparison, out)
    before = {each.name: each.read_bytes() for each in out.iterdir()}

    def fail(_: Conclusions) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr("simulation.report_folder.render_report", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(comparison, out)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(study: Study, tmp_path: Path) -> None:
    comparison = study()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"found table\.csv; choose another --out"):
        write_report(comparison, tmp_path / "out")
    assert (tmp_path / "out" / "table.csv").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="found a file"):
        write_report(comparison, tmp_path / "file")


def test_curves_show_pooled_lines_thick_and_sites_thin(study: Study) -> None:
    comparison = study()
    monitor, _, train = curves(comparison)
    by_name = {trace["name"]: trace for trace in monitor.traces}
    assert by_name["centralized"]["meta"]["main"]
    assert not by_name["federated: north"]["meta"]["main"]
    central = comparison.runs[0]
    val = [each for each in central.history if each.split == "val"]
    assert by_name["centralized"]["x"] == [each.step for each in val]
    assert by_name["centralized"]["y"] == [each.metrics["auprc"] for each in val]
    chosen = by_name["centralized: chosen"]
    assert (chosen["x"], chosen["y"]) == ([11], [val[10].metrics["auprc"]])
    assert [trace["name"] for trace in train.traces if trace["showlegend"]] == [run.label for run in comparison.runs]


def test_a_run_without_pooled_losses_names_its_sites(tmp_path: Path) -> None:
    runs = load_runs(write_fake_study(tmp_path / "runs", Task.MORTALITY)[1:2])
    sites_only = replace(runs[0], history=[each for each in runs[0].history if each.site != "pooled"])
    train = curves(compare([sites_only], num_resamples=5))[-1]
    assert [trace["name"] for trace in train.traces] == ["federated: north", "federated: south"]
    assert all(trace["showlegend"] and not trace["meta"]["main"] for trace in train.traces)
