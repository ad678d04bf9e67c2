"""A site's own folder as its people watch it: what it was asked, what left it, what it measured, run by run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.audit import AUDIT
from federation.run_folder import HISTORY, OWN_ROUNDS, RunRecord
from monitor.run_files import RunFolder, changes, first_line, time_of

SITE = "site"
"""Kind of a run as one of its sites sees it."""


@dataclass(frozen=True)
class SiteRun(RunFolder):
    """One run in a site's folder, whose audit log is of all its runs together."""

    site: str
    run: str
    """The name that the server drew for the run."""

    @property
    def kind(self) -> str:
        return SITE

    @property
    def name(self) -> str:
        return f"{self.site}, run {self.run[:8]}" if self.run else f"{self.site}, of no run"

    @property
    def history(self) -> Path:
        return self.path / OWN_ROUNDS / self.run / HISTORY

    def takes(self, line: bytes) -> bool:
        return _run_of(line) == self.run

    def look(self) -> tuple[object, ...]:
        return changes(self.audit), changes(self.history)

    def record(self) -> tuple[RunRecord | None, str]:
        return None, ""

    def changed(self) -> str:
        return time_of(self.audit)


def find_site_runs(folders: Sequence[Path], site: str) -> list[RunFolder]:
    """The runs that the audit logs in a site's folders know of, in the order in which they began there."""
    return [each for folder in folders for each in _runs_in(folder.resolve(), site)]


def _runs_in(folder: Path, site: str) -> list[RunFolder]:
    first = first_line(folder / AUDIT)
    if first is None:
        return []
    lines = (folder / AUDIT).read_bytes().split(b"\n")[:-1]
    names = dict.fromkeys(_run_of(line) for line in lines)
    return [SiteRun(folder, f"{first.get('hash')} {name}", site=site, run=name) for name in names]


def _run_of(line: bytes) -> str:
    """The run that a line is of; empty where it says none, as where a message could not be read."""
    try:
        said = json.loads(line).get("run", "")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return said if isinstance(said, str) and said.isalnum() else ""
