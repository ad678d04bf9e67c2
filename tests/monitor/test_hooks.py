"""Alarms arrive once, at a real web server and a real command, whatever fails between."""

import http.server
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation.audit import AUDIT, AuditLog
from monitor import courier as couriers
from monitor import hooks
from monitor.courier import Courier, carry
from monitor.database import Database, DatabaseAwayError, open_database, prepare
from monitor.hooks import Hook, HookError, SendError, make_hooks
from monitor.limits import Limits
from monitor.recorder import Recorder, record
from monitor.tables import alarms, deliveries, metadata
from tests.monitor.test_page import HOSTILE
from tests.postgres import Postgres, postgres

SECRET = "T0KEN-of-the-path"


class Receiver:
    """A web server on loopback that keeps what is posted; each answer is the next of `answers`, then 204."""

    def __init__(self, *answers: int) -> None:
        self.got: list[dict] = []
        self.delay = 0.0
        receiver, waiting = self, list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(receiver.delay)
                status = waiting.pop(0) if waiting else 204
                if status < 300:
                    receiver.got.append(json.loads(content))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{SECRET}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*answers: int) -> Receiver:
        made.append(Receiver(*answers))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(couriers, "_BACK_OFF", 0.01)
    monkeypatch.setattr(couriers, "_POLL_SECONDS", 0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


def _write_refusals(folder: Path, number: int, site: str = "south") -> AuditLog:
    log = AuditLog(path=folder / "run" / AUDIT)
    log.write("run began", settings={})
    for each in range(number):
        log.write("received", exchange=f"round {each}, train", site=site, bytes=1)
        log.write("refused", round=each, site=site, reason=f"reason {each}")
    return log


def _recorded(database: Database, folder: Path) -> None:
    Recorder(database, [folder], lambda words: None).deliver()


def _hook(webhook: str | None = None, command: str | None = None) -> Hook:
    (hook,) = make_hooks(webhook, command)
    return hook


def _states(database: Database) -> list[tuple]:
    with database.reading() as connection:
        asked = select(deliveries.c.hook, deliveries.c.state, deliveries.c.tries, deliveries.c.reason)
        return [tuple(row) for row in connection.execute(asked.order_by(deliveries.c.alarm_id, deliveries.c.hook))]


def _until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


def test_an_alarm_is_posted_once(tmp_path: Path, database: Database, receive: Callable[..., Receiver]) -> None:
    _write_refusals(tmp_path, 2)
    _recorded(database, tmp_path)
    receiver = receive()
    assert [Courier(database, _hook(receiver.url), Limits(), print).deliver() for _ in range(2)] == [2, 0]
    assert [(each["rule"], each["site"], each["round"]) for each in receiver.got] == [
        ("refused update", "south", 0),
        ("refused update", "south", 1),
    ]
    first = receiver.got[0]
    assert first["words"] == "the update of south was not used: reason 0"
    assert first["text"] == f"refused update in run run, south, round 0: {first['words']}"
    assert (first["run"], first["run_id"]) == ("run", 1)
    assert len({each["id"] for each in receiver.got}) == 2
    _recorded(database, tmp_path)  # another recorder, or this one after a restart
    assert Courier(database, _hook(receiver.url), Limits(), print).deliver() == 0


def test_a_webhook_that_is_away_gets_it_later(
    tmp_path: Path, database: Database, receive: Callable[..., Receiver]
) -> None:
    _write_refusals(tmp_path, 2)
    _recorded(database, tmp_path)
    told: list[str] = []
    receiver = receive(500, 429, 408, 503, 502, 404, 204)
    stop = threading.Event()
    courier = Courier(database, _hook(receiver.url), Limits(), told.append)
    thread = threading.Thread(target=carry, args=(courier, stop, told.append))
    thread.start()
    _until(lambda: len(told) > 0 and "takes alarms again" in told[-1])
    _until(lambda: len(receiver.got) == 2)
    stop.set()
    thread.join()
    assert {each["round"] for each in receiver.got} == {0, 1}
    assert len(told) == len(set(told)) == 7  # each answer once
    assert "answered 500; tried again" in told[0]
    assert not any(SECRET in each for each in told)
    assert {state for _, state, _, _ in _states(database)} == {"delivered"}


def test_nobody_listens_and_the_secret_stays_one(tmp_path: Path, database: Database) -> None:
    _write_refusals(tmp_path, 3)
    _recorded(database, tmp_path)
    told: list[str] = []
    courier = Courier(database, _hook(f"http://127.0.0.1:9/{SECRET}?key={SECRET}"), Limits(), told.append)
    for _ in range(3):
        assert courier.deliver() == 0
        assert courier.pause > 0
        time.sleep(0.05)
    assert told == ["webhook http://127.0.0.1:9: not reached (ConnectError); tried again"]


@pytest.mark.parametrize("status", [301, 400, 404])
def test_a_refusal_is_not_tried_for_ever(
    status: int, tmp_path: Path, database: Database, receive: Callable[..., Receiver]
) -> None:
    _write_refusals(tmp_path, 1)
    _recorded(database, tmp_path)
    told: list[str] = []
    receiver = receive(*[status] * 5)
    courier = Courier(database, _hook(receiver.url), Limits(), told.append)
    for _ in range(12):
        courier.deliver()
        time.sleep(courier.pause + 0.005)
    assert _states(database) == [("webhook", "given up", 5, f"answered {status}")]
    assert [each.partition("; ")[2] for each in told] == ["tried again", "the alarm is on the page alone"]


def test_a_webhook_that_hangs_holds_up_nothing(
    tmp_path: Path, database: Database, receive: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "PATIENCE_SECONDS", 0.3)
    log, told = _write_refusals(tmp_path, 1), []
    receiver = receive()
    receiver.delay = 1.0
    stop = threading.Event()
    recorder = Recorder(database, [tmp_path], told.append)
    threads = [threading.Thread(target=record, args=(recorder, stop, told.append, 0.02))]
    couriers.start_couriers(database, [_hook(receiver.url)], Limits(), stop, told.append)
    threads[0].start()
    _until(lambda: any("no answer within 0.3 s" in each for each in told))
    log.write("sent", exchange="round 9, train", site="north", bytes=1)
    start = time.monotonic()
    _until(lambda: _num_events(database) == 4)
    assert time.monotonic() - start < 5
    stop.set()
    threads[0].join()


def _num_events(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one())


def _program(folder: Path, text: str) -> str:
    path = folder / "it's a hook.py"
    path.write_text(text)
    return shlex.join([sys.executable, str(path), "$(touch owned)", str(folder)])


READS = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[2])
alarm = json.load(sys.stdin)
(folder / "got").write_text(json.dumps([alarm, sys.argv[1:], [key for key in os.environ if key.startswith("DIPRO")]]))
print("x" * 1000000)
"""


def test_a_command_reads_the_alarm_and_no_shell_does(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIPRO_FED_WEBHOOK", SECRET)
    site = f"$(touch owned); `touch owned` {HOSTILE} --help"
    _write_refusals(tmp_path, 1, site=site)
    _recorded(database, tmp_path)
    hook = _hook(command=_program(tmp_path, READS))
    assert Courier(database, hook, Limits(), print).deliver() == 1
    alarm, words, known = json.loads((tmp_path / "got").read_text())
    assert (alarm["site"], words, known) == (site, ["$(touch owned)", str(tmp_path)], [])
    assert "<" not in alarm["text"]
    assert not (tmp_path / "owned").exists()


def test_a_command_that_fails_or_hangs(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(SendError, match="exit code 3: no such room") as failed:
        _hook(command=_program(tmp_path, "import sys; print('no such room', file=sys.stderr); sys.exit(3)")).send({})
    assert failed.value.is_refusal
    waits = "import pathlib, os, subprocess, sys, time; pathlib.Path(sys.argv[2], 'pid').write_text(str(os.getpid()))"
    start = time.monotonic()
    with pytest.raises(SendError, match=r"did not end within 0\.5 s"):
        _hook(command=_program(tmp_path, f"{waits}; subprocess.run(['sleep', '60'])")).send({"large": "x" * 1_000_000})
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("webhook", "command", "words"),
    [
        (f"hooks.example.org/{SECRET}", None, "found no scheme"),
        (f"file:///etc/{SECRET}", None, "found file"),
        (f"https://example.org:port/{SECRET}", None, "a text that is none"),
        (None, "no-such-program --now", "none of the name 'no-such-program'"),
        (None, "echo 'open", "quoted where they hold spaces"),
        (None, "''", "none of the name ''"),
    ],
)
def test_what_can_take_no_alarm_is_refused_at_the_start(webhook: str | None, command: str | None, words: str) -> None:
    with pytest.raises(HookError, match=words) as told:
        make_hooks(webhook, command)
    assert SECRET not in str(told.value)


def test_old_alarms_wake_nobody(tmp_path: Path, database: Database, receive: Callable[..., Receiver]) -> None:
    _write_refusals(tmp_path, 2)
    _recorded(database, tmp_path)
    with database.writing() as connection:
        old = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="milliseconds")
        connection.execute(update(alarms).where(alarms.c.alarm_id == 1).values(time=old))
    receiver = receive()
    assert Courier(database, _hook(receiver.url), Limits(), print).deliver() == 1
    assert [each["round"] for each in receiver.got] == [1]
    assert Courier(database, _hook(receiver.url), Limits(sent_within_hours=26), print).deliver() == 1


def test_a_claim_of_one_who_ended_runs_out(
    tmp_path: Path, database: Database, receive: Callable[..., Receiver]
) -> None:
    _write_refusals(tmp_path, 1)
    _recorded(database, tmp_path)
    receiver = receive()
    courier = Courier(database, _hook(receiver.url), Limits(), print)
    assert courier.deliver() == 1
    for passed, sent in ((timedelta(0), 0), (timedelta(seconds=61), 1)):
        until = (datetime.now(UTC) + timedelta(seconds=60) - passed).isoformat(timespec="milliseconds")
        with database.writing() as connection:
            connection.execute(update(deliveries).values(state="trying", until=until))
        assert courier.deliver() == sent


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_of_several_recorders_one_sends(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, receive: Callable[..., Receiver]
) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}" if where == "sqlite" else request.getfixturevalue("server").url
    _write_refusals(tmp_path, 12)
    receiver, opened = receive(), [open_database(url) for _ in range(4)]
    command = _hook(command=_program(tmp_path, "import sys; open(sys.argv[2] + '/all', 'a').write(sys.stdin.read())"))
    try:
        prepare(opened[0])
        for database in opened[:2]:
            _recorded(database, tmp_path)
        receiver.delay = 0.02  # so that they meet
        with ThreadPoolExecutor(4) as pool:
            made = [Courier(each, _hook(receiver.url), Limits(), print) for each in opened]
            sent = list(pool.map(lambda courier: courier.deliver(), made))
        assert sum(sent) == len(receiver.got) == len({each["id"] for each in receiver.got}) == 12
        assert sum(number > 0 for number in sent) > 1
        with ThreadPoolExecutor(2) as pool:
            made = [Courier(each, command, Limits(), print) for each in opened[:2]]
            assert sum(pool.map(lambda courier: courier.deliver(), made)) == 12
        assert len({json.loads(line)["id"] for line in (tmp_path / "all").read_text().splitlines()}) == 12
        assert set(_states(opened[0])) == {("command", "delivered", 1, None), ("webhook", "delivered", 1, None)}
    finally:
        if where == "postgresql":
            with opened[0].writing() as connection:
                metadata.drop_all(connection)
                connection.exec_driver_sql("DROP TABLE dipro_fed_schema")
        for database in opened:
            database.close()


def test_a_courier_outlives_its_database(tmp_path: Path, server: Postgres, receive: Callable[..., Receiver]) -> None:
    receiver, told, stop = receive(), [], threading.Event()
    database, beside = open_database(server.url), open_database(server.url)
    courier = Courier(database, _hook(receiver.url), Limits(), told.append)
    thread = threading.Thread(target=carry, args=(courier, stop, told.append))
    prepare(beside)
    thread.start()
    try:
        server.stop()
        time.sleep(0.3)
        server.start()
        _write_refusals(tmp_path, 1)
        Recorder(beside, [tmp_path], told.append).deliver()
        _until(lambda: len(receiver.got) == 1)
    finally:
        stop.set()
        thread.join()
        for each in (database, beside):
            each.close()
    assert told == []  # the recorder says that the database is away


def test_a_full_database_sends_no_alarm_twice_and_loses_none(
    tmp_path: Path, database: Database, receive: Callable[..., Receiver]
) -> None:
    _write_refusals(tmp_path, 150)
    _recorded(database, tmp_path)
    receiver = receive()
    courier = Courier(database, _hook(receiver.url), Limits(), print)
    _limit_pages(database, 1)  # as many as there are already
    with pytest.raises(DatabaseAwayError, match="no room left"):
        courier.deliver()
    before = len(receiver.got)
    assert before < 150
    _limit_pages(database, 1_000_000)
    assert before + courier.deliver() == 150
    assert [each["round"] for each in receiver.got] == list(range(150))


def _limit_pages(database: Database, pages: int) -> None:
    """For the connection that the pool has, the only one."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
