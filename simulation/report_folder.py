"""The folder that a comparison leaves: a page, its tables and the curves, all of them or none."""

import shutil
from pathlib import Path

from simulation.comparison.files import PRIVACY, STUDY_FILES, write_study
from simulation.comparison.study import Study
from simulation.report import render_report
from simulation.tables import write_curves_csv, write_table_csv, write_table_json

PAGE, TABLE, FACTS, CURVES = _FIRST_FILES = ("report.html", "table.csv", "table.json", "curves.csv")
FILES = (*_FIRST_FILES, *STUDY_FILES)
_EARLIER = (set(FILES), set(FILES) - {PRIVACY}, set(_FIRST_FILES))
"""What this version and those before it wrote."""


def check_report_folder(folder: Path) -> None:
    """Raise ValueError where the folder cannot take a report: it holds anything but an earlier one."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the report, found a file; choose another --out")
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if names and set(names) not in _EARLIER:
        some = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
        raise ValueError(
            f"{folder}: expected a new or empty folder, or an earlier report to replace, found {some}; "
            "choose another --out"
        )


def write_report(study: Study, folder: Path) -> None:
    """Write the page, the comparison's tables and the study's; an earlier report is replaced as a whole."""
    check_report_folder(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    write_table_csv(study.comparison, staging / TABLE)
    write_table_json(study.comparison, staging / FACTS)
    write_curves_csv(study.comparison, staging / CURVES)
    write_study(study, staging)
    (staging / PAGE).write_text(render_report(study), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
