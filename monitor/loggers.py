"""Hands the measurements of runs on to other tools, beside the recorder and never before it.

How far a run's history was handed on is kept in the database. Who hands on claims the run for a while, so that of
several recorders one does. Who ends between handing on and noting it leaves it to be handed on again.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from monitor.alarms import AT_WORK
from monitor.database import Database, DatabaseAwayError, DatabaseError, prepare
from monitor.rows import measurement_rows
from monitor.run_files import ChangedError, Position, RunFolder, find_runs, new_lines
from monitor.sinks import Point, Sink, SinkError, Watched
from monitor.tables import events, logged, runs
from monitor.times import iso, seconds_of

_POLL_SECONDS = 2.0
_CLAIM_SECONDS = 120.0
"""How long a run is its writer's alone; longer than writing `_AT_ONCE` takes."""
_LONGEST_BACK_OFF = 300.0
_AT_ONCE = 1 << 16
"""Bytes of a history that are handed on at once."""


class Logger:
    """Hands the histories in some folders on to one tool."""

    def __init__(self, database: Database, folders: Sequence[Path], sink: Sink) -> None:
        self._database, self._folders, self._sink = database, folders, sink
        self._holder, self._is_prepared = secrets.token_hex(8), False
        self._delivered: dict[str, tuple[object, str]] = {}
        """By run, how its files looked, and its state, when all of them was handed on."""

    def deliver(self) -> int:
        """Hand on what is new; how many numbers that were. Raises SinkError and DatabaseError."""
        if not self._is_prepared:
            prepare(self._database)
            self._is_prepared = True
        return sum(self._deliver(folder) for folder in find_runs(self._folders))

    def _deliver(self, folder: RunFolder) -> int:
        look, seen = folder.look(), self._delivered.get(folder.uid)
        if seen is not None and seen[0] == look and seen[1] not in AT_WORK:
            return 0
        run = self._run(folder)
        if run is None or seen == (look, run.status) or not folder.history.is_file() or not self._claim(run.run_id):
            return 0
        num_points = 0
        try:
            while (num_new := self._some(folder, run)) is not None:
                num_points += num_new
            if run.status not in AT_WORK and self._place(run.run_id).status != run.status:
                self._to_sink(lambda: self._sink.end(run))
                self._note(run.run_id, status=run.status)
        finally:
            self._release(run.run_id)
        self._delivered[folder.uid] = (look, run.status)
        return num_points

    def _some(self, folder: RunFolder, run: Watched) -> int | None:
        """Hand on the next lines; how many numbers those were, None where there are no more lines."""
        place = self._place(run.run_id)
        position = Position(bytes=place.bytes, lines=place.lines, tail=place.tail)
        try:
            lines, end = new_lines(folder.history, position, _AT_ONCE)
        except ChangedError:  # a run that goes on makes steps again
            lines, end = new_lines(folder.history, Position(), _AT_ONCE)
        if not lines:
            return None
        points = self._points(run, lines)
        if points:
            self._to_sink(lambda: self._sink.write(run, points))
        self._note(run.run_id, bytes=end.bytes, lines=end.lines, tail=end.tail, status=None)
        return len(points)

    def _note(self, run_id: int, **values: object) -> None:
        """As long as the run is this logger's to hand on, which it stays a while longer."""
        mine = self._row(run_id).where(logged.c.holder == self._holder)
        with self._database.writing() as connection:
            connection.execute(mine.values(**values, until=_in(_CLAIM_SECONDS)))

    def _to_sink(self, hand_on: Callable[[], None]) -> None:
        try:
            hand_on()
        except Exception as error:  # other packages' errors are of any kind
            # Their texts may repeat the address, with its password.
            raise SinkError(f"{self._sink.name}: did not take measurements ({type(error).__name__})") from error

    def _points(self, run: Watched, lines: Sequence[bytes]) -> list[Point]:
        """The numbers of some lines that are defined; lines that cannot be read are told by the recorder."""
        found: list[dict[str, Any]] = []
        for line in lines:
            try:
                found += [row for row in measurement_rows(line) if row["value"] is not None]
            except ValueError:
                continue
        times = self._times(run, sorted({row["step"] for row in found}))
        names = ("site", "split", "metric", "step", "value")
        return [Point(**{name: row[name] for name in names}, seconds=times[row["step"]]) for row in found]

    def _times(self, run: Watched, steps: Sequence[int]) -> dict[int, float]:
        """When each round was aggregated; of a run that does not say so, when it began. The same whoever asks."""
        times = dict.fromkeys(steps, run.started)
        asked = select(events.c.round, func.max(events.c.time)).where(
            events.c.run_id == run.run_id, events.c.kind == "aggregated"
        )
        with self._database.reading() as connection:
            for number, time in connection.execute(asked.group_by(events.c.round)):
                if number in times:
                    times[number] = seconds_of(time) or run.started
        return times

    def _run(self, folder: RunFolder) -> Watched | None:
        """None until the recorder has it."""
        asked = select(runs).where(runs.c.uid == folder.uid)
        with self._database.reading() as connection:
            row = connection.execute(asked).one_or_none()
        if row is None or row.status == AT_WORK[0]:
            return None
        return Watched(
            run_id=row.run_id,
            uid=row.uid,
            name=row.name,
            status=row.status,
            started=seconds_of(row.started) or 0.0,
            ended=seconds_of(row.ended) or 0.0,
            settings=row.settings,
        )

    def _claim(self, run_id: int) -> bool:
        """Whether this logger may hand the run on now."""
        mine = {"holder": self._holder, "until": _in(_CLAIM_SECONDS)}
        with self._database.writing() as connection:
            # The run's row is the lock, as for the recorder.
            connection.execute(select(runs.c.run_id).where(runs.c.run_id == run_id).with_for_update())
            found = connection.execute(self._asked(run_id)).one_or_none()
            if found is None:
                new = {"run_id": run_id, "target": self._sink.target, "bytes": 0, "lines": 0, "tail": ""}
                connection.execute(insert(logged).values(**new, **mine))
            elif found.holder not in (None, self._holder) and found.until > _in(0):
                return False
            else:
                connection.execute(self._row(run_id).values(**mine))
        return True

    def _release(self, run_id: int) -> None:
        try:
            with self._database.writing() as connection:
                connection.execute(self._row(run_id).where(logged.c.holder == self._holder).values(holder=None))
        except DatabaseAwayError:
            pass  # the claim runs out

    def _place(self, run_id: int) -> Row[Any]:
        with self._database.reading() as connection:
            return connection.execute(self._asked(run_id)).one()

    def _asked(self, run_id: int) -> Any:
        return select(logged).where(logged.c.run_id == run_id, logged.c.target == self._sink.target)

    def _row(self, run_id: int) -> Any:
        return update(logged).where(logged.c.run_id == run_id, logged.c.target == self._sink.target)


def keep_logging(logger: Logger, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Hand on until told to stop; a tool that fails is told once, and tried again, at last every five minutes."""
    wait, problem = _POLL_SECONDS, ""
    while not stop.wait(wait):
        try:
            logger.deliver()
        except SinkError as error:
            if str(error) != problem:
                tell(f"{error}; tried again")
            wait, problem = min(_LONGEST_BACK_OFF, 2 * wait), str(error)
        except DatabaseAwayError:  # the recorder says so
            wait = min(_LONGEST_BACK_OFF, 2 * wait)
        except DatabaseError as error:
            tell(f"{error}. No measurement is handed on")
            return
        else:
            if problem:
                tell(f"{problem.partition(':')[0]}: takes measurements again")
            wait, problem = _POLL_SECONDS, ""


def start_loggers(loggers: Sequence[Logger], stop: threading.Event, tell: Callable[[str], None]) -> None:
    """One thread for each, which ends with the process."""
    for logger in loggers:
        threading.Thread(target=keep_logging, args=(logger, stop, tell), daemon=True).start()


def _in(seconds: float) -> str:
    """So many seconds from now."""
    return iso(datetime.now(UTC) + timedelta(seconds=seconds))
