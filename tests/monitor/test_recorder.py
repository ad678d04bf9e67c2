"""What runs' folders say arrives in the database once, whatever happens between: locks, ends, restarts, full disks."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from federation.audit import AUDIT, AuditLog
from federation.run_folder import HISTORY, Measurement, append_history, cut_history, read_history, read_run
from monitor.database import Database, DatabaseAwayError, open_database, prepare
from monitor.recorder import Recorder, record
from monitor.rows import UNREADABLE
from monitor.tables import events, measurements, metadata, runs
from tests.postgres import Postgres, postgres

HOSTILE = "<script>alert(1)</script>'; DROP TABLE runs;-- \x00 \ud800 é"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


def _recorder(database: Database, *folders: Path, tell: Callable[[str], None] = lambda words: None) -> Recorder:
    return Recorder(database, folders, tell)


def _rows(database: Database, table) -> list:
    with database.reading() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key.columns)).mappings())


def _line(step: int, site: str = "north", **more) -> Measurement:
    facts = {"split": "val", "loss": 0.5, "parts": {}, "metrics": {"auprc": 0.25}, "num_samples": 9, "seconds": 1.5}
    return Measurement(step=step, site=site, **{**facts, **more})


def _begun(folder: Path) -> AuditLog:
    log = AuditLog(path=folder / AUDIT)
    log.write("run began", code="c", settings={"task": "mortality"})
    return log


def _check_equal(database: Database, folder: Path) -> None:
    """Events and measurements of the one run in a database are those of its folder, neither more nor less."""
    lines = [json.loads(line) for line in (folder / AUDIT).read_text().splitlines()]
    found = _rows(database, events)
    assert [(row["number"], row["time"], row["kind"]) for row in found] == [
        (line["number"], line["time"], line["event"]) for line in lines
    ]
    own = ("number", "time", "event", "previous", "hash")
    assert [row["facts"] for row in found] == [
        {name: value for name, value in line.items() if name not in own} for line in lines
    ]
    expected = {
        (each.step, each.site, each.split, name): value
        for each in read_history(folder)
        for name, value in {
            **each.metrics,
            **{f"loss/{part}": loss for part, loss in each.parts.items()},
            **({} if each.loss is None else {"loss": each.loss}),
            "num_samples": each.num_samples,
            "seconds": each.seconds,
        }.items()
    }
    kept = _rows(database, measurements)
    assert {(row["step"], row["site"], row["split"], row["metric"]): row["value"] for row in kept} == expected
    assert len(kept) == len(expected)
    assert all((row["value"] is None) == (row["reason"] is not None) for row in kept)


def test_a_run_arrives_whole_and_once(real_run: Path, database: Database) -> None:
    recorder = _recorder(database, real_run.parent)
    assert recorder.deliver() > 0
    _check_equal(database, real_run)
    (row,), said = _rows(database, runs), read_run(real_run)
    facts = ("name", "kind", "task", "seed", "status", "step_unit", "best_step", "monitor")
    assert [row[name] for name in facts] == [getattr(said, name) for name in facts]
    assert (row["sites"], row["settings"]) == (["north", "south"], said.settings)
    assert row["facts"]["traffic"] == said.more["traffic"]
    lines = [json.loads(line) for line in (real_run / AUDIT).read_text().splitlines()]
    assert (row["uid"], row["started"], row["ended"]) == (lines[0]["hash"], lines[0]["time"], lines[-1]["time"])
    # Whoever begins anew knows from the database how far it is.
    assert recorder.deliver() == _recorder(database, real_run).deliver() == 0
    _check_equal(database, real_run)
    trained = [row for row in _rows(database, events) if row["kind"] == "received" and row["round"] == 2]
    assert {row["site"] for row in trained} == {"north", "south"}


def test_a_run_arrives_whole_in_postgresql(real_run: Path, server: Postgres) -> None:
    database = open_database(server.url)
    try:
        assert _recorder(database, real_run).deliver() > 0
        assert _recorder(database, real_run).deliver() == 0
        _check_equal(database, real_run)
    finally:
        _empty(database)
        database.close()


def _empty(database: Database) -> None:
    with database.writing() as connection:
        for table in (*reversed([table.name for table in metadata.sorted_tables]), "dipro_fed_schema"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")


def test_half_a_line_waits_for_its_end(tmp_path: Path, database: Database) -> None:
    run = tmp_path / "run"
    log = _begun(run)
    append_history(run, [_line(1)])
    recorder = _recorder(database, run)
    assert recorder.deliver() == 2
    log.write("sent", exchange="round 1, train", site="north", bytes=5)
    append_history(run, [_line(2)])
    files = {name: (run / name).read_bytes() for name in (AUDIT, HISTORY)}
    for name, content in files.items():
        (run / name).write_bytes(content[:-20])
    assert recorder.deliver() == 0
    for name, content in files.items():
        (run / name).write_bytes(content)
    assert recorder.deliver() == 2
    _check_equal(database, run)


def test_a_line_longer_than_a_transaction(tmp_path: Path, database: Database) -> None:
    log = _begun(tmp_path / "run")
    log.write("sent", site="n" * (3 << 20), bytes=1)
    log.write("sent", site="north", bytes=2)
    assert _recorder(database, tmp_path).deliver() == 3
    assert [row["facts"].get("bytes") for row in _rows(database, events)] == [None, 1, 2]


def test_a_resumed_run_stays_one_run_and_takes_steps_back(tmp_path: Path, database: Database) -> None:
    run = tmp_path / "run"
    log = _begun(run)
    append_history(run, [_line(step, seconds=1.0) for step in (1, 2, 3)])
    recorder = _recorder(database, run)
    recorder.deliver()
    log.write("run ended", status="failed", reason="gone")
    recorder.deliver()
    assert [(row["status"], row["error"]) for row in _rows(database, runs)] == [("failed", "gone")]
    cut_history(run, 1)  # as a run does that goes on after its first round
    log.write("run goes on", code="c", settings={})
    append_history(run, [_line(step, seconds=2.0) for step in (2, 3, 4)])
    recorder.deliver()
    _check_equal(database, run)
    (row,) = _rows(database, runs)
    assert (row["status"], row["error"], row["ended"]) == ("joining", None, None)
    run.rename(tmp_path / "elsewhere")
    assert _recorder(database, tmp_path).deliver() == 0
    assert [row["folder"] for row in _rows(database, runs)] == [str(tmp_path / "elsewhere")]


def test_two_runs_of_one_name_are_two_runs(real_run: Path, tmp_path: Path, database: Database) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        _begun(folder)
        (folder / "run.json").write_bytes((real_run / "run.json").read_bytes())
        time.sleep(0.002)  # an audit log's clock counts milliseconds
    _recorder(database, tmp_path).deliver()
    first, second = _rows(database, runs)
    assert first["name"] == second["name"]
    assert (first["uid"], first["started"]) != (second["uid"], second["started"])


def test_new_runs_are_found_and_sites_are_no_runs(tmp_path: Path, database: Database) -> None:
    recorder = _recorder(database, tmp_path)
    assert recorder.deliver() == 0
    _begun(tmp_path / "deep" / "er" / "run")
    AuditLog(path=tmp_path / "hospital" / AUDIT).write("left", asked="train")
    AuditLog(path=tmp_path / "deep" / "er" / "run" / "sites" / "north" / AUDIT).write("left", asked="train")
    assert recorder.deliver() == 1
    assert [row["name"] for row in _rows(database, runs)] == ["run"]


def test_a_run_without_an_audit_log(real_run: Path, tmp_path: Path, database: Database) -> None:
    """Centralized training writes none."""
    for name in ("run.json", HISTORY):
        (tmp_path / name).write_bytes((real_run / name).read_bytes())
    assert _recorder(database, tmp_path).deliver() > 0
    (row,) = _rows(database, runs)
    assert (row["status"], row["ended"] is not None) == ("finished", True)
    assert row["started"] < row["ended"]


def test_what_a_newer_version_wrote_is_kept(tmp_path: Path, database: Database) -> None:
    told: list[str] = []
    log = _begun(tmp_path / "run")
    log.write("weather changed", site=["a", "b"], round="seven", mood={"calm": [1, None, 2.5]}, large=2**80)
    with (tmp_path / "run" / AUDIT).open("ab") as file:
        file.write(b"no JSON\n[1]\n")
    new = {"step": 1, "site": "north", "split": "later", "metrics": {"new": 0.5, "odd": "x"}, "energy": 3, "loss": None}
    (tmp_path / "run" / HISTORY).write_text(f"{json.dumps(new)}\n17\n")
    assert _recorder(database, tmp_path, tell=told.append).deliver() == 6
    found = _rows(database, events)
    assert [row["kind"] for row in found] == ["run began", "weather changed", UNREADABLE, UNREADABLE]
    assert found[1]["facts"] == {
        "site": ["a", "b"],
        "round": "seven",
        "mood": {"calm": [1, None, 2.5]},
        "large": 2**80,
    }
    assert (found[1]["site"], found[1]["round"], found[2]["facts"]) == (None, None, {"line": "no JSON"})
    kept = {row["metric"]: (row["value"], row["reason"]) for row in _rows(database, measurements)}
    assert kept == {"new": (0.5, None), "odd": (None, "no number: x"), "energy": (3.0, None)}
    assert [words for words in told if "line 2: left out" in words] == told


def test_numbers_that_no_database_holds(tmp_path: Path, database: Database) -> None:
    told: list[str] = []
    _begun(tmp_path)
    lines = [{"step": step, "site": "north", "split": "val", "loss": 10**400} for step in (2**63, float("inf"), 3)]
    (tmp_path / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _recorder(database, tmp_path, tell=told.append).deliver() == 4
    (row,) = _rows(database, measurements)
    assert (row["step"], row["value"], row["reason"][:14]) == (3, None, "no number: 100")
    assert len(told) == 2


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_hostile_names_are_names(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}" if where == "sqlite" else request.getfixturevalue("server").url
    log = _begun(tmp_path / "run")
    hostile = json.dumps({"event": HOSTILE, "time": "t", "site": HOSTILE, "round": 10**30, "nan": float("nan")})
    with log.path.open("a") as file:
        file.write(hostile + "\n")
    append_history(tmp_path / "run", [_line(1, metrics={HOSTILE: None}, site=HOSTILE.replace("\ud800", ""))])
    database = open_database(url)
    try:
        _recorder(database, tmp_path).deliver()
        row = _rows(database, events)[1]
        assert row["kind"] == row["site"] == HOSTILE.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
        assert (row["round"], row["facts"]["nan"]) == (None, "nan")
        reasons = [row["reason"] for row in _rows(database, measurements) if row["value"] is None]
        assert reasons == ["the labels there leave it undefined, or the site's policy keeps it"]
    finally:
        if where == "postgresql":
            _empty(database)
        database.close()


def test_a_changed_audit_log_is_told_and_not_recorded_again(tmp_path: Path, database: Database) -> None:
    told: list[str] = []
    log = _begun(tmp_path)
    for number in range(3):
        log.write("sent", site="north", bytes=number)
    recorder = _recorder(database, tmp_path, tell=told.append)
    recorder.deliver()
    log.path.write_bytes(log.path.read_bytes().replace(b'"bytes": 1', b'"bytes": 9'))
    for _ in range(2):
        assert recorder.deliver() == 0
    assert len(told) == 1
    assert "audit verify" in told[0]
    assert [row["facts"].get("bytes") for row in _rows(database, events)] == [None, 0, 1, 2]


class Watched:
    """A recorder at work in a thread of its own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.told: list[str] = []
        self._stop = threading.Event()
        recorder = _recorder(database, folder, tell=self.told.append)
        self._thread = threading.Thread(target=record, args=(recorder, self._stop, self.told.append, 0.05))
        self._thread.start()

    def wait_for(self, words: str) -> None:
        _wait_until(lambda: any(words in each for each in self.told))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


def _wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


def _num_events(database: Database) -> int:
    with database.reading() as connection:
        return connection.execute(select(func.count()).select_from(events)).scalar_one()


def test_a_locked_database_gets_everything_later(tmp_path: Path, database: Database) -> None:
    run = tmp_path / "run"
    log = _begun(run)
    quick = open_database(f"{database.engine.url}?timeout=0.1")
    prepare(quick)
    watched = Watched(quick, run)
    try:
        _wait_until(lambda: _num_events(database) > 0)
        other = sqlite3.connect(tmp_path / "monitor.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        for number in range(20):
            log.write("sent", exchange=f"round {number}, train", site="north", bytes=number)
            append_history(run, [_line(number)])
        assert time.monotonic() - start < 5  # whoever trains waits for no database
        watched.wait_for("another process holds it locked")
        assert _num_events(database) == 1
        other.execute("ROLLBACK")
        other.close()
        watched.wait_for("The database is back")
        _wait_until(lambda: _num_events(database) == 21)
    finally:
        watched.stop()
        quick.close()
    _check_equal(database, run)
    assert len(watched.told) == 2


def test_a_database_that_goes_away_gets_everything_later(tmp_path: Path, server: Postgres) -> None:
    run = tmp_path / "run"
    log = _begun(run)
    database, another = open_database(server.url), open_database(server.url)
    prepare(database)
    watched, beside = Watched(database, run), Watched(another, run)  # two of them deliver nothing twice
    try:
        _wait_until(lambda: _num_events(database) > 0)
        server.stop()
        for number in range(20):
            log.write("sent", exchange=f"round {number}, train", site="north", bytes=number)
            append_history(run, [_line(number)])
        watched.wait_for("is delivered when the database is back")
        server.start()
        watched.wait_for("The database is back")
        beside.wait_for("The database is back")
        _wait_until(lambda: _num_events(database) == 21)
    finally:
        watched.stop()
        beside.stop()
        another.close()
    try:
        _check_equal(database, run)
        assert len(_rows(database, runs)) == 1
    finally:
        _empty(database)
        database.close()


def test_a_full_database_keeps_what_it_has_and_gets_the_rest_later(tmp_path: Path, database: Database) -> None:
    run = tmp_path / "run"
    log = _begun(run)
    recorder = _recorder(database, run)
    recorder.deliver()
    for number in range(300):
        append_history(run, [_line(number, metrics={f"metric {place}": 0.5 for place in range(20)})])
    log.write("sent", site="north", bytes=1)
    with database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    _limit_pages(database, pages + 10)
    for _ in range(3):
        with pytest.raises(DatabaseAwayError, match="no room left"):
            recorder.deliver()
    assert (_num_events(database), _rows(database, measurements)) == (1, [])
    _limit_pages(database, 1_000_000)
    assert recorder.deliver() == 301
    _check_equal(database, run)


def _limit_pages(database: Database, pages: int) -> None:
    """For the connection that the pool has, the only one."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
