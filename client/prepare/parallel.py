"""Work on many files, spread over processes, with results in the order of the work and progress reported."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from client.prepare.rejections import PrepareError

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how many are done, how many there are)."""

_CHUNK = 16
"""Items sent to a process at a time: enough to hide the cost of sending, few enough for a smooth progress bar."""


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    what: str,
    workers: int = 1,
    progress: Progress = silent,
) -> Iterator[Result]:
    """`function` of every item, in order. With one worker, or too few items to share, in this process.

    `function` must be importable by name, and its results small: they travel between processes. A script that comes
    here with several workers keeps its own work below `if __name__ == "__main__":`, because each process imports it.
    Raises PrepareError where a process is killed.
    """
    if not items:
        return
    if workers <= 1 or len(items) <= _CHUNK:
        yield from _reported(map(function, items), what, len(items), progress)
        return
    # Processes are started afresh: forking one that runs DuckDB's threads may lock up.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield from _reported(pool.map(function, items, chunksize=_CHUNK), what, len(items), progress)
        except BrokenProcessPool:
            raise PrepareError(
                f"{what}: one of {workers} processes was killed, most likely for want of memory; use fewer workers"
            ) from None


def end_with_parent() -> None:
    """A process whose parent was killed would wait for work forever, and write into what the next run creates."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _reported(results: Iterator[Result], what: str, total: int, progress: Progress) -> Iterator[Result]:
    progress(what, 0, total)
    for done, result in enumerate(results, start=1):
        yield result
        progress(what, done, total)
