"""The report says of every run what it hid: epsilon by site, of whole sites, and updates that the server never saw."""

import csv
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from dipro_model.vocabulary import Task
from federation.audit import AUDIT, AuditLog
from federation.run_folder import RunError
from simulation.compare import compare
from simulation.comparison.privacy import hidden_of
from simulation.comparison.study import Study, study
from simulation.comparison.terminal import print_study
from simulation.report_folder import write_report
from simulation.runs import load_runs
from tests.made_studies import noted
from tests.run_folders import make_patients, with_scores, write_fake_run

PATIENTS = {
    "delta": 1e-5,
    "budget": 8.0,
    "statistics": "noised",
    "sites": {"north": {"steps": 60, "epsilon": 2.31}, "south": {"steps": 40, "epsilon": 1.07}},
}
WHOLE = {
    "epsilon": 3.25,
    "delta": 1e-5,
    "budget": 4.0,
    "noise_multiplier": 5.5,
    "noise_to_update": 812.0,
    "by_round": [[1, 2.1, 1.0], [2, 3.25, 1.0]],
    "ended": "after round 2 of 6: another one would spend more",
}


def _mask(log: AuditLog, number: int, members: list[str], survivors: list[str], *, attempts: int = 1) -> None:
    for attempt in range(attempts):
        log.write("masking", round=number, attempt=f"{number}{attempt}")
    log.write("unmasked", round=number, attempt=f"{number}{attempts - 1}", members=members, survivors=survivors)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """With both kinds of differential privacy, with masks, with nothing, and trained in one place."""
    root, patients = tmp_path_factory.mktemp("hidden"), make_patients(Task.MORTALITY)
    folders = [
        write_fake_run(root / name, with_scores(patients, 1.0, seed), kind="federated", name=name)
        for seed, name in enumerate(("noised", "masked", "plain"))
    ]
    noted(folders[0], privacy=PATIENTS, site_privacy=WHOLE)
    noted(folders[1], secure_aggregation={"least_sites": 2, "hidden": "updates of single sites"})
    log, both = AuditLog(path=folders[1] / AUDIT), ["north", "south"]
    log.write("run began", settings={})
    _mask(log, 1, both, both)
    _mask(log, 2, both, ["south"], attempts=3)
    log.write("masking", round=3, attempt="30")  # never came to a sum
    central = write_fake_run(root / "central", with_scores(patients, 1.0, 4), kind="centralized")
    return [*folders, central]


@pytest.fixture(scope="module")
def found(runs: list[Path]) -> Study:
    return study(compare(load_runs(runs), num_resamples=2))


def test_each_run_says_what_it_hid(found: Study) -> None:
    noised, masked = found.hidden
    assert (noised.model, masked.model) == ("noised", "masked")
    assert noised.patients is not None
    assert noised.patients.epsilon == 2.31, "any patient is at one site: the largest counts"
    assert noised.whole_sites is not None
    assert noised.whole_sites.epsilon == 3.25
    assert noised.updates is None
    updates = masked.updates
    assert updates is not None
    assert (updates.num_hidden, updates.num_again, updates.num_opened) == (3, 2, 1)
    assert updates.by_site("north") == (1, 1)
    assert updates.by_site("south") == (2, 0)


def test_the_table_has_the_numbers_of_the_runs(found: Study, tmp_path: Path) -> None:
    write_report(found, tmp_path / "out")
    with (tmp_path / "out" / "privacy.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["model"], row["hides"], row["site"]): row for row in csv.DictReader(file)}
    epsilons = {key: float(row["epsilon"]) for key, row in rows.items() if row["epsilon"]}
    assert epsilons == {
        ("noised", "patient_privacy", "pooled"): 2.31,
        ("noised", "patient_privacy", "north"): 2.31,
        ("noised", "patient_privacy", "south"): 1.07,
        ("noised", "site_privacy", "pooled"): 3.25,
    }
    together = rows["masked", "secure_aggregation", "pooled"]
    counts = ("rounds", "num_updates", "num_again", "num_opened", "least_sites")
    assert [together[name] for name in counts] == ["2", "3", "2", "1", "2"]
    south = rows["masked", "secure_aggregation", "south"]
    assert (south["rounds"], south["num_opened"]) == ("2", "0")
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(facts["privacy"]) == len(rows) == 7


def test_the_page_and_the_terminal_show_it(found: Study, tmp_path: Path) -> None:
    write_report(found, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html[html.index('id="hidden"') : html.index('id="runs"')]))
    assert "noised 2.31 8 1e-05 noised 2.31 60 steps 1.07 40 steps" in text
    assert "noised 3.25 4 1e-05 2 5.5 812" in text
    assert "noised: the budget ended the run after round 2 of 6" in text
    assert "masked 2 3 2 1 2 or more 1 of 2 1 opened 2 of 2" in text
    assert "Nothing of it was hidden in “plain”." in text
    console = Console(record=True, width=200)
    print_study(found, console)
    shown = console.export_text()
    assert "epsilon 2.31 of 8 at delta 1e-05" in shown
    assert "3 hidden" in shown


def test_a_run_without_an_audit_log_says_that_nothing_was_recorded(runs: list[Path], tmp_path: Path) -> None:
    scores = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    lone = noted(write_fake_run(tmp_path / "run", scores, kind="federated"), secure_aggregation={"least_sites": 2})
    found = study(compare(load_runs([lone]), num_resamples=2))
    (updates,) = (each.updates for each in found.hidden)
    assert updates is not None
    assert (updates.num_hidden, updates.num_opened, updates.by_site("north")) == (None, None, None)
    write_report(found, tmp_path / "out")
    assert "not recorded" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_where_nobody_hid_anything_the_page_has_no_such_section(runs: list[Path], tmp_path: Path) -> None:
    write_report(study(compare(load_runs(runs[2:]), num_resamples=2)), tmp_path / "out")
    assert 'id="hidden"' not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"privacy": {**PATIENTS, "budget": "much"}}, r"`privacy.budget`: expected .*valid number"),
        ({"privacy": {**PATIENTS, "sites": {"north": {"steps": 1}}}}, r"`privacy.sites.north.epsilon`"),
        ({"site_privacy": {"epsilon": 1.0}}, r"`site_privacy.delta`"),
        ({"secure_aggregation": 3}, r"`secure_aggregation`"),
    ],
)
def test_facts_that_no_run_writes_are_refused(facts: dict, words: str, tmp_path: Path) -> None:
    scores = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    run = noted(write_fake_run(tmp_path / "run", scores, kind="federated"), **facts)
    with pytest.raises(RunError, match=words):
        hidden_of(load_runs([run]))
