"""A sweep's folder: runs, what each was to be, and how it stands; so that the same command goes on after any end.

`runs/NAME` is an ordinary run folder, `cells/NAME.json` says what the run is and whether it is finished,
`logs/NAME.log` holds what its process wrote. A cell's file is written before its run begins, and again at its end.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.predictions import predictions_path
from federation.code_digest import code_digest
from federation.differences import differences
from federation.files import LOCK, write_whole
from federation.run_folder import RUN, RunError, read_run
from simulation.sweep.cells import Cell
from simulation.sweep.plan import SweepError

SWEEP = "sweep.json"
SCHEMA_VERSION = 1
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a cell stands when a sweep begins."""

    state: str
    """new, finished, unfinished (goes on), again (unfinished, and cannot go on) or changed (was another run)."""
    words: str = ""
    """What changed."""


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """Where a sweep's files lie."""

    path: Path

    def run(self, cell: Cell) -> Path:
        return self.path / "runs" / cell.name

    def log(self, cell: Cell) -> Path:
        return self.path / "logs" / f"{cell.name}.log"

    def require(self) -> None:
        """Refuse a folder that holds something else than a sweep. Raises SweepError."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise SweepError(f"{self.path}: expected a folder, found a file; choose another --out")
        # A process that was killed before the first sweep.json leaves at most the others.
        inside = {each.name for each in self.path.iterdir()}
        if SWEEP not in inside and inside - {LOCK, f"{SWEEP}.partial"}:
            raise SweepError(
                f"{self.path}: expected a new or empty folder, or one of a sweep, found files that are of none; choose "
                "another --out"
            )

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Mark the folder as a sweep's."""
        write_whole(self.path / SWEEP, _json({"schema_version": SCHEMA_VERSION, **facts}))

    def find(self, cell: Cell) -> Found:
        """How the cell stands."""
        state = self._state(cell)
        if state is None:
            return Found(state="new")
        if state["digest"] != cell.digest:
            changed = differences(state["identity"], _plain(cell.identity))
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            return Found(state="changed", words="; ".join(changed[:_SHOWN]) + more)
        if state["status"] == "finished" and self._is_whole(cell):
            return Found(state="finished")
        return Found(state="unfinished" if cell.kind != "federated" or self._has_todays_code(cell) else "again")

    def note(self, cell: Cell, status: str, error: str = "") -> None:
        """Write down how a cell stands: running, finished or failed."""
        facts = {"status": status, "error": error, "digest": cell.digest, "identity": cell.identity}
        write_whole(self._cell(cell), _json(facts))

    def clear(self, cell: Cell) -> None:
        """Remove the run of a cell, so that it can be made anew."""
        shutil.rmtree(self.run(cell), ignore_errors=True)

    def others(self, cells: Mapping[str, Cell]) -> list[str]:
        """Names of runs in the folder that are none of these cells."""
        root = self.path / "cells"
        known = (path.relative_to(root).with_suffix("").as_posix() for path in sorted(root.rglob("*.json")))
        return [name for name in known if name not in cells]

    def _has_todays_code(self, cell: Cell) -> bool:
        """Whether a federated run can go on: it does not with other code than it began with."""
        try:
            return read_run(self.run(cell)).more.get("code_digest") == code_digest()
        except RunError:
            return False

    def _cell(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.name}.json"

    def _state(self, cell: Cell) -> dict[str, Any] | None:
        try:
            return json.loads(self._cell(cell).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SweepError(
                f"{self._cell(cell)}: expected JSON ({error}); delete the file, and the run is made anew"
            ) from None

    def _is_whole(self, cell: Cell) -> bool:
        """Whether the run is there as it was when it finished."""
        folder = self.run(cell)
        try:
            finished = (folder / RUN).is_file() and read_run(folder).status == "finished"
        except RunError:
            return False
        return finished and all(predictions_path(folder, spec.name).is_file() for spec in cell.specs)


def _plain(tree: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(tree))


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1) + "\n").encode()
