"""Recorder and page in one process, until it is interrupted."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from monitor.access import require_login
from monitor.database import Database, DatabaseAwayError, prepare
from monitor.page import make_page
from monitor.recorder import Recorder, record
from monitor.run_files import RunFolder, find_runs


def serve(
    database: Database,
    folders: Sequence[Path],
    tell: Callable[[str], None],
    *,
    host: str,
    port: int,
    password: str | None,
    find: Callable[[Sequence[Path]], list[RunFolder]] = find_runs,
) -> None:
    """Record the runs that `find` finds in these folders and show all runs of the database at http://HOST:PORT.

    Raises AccessError for an address that others reach where there is no password, DatabaseError for a database that is
    of no use.
    """
    require_login(host, password)
    with suppress(DatabaseAwayError):  # the recorder waits for it, and says so
        prepare(database)
    stop = threading.Event()
    recorder = threading.Thread(target=record, args=(Recorder(database, folders, tell, find), stop, tell), daemon=True)
    recorder.start()
    try:
        uvicorn.run(make_page(database, password), host=host, port=port, log_level="warning", access_log=False)
    finally:
        stop.set()
        recorder.join(10)
        database.close()
