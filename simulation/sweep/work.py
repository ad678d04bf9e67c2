"""One cell in a process of its own: what it runs, what it tells, and how it ends with the sweep."""

import logging
import os
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it when they are made; here the process that cells are forked from does

from client.prepare.parallel import end_with_parent
from federation.resume import BEST, CHECKPOINTS
from federation.run_folder import Measurement, read_run
from simulation.in_process import simulate_in_process
from simulation.sweep.cells import Cell
from simulation.sweep.folder import SweepFolder
from simulation.train import train


def run_cell(cell: Cell, folder: SweepFolder, checkpoints: str, connection: Connection) -> None:
    """Run a cell and tell through the connection: ("step", number), then ("finished", "") or ("failed", reason).

    The process ends when the one that started it does, however that ended. Its words go to the cell's log.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the sweep decides
    end_with_parent()
    _write_to(folder.log(cell))
    torch.set_num_threads(1)
    # Flower tells every aggregation.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        folder.note(cell, "running")
        _run(cell, folder.run(cell), connection)
        _keep(folder.run(cell), checkpoints)
        folder.note(cell, "finished")
        connection.send(("finished", ""))
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        with suppress(ValueError, OSError):  # a full disk, most likely the reason itself
            folder.note(cell, "failed", reason)
        connection.send(("failed", reason))
    finally:
        sys.stderr.flush()


def _run(cell: Cell, folder: Path, connection: Connection) -> None:
    if cell.kind == "federated":

        def on_round(lines: list[Measurement]) -> None:
            connection.send(("step", max(line.step for line in lines)))

        simulate_in_process(cell.specs, cell.settings, folder, name=cell.label, attack=cell.attack, on_round=on_round)
        return
    train(
        cell.specs,
        cell.settings,
        folder,
        only=cell.only,
        name=cell.label,
        keep_finished=True,
        on_epoch=lambda epoch, trained, validated: connection.send(("step", epoch)),
        tell=print,
    )


def _keep(folder: Path, checkpoints: str) -> None:
    """Of a finished run: all, the chosen model, or what a table needs; the sites' own folders only with all."""
    if checkpoints == "all":
        return
    shutil.rmtree(folder / "sites", ignore_errors=True)
    chosen = read_run(folder).more.get("chosen", BEST)
    for path in (folder / CHECKPOINTS).glob("*.pt"):
        if checkpoints == "none" or path.name != chosen:
            path.unlink()


def _write_to(log: Path) -> None:
    """Let all that this process writes go to a file: it would tear the progress display."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
