"""Keeps a run's folder up to date: record, history, the last checkpoint and the best one."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipro_model import DiPro
from dipro_model.metrics import MONITOR
from federation.checkpoint import load_checkpoint, save_checkpoint
from federation.code_digest import code_digest
from federation.run_folder import Measurement, RunRecord, append_history, write_run
from federation.settings import RunSettings

BEST, LAST = "best.pt", "last.pt"


class RunWriter:
    """The one writer of a run's folder; centralized, local and federated runs keep theirs the same way."""

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        *,
        kind: str,
        name: str,
        step_unit: str,
        sites: Sequence[str],
        trained_on: Sequence[str],
    ) -> None:
        self.folder, self.settings = folder, settings
        self._start, self._best = time.monotonic(), float("-inf")
        self.record = RunRecord(
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
            more={"code_digest": code_digest()},
        )
        self._write()

    def keep(self, step: int, model: DiPro, measurements: Iterable[Measurement], monitor: float | None) -> None:
        """Write down a finished step, its model as the last one and, where the monitor gained, as the best one."""
        append_history(self.folder, measurements)
        self._save(LAST, model, step)
        if monitor is not None and monitor > self._best:
            self._best = monitor
            self._save(BEST, model, step)
            self.record = replace(self.record, best_step=step)
        self._write()

    def steps_without_gain(self, step: int) -> int:
        """Steps since the best one; zero while the monitor was never defined."""
        return 0 if self.record.best_step is None else step - self.record.best_step

    def chosen_model(self) -> tuple[DiPro, int]:
        """The model that the run ends with: the best one, or the last one where the monitor was never defined."""
        name = LAST if self.record.best_step is None else BEST
        self._note(chosen=name)
        return load_checkpoint(self.folder / "checkpoints" / name, task=self.settings.task)

    def finish(self, results: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
        """Close the run with the chosen model's metrics by site and split."""
        self._note(results=results)
        self.record = replace(self.record, status="finished")
        self._write()

    def fail(self, error: BaseException) -> None:
        """Close the run with the reason of its end."""
        self._note(error=f"{type(error).__name__}: {error}")
        self.record = replace(self.record, status="failed")
        self._write()

    def _note(self, **facts: Any) -> None:
        self.record = replace(self.record, more={**self.record.more, **facts})

    def _write(self) -> None:
        self.record = replace(self.record, seconds=time.monotonic() - self._start)
        write_run(self.folder, self.record)

    def _save(self, name: str, model: DiPro, step: int) -> None:
        path = self.folder / "checkpoints" / name
        save_checkpoint(path, model, step=step, settings=self.settings.model_dump(mode="json"))
