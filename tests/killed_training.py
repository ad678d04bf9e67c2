"""Training in processes that really are killed: at a chosen write of theirs, in the middle of it or around it."""

import json
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it when they are made, which takes longer than all else that a child does

from client.records import SiteSpec
from federation.settings import load_settings
from simulation.train import train
from tests.small_run import federate

_CONTEXT = multiprocessing.get_context("forkserver")
# One process imports torch, before it has any thread; those that are killed are forked from it.
_CONTEXT.set_forkserver_preload([__name__])


Work = Callable[[Path, Sequence[Path], Sequence[str]], object]
"""Trains into a folder, with these cohorts and settings."""


def centralized(folder: Path, cohorts: Sequence[Path], overrides: Sequence[str]) -> None:
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    train(specs, load_settings(overrides=list(overrides)), folder, device="cpu")


def federated(folder: Path, cohorts: Sequence[Path], overrides: Sequence[str]) -> None:
    """Server and sites in one process; what sites keep lies in folders of their own below `folder`."""
    federate(folder, list(cohorts), load_settings(overrides=list(overrides)))


def run(
    folder: Path,
    cohorts: Sequence[Path],
    overrides: Sequence[str],
    *,
    kill_at: int | None = None,
    work: Work = centralized,
) -> list[str]:
    """Train in a process of its own and kill it with SIGKILL at its write number `kill_at`; the writes that it came to.

    A run that comes to fewer writes ends by itself.
    """
    log = folder.parent / f"{folder.name}.writes.json"
    log.write_text("[]")
    process = _CONTEXT.Process(target=_train, args=(work, folder, list(cohorts), list(overrides), kill_at, log))
    process.start()
    process.join(300)
    writes = json.loads(log.read_text())
    expected = -signal.SIGKILL if kill_at is not None and len(writes) > kill_at else 0
    assert process.exitcode == expected, f"exit code {process.exitcode} after {writes}"
    return writes


def _train(work: Work, folder: Path, cohorts: list[Path], overrides: list[str], kill_at: int | None, log: Path) -> None:
    torch.set_num_threads(1)
    _watch_writes(kill_at, log)
    work(folder, cohorts, overrides)


def _watch_writes(kill_at: int | None, log: Path) -> None:
    """Count what reaches the disk, and end this process at one of them.

    A write is: the content of a file before it is safe (it is then torn: its last bytes are missing), the moment before
    and after a file takes its name, and the moment before its folder is safe.
    """
    writes: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def reach(what: str, tear: Callable[[], object] = lambda: None) -> None:
        writes.append(what)
        log.write_text(json.dumps(writes))
        if len(writes) - 1 == kill_at:
            tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_fsync(handle: int) -> None:
        status, name = os.fstat(handle), Path(f"/proc/self/fd/{handle}").readlink().name
        if stat.S_ISDIR(status.st_mode):
            reach(f"before the names in {name} are safe")
        else:
            reach(f"{name} torn", lambda: os.ftruncate(handle, max(0, status.st_size - 7)))
        fsync(handle)

    def watched_replace(path: Path, target: Path) -> Path:
        reach(f"before {target.name} is replaced")
        result = replace(path, target)
        reach(f"after {target.name} was replaced")
        return result

    os.fsync, Path.replace = watched_fsync, watched_replace
