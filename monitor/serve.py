"""Recorder and page in one process, until it is interrupted."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from monitor.access import require_login
from monitor.courier import start_couriers
from monitor.database import Database, DatabaseAwayError, prepare
from monitor.hooks import Hook
from monitor.limits import Limits
from monitor.loggers import Logger, start_loggers
from monitor.page import make_page
from monitor.recorder import Recorder, record
from monitor.run_files import RunFolder, find_runs
from monitor.sinks import Sink


@dataclass(frozen=True, kw_only=True)
class Outward:
    """What leaves the monitor by itself."""

    hooks: Sequence[Hook] = ()
    """Where alarms go."""
    sinks: Sequence[Sink] = ()
    """Tools that draw measurements."""
    limits: Limits = field(default_factory=Limits)
    """When there is an alarm."""


def serve(
    database: Database,
    folders: Sequence[Path],
    tell: Callable[[str], None],
    *,
    host: str,
    port: int,
    password: str | None,
    find: Callable[[Sequence[Path]], list[RunFolder]] = find_runs,
    outward: Outward | None = None,
) -> None:
    """Record the runs that `find` finds in these folders and show all runs of the database at http://HOST:PORT.

    Raises AccessError for an address that others reach where there is no password, DatabaseError for a database that is
    of no use.
    """
    require_login(host, password)
    with suppress(DatabaseAwayError):  # the recorder waits for it, and says so
        prepare(database)
    outward, stop = outward or Outward(), threading.Event()
    watching = Recorder(database, folders, tell, find, limits=outward.limits)
    recorder = threading.Thread(target=record, args=(watching, stop, tell), daemon=True)
    recorder.start()
    start_couriers(database, outward.hooks, outward.limits, stop, tell)
    start_loggers([Logger(database, folders, sink) for sink in outward.sinks], stop, tell)
    try:
        uvicorn.run(make_page(database, password), host=host, port=port, log_level="warning", access_log=False)
    finally:
        stop.set()
        recorder.join(10)
        database.close()
