"""Which federated setting to take for each kind of skew, chosen by validation patients, with test figures beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from simulation.sweep.results import Results, Row, shown_metrics
from simulation.sweep.tables import conditions, markdown, markdown_table, signed, with_share
from simulation.tables import METRIC_NAMES

RULE = (
    "Chosen by validation patients alone: the score of a setting is the mean of {metrics} on the validation patients "
    "of all sites as one set, averaged over seeds. Of the settings whose score is at most one standard error (of the "
    "best one, over seeds) below the best, the first in the sweep's file is recommended, because the file names "
    "simpler settings first. Test figures are evidence and choose nothing."
)
"""The rule in words, for the page."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recommendation for one partition."""

    partition: str
    best: Row
    score: float
    """Of the recommended setting, on validation patients."""
    runner_up: Row | None
    """The best of the others; None where there is one setting only."""
    runner_up_score: float | None
    standard_error: float
    """Of the highest score, over seeds; 0 with one seed."""


def choose(results: Results) -> list[Choice]:
    """A setting for each partition on which federated runs without an attack are finished."""
    choices = []
    for partition in results.partitions:
        rows = [
            row
            for row in results.of(partition)
            if row.kind == "federated" and not row.attack and not row.num_failed and _scores(results, row)
        ]
        if rows:
            choices.append(_choice(results, partition, rows))
    return choices


def recommendation_page(results: Results, *, command: str, hours: float) -> str:
    """The page in Markdown: the rule, a row a kind of skew, and every setting's figures as evidence."""
    names = shown_metrics(results.task)
    heads = [METRIC_NAMES[name] for name in names]
    rule = RULE.format(metrics=" and ".join(heads))
    columns = ["kind of skew", "recommended", "validation score"]
    columns += [f"test {head} (share)" for head in heads]
    columns += ["above every local model", "runner-up, its validation score", "test AUROC, recommended − centralized"]
    choices = choose(results)
    parts = [
        f"# Which strategy for which skew: {results.task}\n\nMade by\n\n    {command}\n\n",
        f"in {hours:.1f} hours of one core together. {rule}\n\n{conditions(results)}\n\n",
        markdown(columns, [_row(choice, names) for choice in choices]),
        "\n## Evidence\n",
    ]
    for partition in results.partitions:
        parts.append(f"\n### {partition}\n\n{results.num_patients[partition]} test patients.\n\n")
        parts.append(markdown_table(results, partition))
    return "".join(parts)


def _scores(results: Results, row: Row) -> list[float]:
    """By seed, the mean of the shown metrics on the validation patients; empty where one of them is undefined."""
    spreads = [row.metrics["val", name].by_seed for name in shown_metrics(results.task)]
    by_seed = [[spread[seed] for spread in spreads] for seed in spreads[0]]
    defined = [fmean(own) for values in by_seed if len(own := [v for v in values if v is not None]) == len(values)]
    return defined if len(defined) == len(by_seed) else []


def _choice(results: Results, partition: str, rows: Sequence[Row]) -> Choice:
    scores = [_scores(results, row) for row in rows]
    means = [fmean(own) for own in scores]
    top = means.index(max(means))
    error = stdev(scores[top]) / sqrt(len(scores[top])) if len(scores[top]) > 1 else 0.0
    chosen = next(place for place, mean in enumerate(means) if mean >= means[top] - error)
    others = sorted((place for place in range(len(rows)) if place != chosen), key=lambda place: -means[place])
    return Choice(
        partition=partition,
        best=rows[chosen],
        score=means[chosen],
        runner_up=rows[others[0]] if others else None,
        runner_up_score=means[others[0]] if others else None,
        standard_error=error,
    )


def _row(choice: Choice, names: Sequence[str]) -> list[str]:
    best = choice.best
    cells = [choice.partition, best.model, f"{choice.score:.3f}"]
    cells += [with_share(best, name) for name in names]
    above = ", ".join(METRIC_NAMES[name] for name in names if best.above_local.get(name))
    cells.append((above or "none") if best.above_local else "–")
    if choice.runner_up is None or choice.runner_up_score is None:
        cells.append("–")
    else:
        close = abs(choice.score - choice.runner_up_score) <= choice.standard_error
        words = ", not told apart" if close else ""
        cells.append(f"{choice.runner_up.model}, {choice.runner_up_score:.3f}{words}")
    return [*cells, signed(best.difference.get("auroc"))]
