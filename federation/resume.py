"""Whether a run can go on in a folder: what ended there before, and whether it is the same run as the one asked for."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from federation.differences import differences
from federation.files import LOCK, PARTIAL
from federation.run_folder import RUN, RunError, RunRecord, read_run
from federation.settings import RunSettings

logger = logging.getLogger(__name__)

CHECKPOINTS, BEST, LAST = "checkpoints", "best.pt", "last.pt"


@dataclass(frozen=True, kw_only=True, eq=False)
class EarlierRun:
    """A run that is in its folder already and is the one asked for."""

    record: RunRecord
    checkpoint: Checkpoint | None
    """Where it goes on; None where it ended before its first checkpoint, or is finished."""
    changed: tuple[str, ...]
    """What differs between the machines and codes that began it and that go on, if anything."""

    @property
    def is_finished(self) -> bool:
        return self.record.status == "finished"


def require_fresh_or_run(folder: Path) -> None:
    """Refuse, before anything takes long, a folder that holds something else than a run. Raises RunError."""
    if not folder.exists() or (folder / RUN).is_file():
        return
    # A process that was killed before the first run.json leaves at most these two.
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK, RUN + PARTIAL}:
        raise RunError(
            f"{folder}: expected a new or an empty folder, found files in it that are no run; choose another --out"
        )


def find_earlier(folder: Path, asked: RunRecord, settings: RunSettings) -> EarlierRun | None:
    """The run in a folder, if there is one, proven to be the one asked for.

    Raises RunError where the folder holds something else, or a run with other settings, sites or data, naming each
    difference; CheckpointError where its last checkpoint is damaged or missing. Other code, another machine or number
    of threads is no obstacle, but the result is then not bit for bit that of an uninterrupted run: a warning says so.
    """
    require_fresh_or_run(folder)
    if not (folder / RUN).is_file():
        return None
    found = read_run(folder)
    different = differences(_identity(asked), _identity(found))
    if different:
        raise RunError(
            f"{folder}: another run is in this folder: {'; '.join(different)}. Give its own settings and cohorts to go "
            "on with it, or choose another --out"
        )
    if found.status == "finished":
        return EarlierRun(record=found, checkpoint=None, changed=())
    changed = tuple(differences(_surroundings(found), _surroundings(asked)))
    if changed:
        logger.warning(
            "%s goes on under other conditions than it began (%s): its result will not be bit for bit that of an "
            "uninterrupted run",
            folder,
            "; ".join(changed),
        )
    return EarlierRun(record=found, checkpoint=_last_checkpoint(folder, settings), changed=changed)


def _last_checkpoint(folder: Path, settings: RunSettings) -> Checkpoint | None:
    last, best = folder / CHECKPOINTS / LAST, folder / CHECKPOINTS / BEST
    if not last.exists() and not best.exists():
        return None
    checkpoint = read_checkpoint(last, settings=settings)
    if checkpoint.progress is None:
        raise CheckpointError(f"{last}: expected a checkpoint to go on from, found a model alone; restore the file")
    return checkpoint


def _identity(record: RunRecord) -> Mapping[str, Any]:
    """What makes two runs the same run."""
    return {
        "kind": record.kind,
        "name": record.name,
        "sites": record.sites,
        "trained on": record.trained_on,
        "cohort": record.more.get("cohorts", {}),
        "settings": record.settings,
    }


def _surroundings(record: RunRecord) -> Mapping[str, Any]:
    """What may change the last bits of a result."""
    return {"code": str(record.more.get("code_digest"))[:12], **record.more.get("machine", {})}
