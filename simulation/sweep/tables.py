"""A sweep's results as files: table.csv and table.json for programs, table.md for people."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from federation.files import write_whole
from simulation.sweep.results import LEVEL, SCORED, Difference, Results, Row, Spread, shown_metrics
from simulation.tables import METRIC_NAMES

CSV_NAME, JSON_NAME, MARKDOWN_NAME = "table.csv", "table.json", "table.md"

CSV_COLUMNS = (
    *("partition", "model", "attack", "site", "kind", "split", "metric", "mean", "sd", "num_seeds", "values"),
    *("share", "difference", "difference_low", "difference_high"),
    *("from_unattacked", "from_unattacked_low", "from_unattacked_high", "above_local"),
    *("seconds", "to_sites_bytes", "from_sites_bytes", "rounds", "num_refused", "num_failed"),
)
"""Columns of table.csv, a row a model, partition, split and metric; `values` is JSON text by seed, None is empty."""


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Write the three files, each whole or not at all; earlier ones are replaced. Returns their paths."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(CSV_COLUMNS))
    writer.writeheader()
    writer.writerows(line for row in results.rows for line in _csv_rows(results, row))
    contents = {CSV_NAME: text.getvalue(), JSON_NAME: _json(results), MARKDOWN_NAME: _page(results)}
    for name, content in contents.items():
        write_whole(folder / name, content.encode())
    return [folder / name for name in contents]


def markdown_table(results: Results, partition: str) -> str:
    """One partition's models as a table in Markdown; of the local models the best one."""
    names = shown_metrics(results.task)
    heads = [METRIC_NAMES[name] for name in names]
    columns = ["model", *(f"{head} (share)" for head in heads), *(f"{head} − centralized" for head in heads)]
    columns += ["above every local", "rounds", "MB to sites", "MB from sites", "s"]
    rows = [_markdown_row(row, names) for row in _best_local_alone(results.of(partition)) if not row.attack]
    return markdown(columns, rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_sd(spread: Spread) -> str:
    """As people read it."""
    if spread.mean is None:
        return "–"
    return f"{spread.mean:.3f}" + (f" ± {spread.sd:.3f}" if spread.sd is not None else "")


def with_share(row: Row, name: str) -> str:
    """The test metric, and what it is of the centralized one."""
    share = row.share.get(name)
    return mean_and_sd(row.metrics["test", name]) + ("" if share is None else f" ({100 * share:.1f} %)")


def signed(difference: Difference | None) -> str:
    """A difference with its interval."""
    if difference is None:
        return "–"
    words = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    return words.replace("-", "−")


def name_of(row: Row) -> str:
    """What people call a row without an attack."""
    return f"{row.model}, the best: {row.site}" if row.site else row.model


def conditions(results: Results) -> str:
    """How the numbers are to be read."""
    seeds = sorted({seed for row in results.rows for seed in row.metrics["test", "auroc"].by_seed})
    more = "" if len(results.codes) == 1 else f" {len(results.codes)} versions of the code made these runs."
    return (
        f"Task {results.task}, seeds {', '.join(map(str, seeds))}; mean ± sd over seeds (n − 1) on the test patients "
        f"of all sites as one set. Share: of the centralized mean. Differences: mean over seeds, with the {LEVEL:.0%} "
        f"interval of {results.num_resamples} resamples of patients, the same for both models.{more}"
    )


def _best_local_alone(rows: Sequence[Row]) -> list[Row]:
    """The rows without local models, but for the best one by the first metric."""
    local = [row for row in rows if row.site]
    best = max(local, key=lambda row: row.metrics["test", "auroc"].mean or 0.0, default=None)
    return [row for row in rows if not row.site or row is best]


def _markdown_row(row: Row, names: Sequence[str]) -> list[str]:
    cells = [name_of(row), *(with_share(row, name) for name in names)]
    cells += [signed(row.difference.get(name)) for name in names]
    above = ", ".join(METRIC_NAMES[name] for name in names if row.above_local.get(name))
    cells.append((above or "none") if row.above_local else "–")
    cells.append(_number(row.steps, 1))
    cells += [_number(row.to_sites_bytes, 1e6), _number(row.from_sites_bytes, 1e6), f"{row.seconds:.0f}"]
    if row.num_failed:
        cells[0] += f" ({row.num_failed} failed)"
    return cells


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.0f}"


def _page(results: Results) -> str:
    names = shown_metrics(results.task)
    parts = [f"# Sweep: {results.task}\n\n{conditions(results)}\n"]
    for partition in results.partitions:
        parts.append(f"\n## {partition}\n\n{results.num_patients[partition]} test patients.\n\n")
        parts.append(markdown_table(results, partition))
        attacked = [row for row in results.of(partition) if row.attack]
        if attacked:
            parts.append("\nWith one malicious site, beside the same runs without it:\n\n" + _attacks(attacked, names))
    return "".join(parts)


def _attacks(rows: Sequence[Row], names: Sequence[str]) -> str:
    heads = [METRIC_NAMES[name] for name in names]
    columns = ["attack", "model", *heads, *(f"{head} − without" for head in heads), "replies refused", "failed"]
    return markdown(columns, [_attack_row(row, names) for row in sorted(rows, key=lambda row: row.attack)])


def _attack_row(row: Row, names: Sequence[str]) -> list[str]:
    cells = [row.attack, row.model, *(mean_and_sd(row.metrics["test", name]) for name in names)]
    cells += [signed(row.from_unattacked.get(name)) for name in names]
    return [*cells, str(row.num_refused), str(row.num_failed)]


def _json(results: Results) -> str:
    facts = {
        "schema_version": 1,
        "task": results.task,
        "sd": "over seeds, n - 1",
        "level": LEVEL,
        "num_resamples": results.num_resamples,
        "num_patients": results.num_patients,
        "codes": results.codes,
        "rows": [_plain(row) for row in results.rows],
    }
    return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    facts = asdict(row)
    metrics = facts.pop("metrics")
    splits = {split: {name: own for (of, name), own in metrics.items() if of == split} for split in SCORED}
    return {**facts, "metrics": splits}


def _csv_rows(results: Results, row: Row) -> Iterator[dict[str, Any]]:
    common = {
        name: getattr(row, name)
        for name in ("partition", "model", "attack", "site", "kind", "seconds", "num_refused", "num_failed")
    }
    common |= {"to_sites_bytes": row.to_sites_bytes, "from_sites_bytes": row.from_sites_bytes, "rounds": row.steps}
    for (split, name), spread in row.metrics.items():
        line = {**common, "split": split, "metric": name, "mean": spread.mean, "sd": spread.sd}
        line |= {"num_seeds": len(spread.by_seed), "values": json.dumps(spread.by_seed)}
        if split == "test":
            line |= {"share": row.share.get(name), "above_local": row.above_local.get(name)}
            line |= _parts("difference", row.difference.get(name))
            line |= _parts("from_unattacked", row.from_unattacked.get(name))
        yield line


def _parts(name: str, difference: Difference | None) -> dict[str, float]:
    if difference is None:
        return {}
    return {name: difference.value, f"{name}_low": difference.low, f"{name}_high": difference.high}
