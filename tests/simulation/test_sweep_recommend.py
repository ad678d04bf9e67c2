"""The recommendation follows validation patients and simplicity, never test patients."""

import pytest

from dipro_model.vocabulary import Task
from simulation.sweep.recommend import choose, recommendation_page
from simulation.sweep.results import Results, Row, Spread


def row(
    model: str, val: list[float], test: float, *, attack: str = "", kind: str = "federated", failed: int = 0
) -> Row:
    """One setting with the same value of both metrics, by seed on validation patients, one value on test patients."""
    own = Spread(by_seed=dict(enumerate(val)), mean=sum(val) / len(val), sd=None)
    tested = Spread(by_seed=dict.fromkeys(range(len(val)), test), mean=test, sd=0.0)
    metrics = {
        (split, name): spread for split, spread in (("val", own), ("test", tested)) for name in ("auroc", "auprc")
    }
    return Row(
        partition="skew",
        model=model,
        attack=attack,
        site="",
        kind=kind,
        metrics=metrics,
        share={"auroc": test / 0.9, "auprc": test / 0.9},
        difference={},
        from_unattacked={},
        above_local={"auroc": True, "auprc": False},
        seconds=60.0,
        to_sites_bytes=2e6,
        from_sites_bytes=1e6,
        steps=10.0,
        num_refused=0,
        num_failed=failed,
    )


def results(*rows: Row) -> Results:
    return Results(task=Task.MORTALITY, rows=rows, num_patients={"skew": 500}, num_resamples=1000, codes=("a",))


def test_the_first_setting_within_one_standard_error_of_the_best_is_recommended() -> None:
    # The best, c, has sd 0.03 over three seeds: a standard error of 0.01732.
    rows = [row("a", [0.80] * 3, 0.99), row("b", [0.83] * 3, 0.7), row("c", [0.81, 0.84, 0.87], 0.6)]
    (choice,) = choose(results(*rows))
    assert choice.best.model == "b"
    assert choice.standard_error == pytest.approx(0.03 / 3**0.5)
    assert choice.score == pytest.approx(0.83)
    assert choice.runner_up is not None
    assert (choice.runner_up.model, choice.runner_up_score) == ("c", pytest.approx(0.84))
    (further,) = choose(results(rows[0], row("b", [0.82] * 3, 0.7), rows[2]))
    assert further.best.model == "c"


def test_centralized_attacked_and_failed_runs_are_not_recommended() -> None:
    rows = [
        row("centralized", [0.99], 0.9, kind="centralized"),
        row("fedavg", [0.80], 0.8),
        row("fedavg", [0.98], 0.8, attack="noise"),
        row("fedadam", [0.97, 0.97], 0.8, failed=1),
    ]
    (choice,) = choose(results(*rows))
    assert (choice.best.model, choice.best.attack, choice.runner_up) == ("fedavg", "", None)
    assert choose(results(rows[0])) == []


def test_the_page_gives_the_rule_the_choice_and_the_evidence() -> None:
    page = recommendation_page(
        results(row("plain", [0.80], 0.81), row("clever", [0.90], 0.70)), command="dipro-fed sweep X", hours=2.5
    )
    assert "    dipro-fed sweep X\n" in page
    assert "in 2.5 hours of one core together" in page
    assert "the mean of AUROC and AUPRC on the validation patients" in page
    assert "| skew | clever | 0.900 | 0.700 ± 0.000 (77.8 %) | 0.700 ± 0.000 (77.8 %) | AUROC | plain, 0.800 |" in page
    assert "| plain | 0.810 ± 0.000 (90.0 %) |" in page
