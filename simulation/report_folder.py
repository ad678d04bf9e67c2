"""The folder that a comparison leaves: a page, two tables and the curves, all of them or none."""

import shutil
from pathlib import Path

from simulation.compare import Comparison
from simulation.report import render_report
from simulation.tables import write_curves_csv, write_table_csv, write_table_json

PAGE, TABLE, FACTS, CURVES = FILES = ("report.html", "table.csv", "table.json", "curves.csv")


def check_report_folder(folder: Path) -> None:
    """Raise ValueError where the folder cannot take a report: it holds anything but an earlier one."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the report, found a file; choose another --out")
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if names and set(names) != set(FILES):
        some = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
        raise ValueError(
            f"{folder}: expected a new or empty folder, or an earlier report to replace, found {some}; "
            "choose another --out"
        )


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write report.html, table.csv, table.json and curves.csv; an earlier report is replaced as a whole."""
    check_report_folder(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    write_table_csv(comparison, staging / TABLE)
    write_table_json(comparison, staging / FACTS)
    write_curves_csv(comparison, staging / CURVES)
    (staging / PAGE).write_text(render_report(comparison), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
