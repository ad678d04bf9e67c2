"""The study's tables and sections: numbers as computed, what is missing said in words."""

import csv
import json
import re
from pathlib import Path

import pytest

from dipro_model.vocabulary import Task
from simulation.compare import compare
from simulation.comparison.files import STUDY_FILES
from simulation.comparison.study import Study, study
from simulation.comparison.words import amount, signed
from simulation.report_folder import write_report
from simulation.runs import load_runs
from tests.made_studies import noted
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run, write_fake_study


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of a centralized, a federated, a personal and two local runs, and its report."""
    root = tmp_path_factory.mktemp("study")
    folders = write_fake_study(root, Task.MORTALITY)
    noted(folders[1], traffic={"to_sites_bytes": 2_500_000, "from_sites_bytes": 500_000, "rounds": 6})
    scores = with_scores(make_patients(Task.MORTALITY), 0.8, 9)
    personal = noted(write_fake_run(root / "p", scores, kind="federated", name="ditto"), personal=True)
    found = study(compare(load_runs([*folders, personal]), num_resamples=30))
    write_report(found, root / "report")
    return found, root / "report"


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_study_at_full_precision(written: tuple[Study, Path]) -> None:
    found, folder = written
    assert {each.name for each in folder.iterdir()} >= set(STUDY_FILES)
    for name, expected in (("differences.csv", found.differences), ("gains.csv", found.gains)):
        rows = read(folder, name)
        assert len(rows) == len(expected)
        for row, own in zip(rows, expected, strict=True):
            assert (row["metric"], row["model"], row["reference"], row["site"]) == (
                *(own.metric, own.arm, own.reference, own.site),
            )
            assert float(row["difference"]) == own.estimate.value
            assert (float(row["low"]), float(row["high"])) == (own.estimate.low, own.estimate.high)
            assert row["verdict"] == (own.verdict or "")
    matrix = {(row["metric"], row["model"], row["site"]): float(row["value"]) for row in read(folder, "cross_site.csv")}
    assert {model for _, model, _ in matrix} == {"north alone", "south alone", "centralized", "federated"}
    for (metric, model, site), value in matrix.items():
        assert value == pytest.approx(found.comparison.cells[metric, model, site].result.value, abs=1e-12)
    facts = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert facts["reference"] == "centralized"
    assert facts["margins"] == {"auroc": 0.01, "auprc": 0.02}
    assert [row["model"] for row in facts["costs"]] == [
        "centralized",
        "federated",
        "ditto",
        "north alone",
        "south alone",
    ]
    assert [row["total_bytes"] for row in facts["costs"]] == [None, 3_000_000, None, None, None]


def test_the_page_shows_verdicts_the_matrix_gains_fairness_and_cost(written: tuple[Study, Path]) -> None:
    found, folder = written
    html = (folder / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", " ", html)))
    for difference in found.differences:
        if difference.site == "pooled" and difference.estimate.value is not None:
            assert signed(difference.estimate.value) in text
        if difference.verdict:
            assert difference.verdict in text
    assert html.count('class="number framed"') == 2 * len(SITES)  # AUROC and AUPRC
    assert "What each site gains by joining" in text
    assert "Scores by sex, age and race group are missing" in text
    costs = text[text.index("Bytes from sites") : text.index("Settings that differ")]
    assert "2.5 MB 500.0 kB 500.0 kB 3.0 MB" in costs
    assert costs.count("not recorded") == 4  # the personal run's
    assert "then every site with a model of its own" in text


def test_a_comparison_without_a_centralized_run_says_why_it_has_no_differences(tmp_path: Path) -> None:
    runs = load_runs(write_fake_study(tmp_path, Task.MORTALITY)[1:2])
    write_report(study(compare(runs, num_resamples=5)), tmp_path / "out")
    assert "--reference NAME" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert read(tmp_path / "out", "differences.csv") == []


@pytest.mark.parametrize(
    ("value", "words"), [(0.0004, "0.000"), (-0.0004, "0.000"), (0.0126, "+0.013"), (-0.0126, "−0.013")]
)
def test_differences_have_a_sign_unless_they_round_to_zero(value: float, words: str) -> None:
    assert signed(value) == words


def test_bytes_are_read_in_decimal_units() -> None:
    assert [amount(each) for each in (None, 12, 1500, 2.5e6, 31e9)] == [
        *("not recorded", "12 B", "1.5 kB", "2.5 MB", "31.0 GB"),
    ]
