"""A sweep at work: what is left of it, in processes of their own, until all cells are finished or have failed."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from federation.code_digest import code_digest
from federation.files import lock_folder
from simulation.sweep.cells import Cell
from simulation.sweep.folder import Found, SweepFolder
from simulation.sweep.pace import Pace
from simulation.sweep.work import run_cell

_POLL_SECONDS = 0.5
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A cell at work."""

    name: str
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How a sweep stands."""

    num_cells: int
    num_done: int
    """Finished, kept and failed."""
    num_failed: int
    running: tuple[Running, ...]
    seconds_left: float | None
    """At the pace of each model so far; None before the first step, 0 at the end."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a sweep ended."""

    finished: tuple[Cell, ...]
    """In the order of the plan, those of earlier sweeps into the folder among them."""
    failed: Mapping[str, str]
    """Reason by name of the cell."""
    seconds: float


def run_sweep(
    cells: Sequence[Cell],
    folder: SweepFolder,
    *,
    workers: int,
    checkpoints: str = "chosen",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    tell: Callable[[str], None] = lambda words: None,
) -> Outcome:
    """Run every cell that is not finished, `workers` at a time in a process each with one thread of torch.

    A cell that fails is recorded with its reason, and the others go on. However this ends, SIGKILL included, the same
    call goes on: finished cells stay, an unfinished one goes on from its last checkpoint, a federated one only with the
    code that it began with, else it is made anew. So is a cell that has changed since; `tell` is told why.

    Raises SweepError for a folder of something else, StorageError where another sweep runs into the folder.
    """
    folder.require()
    with lock_folder(folder.path):
        folder.begin({"code_digest": code_digest(), "cells": [cell.name for cell in cells]})
        found = {cell.name: folder.find(cell) for cell in cells}
        _tell_found(found, folder.others({cell.name: cell for cell in cells}), tell)
        for cell in cells:
            if found[cell.name].state in ("changed", "again", "new"):
                folder.clear(cell)
        start = time.monotonic()
        waiting = [cell for cell in cells if found[cell.name].state != "finished"]
        failed = _Workers(cells, waiting, folder, checkpoints, on_progress).run(workers)
        finished = tuple(cell for cell in cells if cell.name not in failed)
        return Outcome(finished=finished, failed=failed, seconds=time.monotonic() - start)


def _tell_found(found: Mapping[str, Found], others: Sequence[str], tell: Callable[[str], None]) -> None:
    states = [each.state for each in found.values()]
    for state, words in (
        ("finished", "finished before, kept as they are"),
        ("unfinished", "unfinished, go on from their last checkpoint"),
        ("again", "unfinished federated runs, made anew because the code has changed"),
    ):
        if count := states.count(state):
            tell(f"{count} of {len(states)} runs: {words}")
    for name, each in found.items():
        if each.state == "changed":
            tell(f"{name}: made anew, because it was another run ({each.words})")
    if others:
        tell(f"{len(others)} runs in the folder are not of this sweep any more and not in its table: {others[0]} ...")


@dataclass(kw_only=True)
class _Working:
    """A process and its cell."""

    cell: Cell
    process: BaseProcess
    start: float = field(default_factory=time.monotonic)
    step: int = 0
    first_step: int | None = None
    """The first that this process was heard to have done: a later one than 1 where it goes on from a checkpoint."""
    outcome: tuple[str, str] | None = None

    def spend(self, pace: Pace) -> None:
        """Tell `pace` what this process has done, and how long it took."""
        if self.first_step is not None:
            done = (self.step - self.first_step + 1) / self.cell.num_steps
            pace.add(self.cell.model, self.cell.work * done, time.monotonic() - self.start)


class _Workers:
    """The processes of a sweep, and how far they are."""

    def __init__(
        self,
        cells: Sequence[Cell],
        waiting: Sequence[Cell],
        folder: SweepFolder,
        checkpoints: str,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.num_cells, self.waiting, self.folder = len(cells), list(waiting), folder
        self.checkpoints, self.on_progress = checkpoints, on_progress
        self.working: dict[Any, _Working] = {}
        """By the receiving end of the process's pipe."""
        self.failed: dict[str, str] = {}
        self.number, self.pace = 1, Pace()

    def run(self, number: int) -> dict[str, str]:
        """Work until nothing is left, so many at a time; the reasons of those that failed, by name."""
        self.number = number
        # One process imports torch, before it has any thread; the cells' are forked from it.
        _CONTEXT.set_forkserver_preload(["simulation.sweep.work"])
        try:
            while self.waiting or self.working:
                while self.waiting and len(self.working) < number:
                    self._start(self.waiting.pop(0))
                self.on_progress(self.progress())
                for ready in connection.wait(list(self.working), timeout=_POLL_SECONDS):
                    self._hear(ready)
            self.on_progress(self.progress())
        finally:
            for each in self.working.values():
                each.process.kill()
                each.process.join()
        return self.failed

    def progress(self) -> Progress:
        running = [
            Running(name=each.cell.name, step=each.step, num_steps=each.cell.num_steps)
            for each in self.working.values()
        ]
        num_left = len(self.waiting) + len(running)
        return Progress(
            num_cells=self.num_cells,
            num_done=self.num_cells - num_left,
            num_failed=len(self.failed),
            running=tuple(running),
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float | None:
        pace, left = self.pace.copy(), [(cell.model, cell.work) for cell in self.waiting]
        for each in self.working.values():
            each.spend(pace)
            left.append((each.cell.model, each.cell.work * (1 - each.step / each.cell.num_steps)))
        seconds = pace.seconds_for(left) if left else 0.0
        return None if seconds is None else seconds / min(self.number, max(len(left), 1))

    def _start(self, cell: Cell) -> None:
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        arguments = (cell, self.folder, self.checkpoints, sender)
        process = _CONTEXT.Process(target=run_cell, args=arguments)
        process.start()
        sender.close()
        self.working[receiver] = _Working(cell=cell, process=process)

    def _hear(self, receiver: Any) -> None:
        each = self.working[receiver]
        try:
            what, words = receiver.recv()
        except EOFError:
            del self.working[receiver]
            receiver.close()
            each.process.join()
            self._end(each)
            return
        if what == "step":
            each.step = words
            each.first_step = words if each.first_step is None else each.first_step
        else:
            each.outcome = (what, words)

    def _end(self, each: _Working) -> None:
        each.spend(self.pace)
        what, words = each.outcome or ("failed", _killed(each.process.exitcode))
        if what == "failed":
            self.failed[each.cell.name] = words
            if each.outcome is None:
                self.folder.note(each.cell, "failed", words)


def _killed(status: int | None) -> str:
    why = "it was killed, most likely for want of memory; use fewer --workers" if status == -9 else "see its log"
    return f"its process ended with status {status}: {why}"
