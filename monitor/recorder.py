"""Delivers what the runs' folders say into the database: each line once, whatever happens between.

How far a file was delivered is kept in the database, in the transaction that delivers: what was undone is delivered
again, what was kept never is. The folders are only read, so training waits for nothing.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from federation.run_folder import RunRecord
from monitor import alarms
from monitor.database import Database, DatabaseAwayError, prepare, upsert
from monitor.limits import Limits
from monitor.rows import Row, event_row, measurement_rows, plain, run_row
from monitor.run_files import ChangedError, Position, RunFolder, find_runs, new_lines
from monitor.site_files import SITE
from monitor.tables import events, measurements, positions, runs

POLL_SECONDS = 0.2
_FIND_EVERY = 25
"""Polls from one search for new folders to the next."""
_LONGEST_BACK_OFF = 30.0
_AT_ONCE = 1 << 20
"""Bytes of a file that are delivered in one transaction."""
_BOUNDS = ("run began", "run goes on", "run ended")
"""Events that say whether a run is at work."""


class Recorder:
    """Brings a database up to what some folders say, as often as it is asked."""

    def __init__(
        self,
        database: Database,
        folders: Sequence[Path],
        tell: Callable[[str], None],
        find: Callable[[Sequence[Path]], list[RunFolder]] = find_runs,
        limits: Limits | None = None,
    ) -> None:
        """`folders` are runs, or hold runs, which `find` finds; `tell` gets each complaint once; `limits` say when
        there is an alarm."""
        self._database, self._folders, self._tell, self._find = database, folders, tell, find
        self._limits = limits or Limits()
        self._is_prepared, self._polls = False, 0
        self._found: list[RunFolder] = []
        self._delivered: dict[str, object] = {}
        """By run, how its files looked when all of them was delivered."""
        self._told: set[str] = set()

    def deliver(self) -> int:
        """Deliver everything new; how many lines that were.

        Raises DatabaseAwayError where the database cannot be used now: what it has is then whole, and the next call
        goes on behind it. Raises DatabaseError for a database that is of no use.
        """
        looks_around = self._polls % _FIND_EVERY == 0
        if looks_around or not self._found:
            self._found = self._find(self._folders)
        self._polls += 1
        try:
            if not self._is_prepared:
                prepare(self._database)
                self._is_prepared = True
            num_lines = sum(self._deliver(run) for run in self._found)
            if looks_around:
                self._judge_silence(datetime.now(UTC))
            return num_lines
        except DatabaseAwayError:
            # It may come back without its last minutes, or empty.
            self._is_prepared, self._delivered = False, {}
            raise

    def _deliver(self, run: RunFolder) -> int:
        look = run.look()
        if self._delivered.get(run.uid) == look:
            return 0
        record, problem = run.record()
        if problem:
            self._once(problem)
        num_lines = 0
        try:
            while num_new := self._deliver_some(run, record):
                num_lines += num_new
        except OSError as error:  # a folder that is being moved or removed
            self._once(f"{run.path}: cannot be read ({error.strerror or error})")
            return num_lines
        self._delivered[run.uid] = look
        return num_lines

    def _deliver_some(self, run: RunFolder, record: RunRecord | None) -> int:
        """One transaction: the next lines of both files, and the run as it then is; how many lines that were."""
        with self._database.writing() as connection:
            run_id = _run_id(connection, run, record)
            num_lines, new_events = self._events(connection, run_id, run)
            num_more, new_numbers = self._measurements(connection, run_id, run)
            row = {"folder": plain(str(run.path)), **(run_row(record) if record else {})}
            state = _state(connection, run_id, run, record)
            connection.execute(update(runs).where(runs.c.run_id == run_id).values(**row, **state))
            if run.kind != SITE:  # alarms are of the whole federation
                found = alarms.of_events(connection, run_id, new_events, self._limits)
                found += alarms.of_losses(connection, run_id, new_numbers, self._limits)
                if record is not None and not run.audit.is_file():
                    found += alarms.of_failure(state, record.seconds, self._limits)
                alarms.keep(connection, run_id, found)
        return num_lines + num_more

    def _judge_silence(self, now: datetime) -> None:
        """Alarms of runs in these folders that say nothing; other recorders' runs may be silent to this one alone."""
        uids = [run.uid for run in self._found if run.kind != SITE]
        with self._database.reading() as connection:
            asked = select(runs.c.run_id).where(runs.c.uid.in_(uids), runs.c.status.in_(alarms.AT_WORK))
            at_work = connection.execute(asked).scalars().all()
            found = {run_id: alarms.of_silence(connection, run_id, now, self._limits) for run_id in at_work}
        if any(found.values()):
            with self._database.writing() as connection:
                for run_id, each in found.items():
                    alarms.keep(connection, run_id, each)

    def _events(self, connection: Connection, run_id: int, run: RunFolder) -> tuple[int, list[Row]]:
        """How many lines that were, and the events among them that are of the run."""
        if not run.audit.is_file():
            return 0, []
        position = _position(connection, run_id, "audit")
        try:
            lines, end = new_lines(run.audit, position, _AT_ONCE)
        except ChangedError as error:
            self._once(f"{error}; nothing more of it is recorded. `dipro-fed audit verify` says what is changed")
            return 0, []
        numbered = enumerate(lines, start=position.lines + 1)
        found = [event_row(line, number) for number, line in numbered if run.takes(line)]
        if found:
            connection.execute(insert(events), [{"run_id": run_id, **row} for row in found])
        if lines:
            _keep_position(connection, run_id, "audit", end)
        return len(lines), found

    def _measurements(self, connection: Connection, run_id: int, run: RunFolder) -> tuple[int, list[Row]]:
        """How many lines that were, and the numbers in them."""
        if not run.history.is_file():
            return 0, []
        position = _position(connection, run_id, "history")
        try:
            lines, end = new_lines(run.history, position, _AT_ONCE)
        except ChangedError:  # a run that goes on takes back steps that it will make again
            connection.execute(delete(measurements).where(measurements.c.run_id == run_id))
            lines, end = new_lines(run.history, Position(), _AT_ONCE)
            position = Position()
            _keep_position(connection, run_id, "history", end)
        found: list[Row] = []
        for number, line in enumerate(lines, start=position.lines + 1):
            try:
                found += [{"run_id": run_id, **row} for row in measurement_rows(line)]
            except ValueError as error:
                self._once(f"{run.history}, line {number}: left out ({error})")
        if lines:
            _keep_measurements(connection, found)
            _keep_position(connection, run_id, "history", end)
        return len(lines), found

    def _once(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            self._tell(words)


def record(
    recorder: Recorder, stop: threading.Event, tell: Callable[[str], None], poll_seconds: float = POLL_SECONDS
) -> None:
    """Deliver until told to stop; while the database is away, try again, at last every half minute.

    It is told once that the database is away and why, and once that it is back.
    """
    wait, is_away = poll_seconds, False
    while not stop.wait(wait if is_away else poll_seconds):
        try:
            num_lines = recorder.deliver()
        except DatabaseAwayError as error:
            wait = min(_LONGEST_BACK_OFF, 2 * wait)
            if not is_away:
                tell(f"{error}. The runs go on; what happens is delivered when the database is back")
            is_away = True
        else:
            if is_away:
                tell(f"The database is back; {num_lines:,} lines were delivered")
            wait, is_away = poll_seconds, False


def _run_id(connection: Connection, run: RunFolder, record: RunRecord | None) -> int:
    """The run's number in the database, its row locked against other recorders; new where it has none."""
    asked = select(runs.c.run_id).where(runs.c.uid == run.uid).with_for_update()
    found = connection.execute(asked).scalar_one_or_none()
    if found is not None:
        return found
    row = {
        "uid": run.uid,
        "folder": plain(str(run.path)),
        "name": plain(run.name),
        "kind": run.kind if record is None else record.kind,
        "status": "joining",
        "started": run.changed() if record is None else run.began(record.seconds),
        "sites": [],
        "settings": {},
        "facts": {},
    }
    connection.execute(insert(runs).values(**row))
    return connection.execute(asked).scalar_one()


def _state(connection: Connection, run_id: int, run: RunFolder, record: RunRecord | None) -> Row:
    """Status, times and error, from the events, which are written first, and from run.json."""
    if run.kind == SITE:
        return _state_at_site(connection, run_id)
    said = None if record is None else record.status
    error = None if record is None else record.more.get("error")
    bounds = (
        select(events.c.kind, events.c.time, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind.in_(_BOUNDS))
        .order_by(events.c.number)
    )
    found = connection.execute(bounds).all()
    if not found:
        ended = run.changed() if said in ("finished", "failed") else None
        return {"status": said or "joining", "ended": ended, "error": plain(error)}
    last, state = found[-1], {"started": found[0].time}
    if record is None and isinstance(settings := found[0].facts.get("settings"), dict):
        state |= {"settings": settings, "task": _text(settings.get("task"))}
    if last.kind == "run ended":
        reason = last.facts.get("reason", error)
        return {**state, "status": str(last.facts.get("status")), "ended": last.time, "error": _text(reason)}
    return {**state, "status": "running" if said == "running" else "joining", "ended": None, "error": None}


def _state_at_site(connection: Connection, run_id: int) -> Row:
    """From what left the site: the run is over when it scored the model that the run ends with."""
    its_own = select(events.c.time, events.c.facts).where(events.c.run_id == run_id)
    first = connection.execute(its_own.order_by(events.c.number).limit(1)).one_or_none()
    last = connection.execute(its_own.order_by(events.c.number.desc()).limit(1)).one_or_none()
    if first is None or last is None:
        return {"status": "joining"}
    is_over = last.facts.get("final") is True
    status = {"status": "finished" if is_over else "running", "ended": last.time if is_over else None}
    return {**status, "started": first.time, "step_unit": "round"}


def _text(value: object) -> str | None:
    return None if value is None else plain(str(value))


def _position(connection: Connection, run_id: int, file: str) -> Position:
    asked = select(positions).where(positions.c.run_id == run_id, positions.c.file == file)
    found = connection.execute(asked).one_or_none()
    return Position() if found is None else Position(bytes=found.bytes, lines=found.lines, tail=found.tail)


def _keep_position(connection: Connection, run_id: int, file: str, position: Position) -> None:
    row = {"bytes": position.bytes, "lines": position.lines, "tail": position.tail}
    changed = connection.execute(
        update(positions).where(positions.c.run_id == run_id, positions.c.file == file).values(**row)
    )
    if not changed.rowcount:
        connection.execute(insert(positions).values(run_id=run_id, file=file, **row))


def _keep_measurements(connection: Connection, rows: list[Row]) -> None:
    """A number that is there already, of a step that was made again, gives way."""
    if not rows:
        return
    put = upsert(connection, measurements)
    key = [column.name for column in measurements.primary_key.columns]
    new = {"value": put.excluded.value, "reason": put.excluded.reason}
    connection.execute(put.on_conflict_do_update(index_elements=key, set_=new), rows)
