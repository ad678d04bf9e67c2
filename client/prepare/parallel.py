"""Work on many files, spread over processes, with results in the order of the work and progress reported."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

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

    `function` must be importable by name, and its results small: they travel between processes.
    """
    if workers <= 1 or len(items) <= _CHUNK:
        yield from _reported(map(function, items), what, len(items), progress)
        return
    # Processes are started afresh: forking one that runs DuckDB's threads may lock up.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from _reported(pool.map(function, items, chunksize=_CHUNK), what, len(items), progress)


def _reported(results: Iterator[Result], what: str, total: int, progress: Progress) -> Iterator[Result]:
    progress(what, 0, total)
    for done, result in enumerate(results, start=1):
        yield result
        progress(what, done, total)
