"""What the chosen models of runs are worth, at their own sites and at each other's."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from federation.run_folder import POOLED
from monitor.tables import measurements
from monitor.views import one_run

_TEST = "test"


def reference(connection: Connection, run_id: int, metric: str, split: str) -> tuple[str, float] | None:
    """Name and value of another run's chosen model: on the patients of all its sites, or of the only one it has."""
    run = one_run(connection, run_id)
    if run is None or run["best_step"] is None:
        return None
    asked = select(measurements.c.site, measurements.c.value).where(
        measurements.c.run_id == run_id,
        measurements.c.metric == metric,
        measurements.c.split == split,
        measurements.c.step == run["best_step"],
    )
    found = {row.site: row.value for row in connection.execute(asked)}
    if POOLED not in found and len(found) == 1:  # trained at one site alone
        ((site, value),) = found.items()
        return None if value is None else (f"{run['name']}, on {site}", value)
    value = found.get(POOLED)
    return None if value is None else (run["name"], value)


def matrix(run: dict[str, Any], metric: str) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The chosen model's metric by site and split, as run.json has it once the run is over."""
    results = run["facts"].get("results")
    if not isinstance(results, dict):
        return [], []
    splits = list(dict.fromkeys(split for each in results.values() for split in each))
    rows = [(site, [each.get(split, {}).get(metric) for split in splits]) for site, each in results.items()]
    return splits, rows


def cross_site(runs: Sequence[dict[str, Any]], metric: str) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The sites, and of each run's chosen model the metric on every site's test part; runs without one are left out.

    A site's own model is a run that was trained there alone.
    """
    results = [(run["name"], run["facts"].get("results")) for run in runs]
    results = [(name, each) for name, each in results if isinstance(each, dict)]
    sites = list(dict.fromkeys(site for _, each in results for site in each))
    return sites, [(name, [_value(each, site, metric) for site in sites]) for name, each in results]


def _value(results: dict[str, Any], site: str, metric: str) -> float | None:
    split = results.get(site, {}).get(_TEST)
    return split.get(metric) if isinstance(split, dict) else None
