"""What the terminal shows of a run fits into 100 columns and names what matters first."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dipro_fed.display import brief, print_results, round_display, training_display
from dipro_model.metrics import CALIBRATION, HEADLINE, METRICS, MONITOR, metric_names
from dipro_model.vocabulary import DISEASES, Task
from federation.results import SplitResult
from federation.run_folder import Measurement, RunRecord

TASKS = list(Task)


def record(task: Task, value: float | None = 0.1234, site: str = "hospital_1") -> RunRecord:
    metrics = dict.fromkeys(metric_names(task), value)
    return RunRecord(
        kind="centralized",
        name="centralized",
        task=task,
        seed=23,
        step_unit="epoch",
        sites=(site,),
        trained_on=(site,),
        settings={},
        status="finished",
        best_step=7,
        monitor=MONITOR[task],
        seconds=1.0,
        more={"results": {site: dict.fromkeys(("train", "val", "test"), metrics)}},
    )


def printed(own: RunRecord) -> str:
    console = Console(width=100, file=io.StringIO())
    print_results(own, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("task", TASKS)
def test_the_table_of_results_fits_into_a_hundred_columns(task: Task) -> None:
    text = printed(record(task, site="Hospital of the Holy Ghost"))
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0] == f"centralized: {task}, best epoch 7 by validation {MONITOR[task]}"
    header = next(line for line in text.splitlines() if "split" in line)
    assert header.replace("┃", " ").split() == ["site", "split", *HEADLINE[task], *CALIBRATION]
    assert text.count("0.123") == 3 * len([*HEADLINE[task], *CALIBRATION])
    assert "…" not in text
    others = set(METRICS[task]) - {*HEADLINE[task], *CALIBRATION}
    assert all(name in text for name in others)
    assert ("run.json" in text) == bool(others)


def test_a_run_with_site_level_privacy_says_what_it_spent_by_round() -> None:
    own = record(Task.MORTALITY)
    spent = {
        "epsilon": 2.5,
        "delta": 1e-5,
        "budget": 8.0,
        "by_round": [[number, number / 100, 1.0] for number in range(1, 251)],
    }
    text = " ".join(printed(replace(own, more={**own.more, "site_privacy": spent})).split())
    said = "1: 0.01, 37: 0.37, 72: 0.72, 108: 1.08, 143: 1.43, 179: 1.79, 214: 2.14, 250: 2.50"
    assert f"epsilon 2.50 of 8 at delta 1e-05; after round {said}." in text
    assert "budget ended" not in text
    spent |= {"by_round": spent["by_round"][:2], "ended": "after round 2 of 5: another one would spend more"}
    text = " ".join(printed(replace(own, more={**own.more, "site_privacy": spent})).split())
    assert "after round 1: 0.01, 2: 0.02." in text
    assert "The budget ended the run after round 2 of 5" in text
    assert "privacy" not in printed(own)


def test_undefined_is_a_dash_that_is_explained_and_a_name_is_never_markup() -> None:
    text = printed(record(Task.MORTALITY, None, "[red]north[/red]"))
    assert text.count("– │") == 3 * 4
    assert "–: undefined by the labels there" in text
    assert "undefined" not in printed(record(Task.MORTALITY))
    assert "[red]north[/red]" in text


@pytest.mark.parametrize("task", TASKS)
def test_progress_names_the_monitor_and_one_more(task: Task) -> None:
    text = brief(dict.fromkeys(metric_names(task), 0.5))
    names = [part.split()[0] for part in text.split(", ")]
    assert len(names) == 2
    assert MONITOR[task] in names
    assert set(names) <= set(HEADLINE[task])
    assert not any(disease in text for disease in DISEASES)


@pytest.mark.parametrize("task", TASKS)
def test_progress_over_epochs_fits_into_a_hundred_columns(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = SplitResult(num_samples=9, losses={"total": 1.5}, metrics=dict.fromkeys(metric_names(task), 0.5))
    with training_display(100, f"{task}, centralized") as on_epoch:
        on_epoch(7, result, result)
    line, first, second = capsys.readouterr().err.rstrip().splitlines()
    assert first.startswith(f"{task}, centralized")
    assert "7/100 epochs" in first
    assert second.strip() == f"loss 1.500 train, 1.500 val; val {brief(result.metrics)}"
    assert len(second) <= 100
    assert line == f"{task}, centralized: 7 of 100 epochs; {second.strip()}"


def test_a_file_gets_a_line_for_each_epoch_while_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    result = SplitResult(num_samples=9, losses={"total": 1.5}, metrics={"auroc": 0.5})
    with training_display(3, "mortality, centralized") as on_epoch:
        for epoch in (1, 2):
            on_epoch(epoch, result, result)
            on_epoch(epoch, result, result)
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"mortality, centralized: {epoch} of 3 epochs; loss 1.500 train")


def test_a_terminal_gets_the_bar_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    result = SplitResult(num_samples=9, losses={"total": 1.5}, metrics={"auroc": 0.5})
    with training_display(3, "mortality, centralized") as on_epoch:
        on_epoch(1, result, result)
    written = capsys.readouterr().err
    assert "1/3" in written
    assert "1 of 3 epochs" not in written


def test_progress_over_rounds_names_every_site_of_the_last_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    measurements = [
        Measurement(step=step, site=site, split=split, loss=1.0, parts={}, metrics=metrics, num_samples=3, seconds=1.0)
        for step in (1, 2)
        for site in ("north", "south")
        for split, metrics in (("train", {}), ("val", {"auprc": step / 4, "auroc": None, "brier": 0.1}))
    ]
    with round_display(5, "mortality, federated") as on_round:
        on_round(measurements)
    line, first, second = capsys.readouterr().err.rstrip().splitlines()
    assert "2/5 rounds" in first
    assert second.strip() == "val north: auprc 0.500, auroc undefined; south: auprc 0.500, auroc undefined"
    assert line == f"mortality, federated: 2 of 5 rounds; {second.strip()}"
