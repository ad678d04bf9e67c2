"""Keeps a run's folder up to date: record, history, the last checkpoint and the best one, in an order that survives.

After every step the history is written first, then the last checkpoint, then the best one, then run.json. The last
checkpoint decides: whoever goes on cuts from the history what it does not know of, and writes the best one anew where a
process was killed between the two. docs/checkpoints.md says what is guaranteed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipro_model import DiPro
from dipro_model.metrics import MONITOR
from federation.checkpoint import (
    Checkpoint,
    CheckpointError,
    Progress,
    checkpoint_content,
    read_checkpoint,
    write_checkpoint,
)
from federation.code_digest import code_digest
from federation.files import StorageError, lock_folder, remove_partials
from federation.later import Later
from federation.resume import BEST, CHECKPOINTS, LAST, EarlierRun
from federation.run_folder import (
    RUN,
    Measurement,
    RunError,
    RunRecord,
    append_history,
    cut_history,
    read_run,
    write_run,
)
from federation.settings import RunSettings


def new_record(
    settings: RunSettings,
    *,
    kind: str,
    name: str,
    step_unit: str,
    sites: Sequence[str],
    trained_on: Sequence[str],
    **more: Any,
) -> RunRecord:
    """The record of a run that begins; `more` are further facts for run.json."""
    return RunRecord(
        kind=kind,
        name=name,
        task=settings.task,
        seed=settings.seed,
        step_unit=step_unit,
        sites=tuple(sites),
        trained_on=tuple(trained_on),
        settings=settings.model_dump(mode="json"),
        status="running",
        best_step=None,
        monitor=MONITOR[settings.task],
        seconds=0.0,
        more={"code_digest": code_digest(), **more},
    )


class RunWriter:
    """The one writer of a run's folder; centralized, local and federated runs keep theirs the same way."""

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        earlier: EarlierRun | None = None,
        *,
        agreement: str | None = None,
        later: Later | None = None,
    ) -> None:
        """Begin a run in a folder, or go on with the earlier one in it; checkpoints carry the `agreement`, as JSON.

        With `later` checkpoints and run.json are written there, in the same order, and are on the disk after `settle`.
        Raises StorageError where another process trains there, RunError where one did since `earlier` was read.
        """
        self.folder, self.record, self._agreement, self._later = folder, record, agreement, later
        self._start, self._best, self._num_measurements = time.monotonic(), float("-inf"), 0
        self._lock = lock_folder(folder)
        try:
            found = read_run(folder) if (folder / RUN).is_file() else None
            if found != (earlier.record if earlier else None):
                raise RunError(f"{folder}: another process changed the run in it just now; start again")
            if earlier is not None:
                self._go_on(earlier)
            self._write()
        except BaseException:
            self.close()
            raise

    def keep(
        self,
        step: int,
        model: DiPro,
        measurements: Iterable[Measurement],
        monitor: float | None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down a finished step, its model as the last one and, where the monitor gained, as the best one.

        `training` is what the trainer needs to go on from here, plain values and tensors.
        """
        lines = list(measurements)
        append_history(self.folder, lines)
        self._num_measurements += len(lines)
        score = float("-inf") if monitor is None else monitor
        gained = score > self._best
        if gained:
            self._best, self.record = score, replace(self.record, best_step=step)
        self._save(LAST, step, model, self._progress(training or {}))
        if gained:
            self._save(BEST, step, model)
        self._write()

    def compare_anew(self) -> None:
        """The next step's monitor is of another kind than those before, so that it gains whatever it is."""
        self._best = float("-inf")

    def keep_unfinished(self, step: int, model: DiPro, training: Mapping[str, Any]) -> None:
        """Write down a model that is within the step after `step`, to go on from there."""
        self._save(LAST, step, model, self._progress(training, within_step=True))
        self._write()

    def keep_among_last(self, step: int, model: DiPro, number: int) -> None:
        """Keep the model of a step in a file of its own, and of earlier such files the last ones, `number` in all."""
        if number:
            self._save(_numbered(self.record.step_unit, step), step, model)
            self._do(lambda: _keep_last(self.folder / CHECKPOINTS, self.record.step_unit, number))

    def settle(self) -> None:
        """Return when everything that was to be kept is on the disk. Raises StorageError where it could not be."""
        if self._later is not None:
            self._later.settle()

    def note(self, **facts: Any) -> None:
        """Further facts for run.json, written with the next step."""
        self.record = replace(self.record, more={**self.record.more, **facts})

    def steps_without_gain(self, step: int) -> int:
        """Steps since the best one; zero while the monitor was never defined."""
        return 0 if self.record.best_step is None else step - self.record.best_step

    def chosen_model(self) -> tuple[DiPro, int]:
        """The model that the run ends with: the best one, or the last one where the monitor was never defined."""
        self.settle()
        name = LAST if self.record.best_step is None else BEST
        self.note(chosen=name)
        checkpoint = read_checkpoint(self.folder / CHECKPOINTS / name)
        return checkpoint.model(), checkpoint.step

    def finish(self, results: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
        """Close the run with the chosen model's metrics by site and split."""
        self.note(results=results)
        self.record = replace(self.record, status="finished")
        self._write()
        self.settle()
        self.close()

    def fail(self, error: BaseException) -> None:
        """Close the run with the reason of its end; on a full disk run.json keeps saying that it is running."""
        self.note(error=f"{type(error).__name__}: {error}")
        self.record = replace(self.record, status="failed")
        with suppress(Exception):  # the error that ended the run is the one to be seen
            self.settle()
        with suppress(StorageError):
            write_run(self.folder, self._timed())
        self.close()

    def close(self) -> None:
        """Let other processes into the folder, the run as it is; finish and fail do it themselves."""
        if self._later is not None:
            self._later.close()
        self._lock.close()

    def _go_on(self, earlier: EarlierRun) -> None:
        """Bring the folder to the state that the last checkpoint knows, and note the interruption."""
        remove_partials(self.folder)
        checkpoint = earlier.checkpoint
        progress = checkpoint.progress if checkpoint else None
        self._num_measurements = progress.num_measurements if progress else 0
        cut_history(self.folder, self._num_measurements)
        if checkpoint and progress and progress.best_step is not None and progress.best_monitor is not None:
            self._best, self.record = progress.best_monitor, replace(self.record, best_step=progress.best_step)
            self._restore_best(checkpoint, progress)
        self._start -= earlier.record.seconds
        interruption = {"after_step": checkpoint.step if checkpoint else 0, "changed": list(earlier.changed)}
        self.note(interruptions=[*earlier.record.more.get("interruptions", []), interruption])

    def _restore_best(self, last: Checkpoint, progress: Progress) -> None:
        """See that best.pt is of the best step; a process may have been killed before it was written."""
        path = self.folder / CHECKPOINTS / BEST
        if progress.best_step == last.step and not progress.within_step:
            self._save(BEST, last.step, last.model())
        elif (found := read_checkpoint(path).step) != progress.best_step:
            raise CheckpointError(
                f"{path}: expected the model of {self.record.step_unit} {progress.best_step}, found the one of "
                f"{found}; restore the file, or train again into another folder"
            )

    def _progress(self, training: Mapping[str, Any], *, within_step: bool = False) -> Progress:
        return Progress(
            best_step=self.record.best_step,
            best_monitor=None if self.record.best_step is None else self._best,
            num_measurements=self._num_measurements,
            within_step=within_step,
            training=training,
        )

    def _write(self) -> None:
        record = self._timed()
        self._do(lambda: write_run(self.folder, record))

    def _timed(self) -> RunRecord:
        self.record = replace(self.record, seconds=time.monotonic() - self._start)
        return self.record

    def _do(self, work: Callable[[], None]) -> None:
        if self._later is None:
            work()
        else:
            self._later.do(work)

    def _save(self, name: str, step: int, model: DiPro, progress: Progress | None = None) -> None:
        path = self.folder / CHECKPOINTS / name
        content = checkpoint_content(
            model, step=step, settings=self.record.settings, progress=progress, agreement=self._agreement
        )
        self._do(lambda: write_checkpoint(path, content))


def _keep_last(folder: Path, unit: str, number: int) -> None:
    """Of the files that `keep_among_last` makes."""
    for old in sorted(folder.glob(f"{unit}_*.pt"))[:-number]:
        old.unlink()


def _numbered(unit: str, step: int) -> str:
    return f"{unit}_{step:05d}.pt"
