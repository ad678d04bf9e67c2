"""A study as the page's templates take it: texts, and places of marks in percent of a cell's width."""

from collections.abc import Iterable, Sequence
from typing import Any

from dipro_model.metrics import HEADLINE, LOWER_IS_BETTER
from federation.run_folder import POOLED
from simulation.compare import Column
from simulation.comparison import words
from simulation.comparison.arms import Arm
from simulation.comparison.costs import Cost
from simulation.comparison.differences import Difference
from simulation.comparison.draws import Estimate
from simulation.comparison.fairness import SITE, Spread
from simulation.comparison.privacy import Hidden
from simulation.comparison.study import Study
from simulation.report_words import duration
from simulation.tables import METRIC_NAMES, direction, three_digits

_MARGINS_SHOWN = 6
"""How far the axis of differences reaches at most, in margins."""

_OPEN_HEAT_MAPS = 2
"""Heat maps that are not folded."""


def study_context(study: Study) -> dict[str, Any]:
    """What the study's templates need."""
    headline = [name for name in HEADLINE[study.comparison.task] if name not in study.margins]
    shown = [*study.margins, *headline]
    rest = [name for name in study.metrics if name not in shown]
    return {
        "verdicts": words.verdicts(study),
        "differences_caption": words.differences_caption(study),
        "seeds_caption": words.seeds_caption(study),
        "differences": [_difference_block(study, name) for name in shown if study.differences],
        "further_differences": [_difference_block(study, name) for name in rest if study.differences],
        "heat_maps": [_heat_map(study, name) for name in HEADLINE[study.comparison.task]],
        "open_heat_maps": _OPEN_HEAT_MAPS,
        "cross_site_caption": words.CROSS_SITE_CAPTION,
        "gains": [_gain_block(study, name) for name in shown if study.gains],
        "gains_caption": words.GAINS_CAPTION,
        "fairness": _fairness(study),
        "fairness_caption": words.fairness_caption(study),
        "costs": [_cost(study, each) for each in study.costs],
        "hidden": _hidden(study),
        "reference_note": study.reference_note,
        "fairness_notes": study.fairness.notes,
    }


def _number(study: Study, label: str) -> int:
    """The number of an arm's colour: that of its first model in the table of scores."""
    arm = next(arm for arm in study.arms if arm.label == label)
    models = [model.label for model in study.comparison.models]
    return models.index(next(iter(arm.models.values())))


def _mean_and_sd(study: Study, metric: str, label: str, site: str) -> str | None:
    own = study.values[metric, label, site]
    if own.estimate.value is None:
        return None
    return three_digits(own.estimate.value) + (f" ± {three_digits(own.sd)}" if own.sd is not None else "")


def _difference_block(study: Study, metric: str) -> dict[str, Any]:
    """One metric: a row an arm; the pooled value, the difference pooled and at every site."""
    own = [each for each in study.differences if each.metric == metric]
    scale = _scale(own, study.margins.get(metric))
    by_arm = {arm.label: [each for each in own if each.arm == arm.label] for arm in study.arms}
    rows = [
        {
            "number": _number(study, label),
            "label": label,
            "value": _mean_and_sd(study, metric, label, POOLED),
            "cells": [_forest(each, scale) for each in found],
        }
        for label, found in by_arm.items()
        if found
    ]
    reference = {
        "number": _number(study, str(study.reference)),
        "label": study.reference,
        "value": _mean_and_sd(study, metric, str(study.reference), POOLED),
    }
    return {"title": METRIC_NAMES[metric] + direction(metric), "reference": reference, "rows": rows}


def _gain_block(study: Study, metric: str) -> dict[str, Any]:
    """One metric: a row a model trained together, a cell a site; None where the site has no single local model."""
    own = [each for each in study.gains if each.metric == metric]
    scale, sites = _scale(own, None), [column.site for column in study.comparison.columns]
    rows = []
    for label in dict.fromkeys(each.arm for each in own):
        by_site = {each.site: _forest(each, scale) for each in own if each.arm == label}
        rows.append({"number": _number(study, label), "label": label, "cells": [by_site.get(site) for site in sites]})
    return {"title": METRIC_NAMES[metric] + direction(metric), "rows": rows}


def _scale(found: Iterable[Difference], margin: float | None) -> tuple[float, float]:
    """The ends of the axis of a metric's differences: 0 and the margin lie between them, and what is not far away."""
    numbers = [0.0, *([margin, -margin] if margin else [])]
    for each in found:
        numbers += [n for n in (each.estimate.value, each.estimate.low, each.estimate.high) if n is not None]
    low, high = min(numbers), max(numbers)
    if margin:  # far outside, only the side matters: the region of the margin stays legible
        low, high = max(low, -_MARGINS_SHOWN * margin), min(high, _MARGINS_SHOWN * margin)
    return (low, high) if high > low else (-0.01, 0.01)


def _forest(difference: Difference, scale: tuple[float, float]) -> dict[str, Any]:
    """A difference as text, with the places of its marks."""
    own, margin = difference.estimate, difference.margin
    worse = margin if difference.metric in LOWER_IS_BETTER else -margin if margin is not None else None
    return {
        "value": None if own.value is None else words.signed(own.value),
        "interval": words.signed_interval(own),
        "off": "" if own.value is None else "◂" if own.value < scale[0] else "▸" if own.value > scale[1] else "",
        "at": None if own.value is None else _place(own.value, scale),
        "span": None if own.low is None or own.high is None else (_place(own.low, scale), _place(own.high, scale)),
        "zero": _place(0, scale),
        "margin": None if worse is None else _place(worse, scale),
        "verdict": difference.verdict,
        "mark": words.VERDICT_CLASSES.get(difference.verdict or "", ""),
        "reason": difference.verdict_reason or own.reason,
    }


def _place(value: float, scale: tuple[float, float]) -> float:
    """Percent of the cell's width; at the edge what lies outside the scale."""
    share = (value - scale[0]) / (scale[1] - scale[0])
    return 0 if share < 0 else 100 if share > 1 else round(3 + 94 * share, 2)


def _heat_map(study: Study, metric: str) -> dict[str, Any]:
    """One metric: a row a model, a cell a column, the shade by its place between the worst and the best value."""
    columns, arms = study.comparison.columns, study.cross_site
    estimates = {
        (arm.label, column.site): study.values[metric, arm.label, column.site].estimate
        for arm in arms
        for column in columns
    }
    values = [each.value for each in estimates.values() if each.value is not None]
    ends = (min(values, default=0.0), max(values, default=1.0))
    rows = [
        {
            "number": _number(study, arm.label),
            "label": arm.label,
            "cells": [_heat(estimates[arm.label, column.site], ends, metric, arm, column) for column in columns],
        }
        for arm in arms
    ]
    return {"title": METRIC_NAMES[metric] + direction(metric), "rows": rows, "ends": [three_digits(e) for e in ends]}


def _heat(estimate: Estimate, ends: tuple[float, float], metric: str, arm: Arm, column: Column) -> dict[str, Any]:
    own = arm.kind == "local" and arm.trained_on == (column.site,)
    if estimate.value is None:
        return {"value": None, "shade": 0, "own": own, "hint": estimate.reason}
    share = (estimate.value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
    shade = 1 - share if metric in LOWER_IS_BETTER else share
    interval = (
        ""
        if estimate.low is None or estimate.high is None
        else (f"{three_digits(estimate.low)}–{three_digits(estimate.high)}")
    )
    return {"value": three_digits(estimate.value), "shade": round(62 * shade), "own": own, "hint": interval}


def _fairness(study: Study) -> list[dict[str, Any]]:
    """One block an attribute: groups in columns; metrics and arms in rows, those of one site alone left out."""
    kinds = {arm.label: arm.kind for arm in study.arms}
    blocks = []
    for attribute in dict.fromkeys(group.attribute for group in study.fairness.groups):
        groups = [group for group in study.fairness.groups if group.attribute == attribute]
        names = [group.name for group in groups]
        spreads = [
            each for each in study.fairness.spreads if each.attribute == attribute and kinds[each.arm] != "local"
        ]
        metrics = [
            {
                "title": METRIC_NAMES[metric] + direction(metric),
                "rows": [_fairness_row(study, each, names) for each in spreads if each.metric == metric],
            }
            for metric in study.fairness.metrics
        ]
        columns = [
            {"title": group.name, "counts": f"{group.num_patients} patients" if group.num_patients else "withheld"}
            for group in groups
        ]
        title = "By site" if attribute == SITE else f"By {attribute}"
        blocks.append({"title": title, "columns": columns, "metrics": metrics, "open": attribute == SITE})
    return blocks


def _fairness_row(study: Study, spread: Spread, groups: Sequence[str]) -> dict[str, Any]:
    return {
        "number": _number(study, spread.arm),
        "label": spread.arm,
        "cells": [
            None if name not in spread.by_group else _plain(spread.by_group[name], worst=name == spread.worst)
            for name in groups
        ],
        "worst": spread.worst or "–",
        "spread": _plain(spread.spread),
    }


def _plain(estimate: Estimate, *, worst: bool = False) -> dict[str, Any]:
    value, low, high = estimate.value, estimate.low, estimate.high
    return {
        "value": None if value is None else three_digits(value),
        "interval": None if low is None or high is None else f"{three_digits(low)}–{three_digits(high)}",
        "reason": estimate.reason,
        "worst": worst,
    }


def _cost(study: Study, cost: Cost) -> dict[str, Any]:
    sends = cost.kind in ("federated", "personal")
    longest = max((each.seconds for each in study.costs), default=0.0)
    return {
        "number": [model.label for model in study.comparison.models].index(cost.model),
        "label": cost.model,
        "time": duration(cost.seconds),
        "share": round(100 * cost.seconds / longest, 1) if longest > 0 else 0,
        "steps": f"{cost.num_steps} {cost.step_unit}{'' if cost.num_steps == 1 else 's'}",
        "bytes": [
            words.amount(each) if sends or each is not None else "none"
            for each in (cost.to_sites_bytes, cost.from_sites_bytes, cost.bytes_per_round, cost.total_bytes)
        ],
    }


def _hidden(study: Study) -> dict[str, Any] | None:
    """A table for each kind of privacy that a run used; None where no run did."""
    if not study.hidden:
        return None
    sites = [column.site for column in study.comparison.columns[1:]]
    return {
        "sites": sites,
        "patients_caption": words.PATIENTS_CAPTION,
        "patients": [row for each in study.hidden if (row := _hidden_patients(study, each, sites))],
        "whole_sites_caption": words.WHOLE_SITES_CAPTION,
        "whole_sites": [row for each in study.hidden if (row := _hidden_sites(study, each))],
        "updates_caption": words.UPDATES_CAPTION,
        "updates": [row for each in study.hidden if (row := _hidden_updates(study, each, sites))],
        "note": words.hid_nothing(study),
    }


def _named(study: Study, label: str) -> dict[str, Any]:
    return {"number": [model.label for model in study.comparison.models].index(label), "label": label}


def _hidden_patients(study: Study, hidden: Hidden, sites: Sequence[str]) -> dict[str, Any] | None:
    if (found := hidden.patients) is None:
        return None
    cells = [
        None if (spent := found.sites.get(site)) is None else (_epsilon(spent.epsilon), f"{spent.steps:,} steps")
        for site in sites
    ]
    facts = [_epsilon(found.epsilon), f"{found.budget:g}", f"{found.delta:g}", found.statistics]
    return {**_named(study, hidden.model), "facts": facts, "cells": cells}


def _hidden_sites(study: Study, hidden: Hidden) -> dict[str, Any] | None:
    if (found := hidden.whole_sites) is None:
        return None
    facts = [_epsilon(found.epsilon), f"{found.budget:g}", f"{found.delta:g}", f"{len(found.by_round):,}"]
    facts += [f"{found.noise_multiplier:.3g}", f"{found.noise_to_update:.3g}"]
    return {**_named(study, hidden.model), "facts": facts, "ended": found.ended}


def _hidden_updates(study: Study, hidden: Hidden, sites: Sequence[str]) -> dict[str, Any] | None:
    if (found := hidden.updates) is None:
        return None
    rounds = None if found.rounds is None else len(found.rounds)
    counts = (rounds, found.num_hidden, found.num_again, found.num_opened)
    by_site = [found.by_site(site) for site in sites]
    return {
        **_named(study, hidden.model),
        "least": found.least_sites,
        "facts": ["not recorded" if each is None else f"{each:,}" for each in counts],
        "cells": [None if each is None else (f"{each[0]:,} of {rounds:,}", each[1]) for each in by_site],
    }


def _epsilon(value: float) -> str:
    return f"{value:.3g}"
