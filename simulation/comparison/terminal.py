"""The conclusions of a study in a terminal: pooled differences with their verdicts, and what is missing."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.run_folder import POOLED
from simulation.comparison.study import Study
from simulation.comparison.words import signed, signed_interval
from simulation.tables import METRIC_NAMES, direction


def print_study(study: Study, console: Console) -> None:
    """A table of the metrics that have a margin, all sites together, with a reference; and one of what runs hid."""
    shown = [each for each in study.differences if each.site == POOLED and each.margin is not None]
    if shown:
        table = Table(title=f"Difference to {study.reference}, all sites together", title_justify="left")
        for heading in ("model", "difference", "interval", "verdict"):
            table.add_column(heading)
        for metric, margin in study.margins.items():
            table.add_section()
            table.add_row(Text(f"{METRIC_NAMES[metric]}{direction(metric)}, margin {margin:g}", style="bold"))
            for each in (each for each in shown if each.metric == metric):
                value = "undefined" if each.estimate.value is None else signed(each.estimate.value)
                verdict = each.verdict or f"none: {each.verdict_reason}"
                table.add_row(Text(each.arm), Text(value), Text(signed_interval(each.estimate) or "–"), Text(verdict))
        console.print(table)
    if study.hidden:
        console.print(_hidden(study))
    for note in study.notes:
        console.print(Text(note))


def _hidden(study: Study) -> Table:
    """A row a run; a dash for what it did not hide."""
    table = Table("run", "patients", "whole sites", "updates of single sites", title_justify="left")
    table.title = "What was hidden"
    for each in study.hidden:
        spent = [
            f"epsilon {found.epsilon:.3g} of {found.budget:g} at delta {found.delta:g}" if found else "–"
            for found in (each.patients, each.whole_sites)
        ]
        count = each.updates and each.updates.num_hidden
        masked = "–" if each.updates is None else "not recorded" if count is None else f"{count:,} hidden"
        table.add_row(Text(each.model), *spent, masked)
    return table
