"""A study as files for other programs: one CSV a question, and comparison.json with all of them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federation.run_folder import PATIENTS, POOLED, SITES, UPDATES
from simulation.comparison.differences import Difference
from simulation.comparison.draws import Estimate
from simulation.comparison.privacy import Hidden
from simulation.comparison.study import Study
from simulation.tables import write_csv

VALUE_COLUMNS = (
    *("metric", "model", "kind", "trained_on", "site", "value", "low", "high", "num_seeds", "sd_over_seeds", "by_seed"),
    *("num_undefined", "reason"),
)
"""Columns of models.csv and cross_site.csv, one row a metric, model (its seeds joined) and site; None is empty."""

DIFFERENCE_COLUMNS = (
    *("metric", "model", "reference", "site", "difference", "low", "high", "margin", "verdict", "verdict_reason"),
    *("seeds", "by_seed", "num_undefined", "reason"),
)
"""Columns of differences.csv and gains.csv."""

FAIRNESS_COLUMNS = (
    *("metric", "model", "attribute", "group", "num_patients", "value", "low", "high", "is_worst", "num_undefined"),
    "reason",
)
"""Columns of fairness.csv; the group `spread` is the largest minus the smallest value of an attribute's groups."""

COST_COLUMNS = (
    *("model", "kind", "seconds", "step_unit", "num_steps", "rounds", "to_sites_bytes", "from_sites_bytes"),
    *("total_bytes", "bytes_per_round"),
)
"""Columns of costs.csv, one row a run; bytes that were not recorded are empty."""

PRIVACY_COLUMNS = (
    *("model", "hides", "site", "epsilon", "delta", "budget", "steps", "rounds", "num_updates", "num_again"),
    *("num_opened", "least_sites"),
)
"""Columns of privacy.csv, a row for what a run hid and where: patient_privacy has one for each site and, as `pooled`,
the largest epsilon; site_privacy one, as `pooled`, for any whole site; secure_aggregation one for each site and, as
`pooled`, all together. What is not of a kind, or was not recorded, is empty."""

MODELS, CROSS_SITE, DIFFERENCES, GAINS, FAIRNESS, COSTS, PRIVACY, STUDY = STUDY_FILES = (
    *("models.csv", "cross_site.csv", "differences.csv", "gains.csv", "fairness.csv", "costs.csv", "privacy.csv"),
    "comparison.json",
)


def write_study(study: Study, folder: Path) -> None:
    """Write the eight files into the folder, at full precision."""
    tables: dict[str, tuple[Sequence[str], list[dict[str, Any]]]] = {
        MODELS: (VALUE_COLUMNS, list(_value_rows(study, [arm.label for arm in study.arms]))),
        CROSS_SITE: (VALUE_COLUMNS, list(_value_rows(study, [arm.label for arm in study.cross_site]))),
        DIFFERENCES: (DIFFERENCE_COLUMNS, [_difference_row(each) for each in study.differences]),
        GAINS: (DIFFERENCE_COLUMNS, [_difference_row(each) for each in study.gains]),
        FAIRNESS: (FAIRNESS_COLUMNS, list(_fairness_rows(study))),
        COSTS: (COST_COLUMNS, list(_cost_rows(study))),
        PRIVACY: (PRIVACY_COLUMNS, [row for each in study.hidden for row in _privacy_rows(each)]),
    }
    for name, (columns, rows) in tables.items():
        write_csv(folder / name, columns, rows)
    comparison = study.comparison
    facts = {
        "schema_version": 1,
        "task": comparison.task,
        "split": comparison.split,
        "bootstrap": {
            "unit": "patient",
            "kind": "percentile",
            "kind_of_spread": "basic",
            "paired": True,
            "level": comparison.level,
            "num_resamples": comparison.num_resamples,
            "seed": comparison.seed,
        },
        "reference": study.reference,
        "margins": study.margins,
        "minimum_group": study.fairness.minimum,
        "arms": [asdict(arm) for arm in study.arms],
        "notes": [*comparison.notes, *study.notes],
        **{name.removesuffix(".csv"): rows for name, (_, rows) in tables.items()},
    }
    text = json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / STUDY).write_text(text + "\n", encoding="utf-8")


def _interval(estimate: Estimate) -> dict[str, Any]:
    return {
        "low": estimate.low,
        "high": estimate.high,
        "num_undefined": estimate.num_undefined,
        "reason": estimate.reason,
    }


def _value_rows(study: Study, labels: Iterable[str]) -> Iterator[dict[str, Any]]:
    arms = {arm.label: arm for arm in study.arms}
    for metric in study.metrics:
        for arm in (arms[label] for label in labels):
            for column in study.comparison.columns:
                own = study.values[metric, arm.label, column.site]
                yield {
                    "metric": metric,
                    "model": arm.label,
                    "kind": arm.kind,
                    "trained_on": list(arm.trained_on),
                    "site": column.site,
                    "value": own.estimate.value,
                    "num_seeds": len(arm.models),
                    "sd_over_seeds": own.sd,
                    "by_seed": dict(own.by_seed) if None not in own.by_seed else {},
                    **_interval(own.estimate),
                }


def _difference_row(difference: Difference) -> dict[str, Any]:
    return {
        "metric": difference.metric,
        "model": difference.arm,
        "reference": difference.reference,
        "site": difference.site,
        "difference": difference.estimate.value,
        "margin": difference.margin,
        "verdict": difference.verdict,
        "verdict_reason": difference.verdict_reason,
        "seeds": list(difference.seeds),
        "by_seed": dict(difference.by_seed),
        **_interval(difference.estimate),
    }


def _fairness_rows(study: Study) -> Iterator[dict[str, Any]]:
    for spread in study.fairness.spreads:
        common = {"metric": spread.metric, "model": spread.arm, "attribute": spread.attribute}
        for group in (each for each in study.fairness.groups if each.attribute == spread.attribute):
            own = {**common, "group": group.name, "num_patients": group.num_patients}
            estimate = spread.by_group.get(group.name)
            if estimate is None:
                reason = f"withheld: fewer than {study.fairness.minimum} patients"
                yield {**own, "value": None, "low": None, "high": None, "is_worst": False, "reason": reason}
            else:
                is_worst = group.name == spread.worst
                yield {**own, "value": estimate.value, "is_worst": is_worst, **_interval(estimate)}
        whole = {**common, "group": "spread", "num_patients": None, "is_worst": False}
        yield {**whole, "value": spread.spread.value, **_interval(spread.spread)}


def _cost_rows(study: Study) -> Iterator[dict[str, Any]]:
    for cost in study.costs:
        yield {**asdict(cost), "total_bytes": cost.total_bytes, "bytes_per_round": cost.bytes_per_round}


def _privacy_rows(hidden: Hidden) -> Iterator[dict[str, Any]]:
    empty = {**dict.fromkeys(PRIVACY_COLUMNS), "model": hidden.model}
    if (patients := hidden.patients) is not None:
        common = {**empty, "hides": PATIENTS, "delta": patients.delta, "budget": patients.budget}
        yield {**common, "site": POOLED, "epsilon": patients.epsilon}
        for site, spent in patients.sites.items():
            yield {**common, "site": site, "epsilon": spent.epsilon, "steps": spent.steps}
    if (sites := hidden.whole_sites) is not None:
        common = {**empty, "hides": SITES, "delta": sites.delta, "budget": sites.budget}
        yield {**common, "site": POOLED, "epsilon": sites.epsilon, "rounds": len(sites.by_round)}
    if (updates := hidden.updates) is not None:
        common = {**empty, "hides": UPDATES, "least_sites": updates.least_sites}
        told = {"num_updates": updates.num_hidden, "num_again": updates.num_again, "num_opened": updates.num_opened}
        rounds = None if updates.rounds is None else len(updates.rounds)
        yield {**common, "site": POOLED, "rounds": rounds, **told}
        for site in hidden.sites:
            masked, opened = updates.by_site(site) or (None, None)
            yield {**common, "site": site, "rounds": masked, "num_updates": masked, "num_opened": opened}
