"""Work that is done while whoever gave it goes on: one piece after the other, in a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Later:
    """Pieces of work in the order in which they were given; after one that fails the others are left undone."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="later")
        self._given: list[Future[None]] = []
        self._has_failed = False

    def do(self, work: Callable[[], None]) -> None:
        self._given.append(self._thread.submit(self._done, work))

    def settle(self) -> None:
        """Return when all is done. Raises what the first piece that failed raised."""
        given, self._given = self._given, []
        for each in given:
            each.result()

    def close(self) -> None:
        """Return when nothing is being done any more, and never do anything again."""
        self._thread.shutdown()

    def _done(self, work: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            work()
        except BaseException:
            self._has_failed = True
            raise
