"""`dipro-fed inspect`: what prepared cohorts hold, as tables and a picture of a few stays."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from client.cohort import Cohort


def inspect(
    cohorts: Annotated[list[Path], typer.Argument(metavar="COHORT...", help="Prepared cohorts, one folder a site.")],
    picture: Annotated[
        Path | None, typer.Option(help="Where the picture of stays goes (default: SITE-stays.png in this folder).")
    ] = None,
    stays: Annotated[int, typer.Option(min=0, help="How many stays the picture shows; 0 draws none.")] = 3,
) -> None:
    """Print counts by split, site and label, measured rates and rejects, and draw a few stays."""
    from rich.console import Console

    from client.cohort import open_cohort

    if picture is not None and len(cohorts) > 1:
        raise typer.BadParameter("one picture cannot show several cohorts; leave --picture out or give one cohort")
    console = Console()
    for path in cohorts:
        cohort = open_cohort(path)
        site = path.resolve().name
        _print_cohort(console, cohort, site)
        if stays:
            _draw(console, cohort, picture or Path(f"{site}-stays.png"), stays)


def _print_cohort(console: "Console", cohort: "Cohort", site: str) -> None:
    from client.inspect import count_by_split, count_labels, measured_rates, rejections

    console.rule(f"site {site} (profile {cohort.manifest.get('profile', 'not named')})")
    _print(console, "Counts by split", count_by_split(cohort).reset_index(names=""))
    _print(
        console,
        "Labels by split (of a disease: its progression)",
        count_labels(cohort).reset_index(names=["sample", "label"]),
        group="sample",
    )
    rates = measured_rates(cohort).map("{:.1%}".format).reset_index(names="measured")
    _print(console, "How often each variable was measured", rates)
    rejected = rejections(cohort)
    if len(rejected):
        _print(console, "Left out by the preparation", rejected, group="stage")
    else:
        console.print("Left out by the preparation: its report names nothing.\n")


def _print(console: "Console", title: str, frame: "pd.DataFrame", group: str | None = None) -> None:
    """A table; equal neighbours in the column `group` are written once."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "if" or str(frame[column].iloc[0]).endswith("%")
        table.add_column(str(column), justify="right" if numeric else "left")
    before = None
    for row in frame.to_dict("records"):
        cells = [str(value) if column != group or value != before else "" for column, value in row.items()]
        if group is not None:
            if before is not None and row[group] != before:
                table.add_section()
            before = row[group]
        table.add_row(*cells)
    console.print(table)


def _draw(console: "Console", cohort: "Cohort", out: Path, number: int) -> None:
    from client.pictures.stays import choose_stays, draw_stays

    chosen = choose_stays(cohort, number)
    if not chosen:
        console.print("No picture: no stay of this cohort has an image.")
        return
    draw_stays(cohort, chosen, out)
    console.print(f"Wrote {out}: stays {', '.join(map(str, chosen))}, their images above their EHR curves.")
    console.print("It shows patients: treat it like their records.")
