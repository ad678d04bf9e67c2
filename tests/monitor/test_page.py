"""The page shows what the database has, to whom it may, and takes no text for anything else."""

import asyncio
import csv
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert

from federation.audit import AUDIT, AuditLog
from federation.run_folder import POOLED, Measurement, append_history, read_history, read_run
from monitor.access import AccessError, read_password, require_login
from monitor.database import Database, open_database
from monitor.page import make_page
from monitor.recorder import Recorder
from monitor.tables import events

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


class Client:
    """A browser without a picture. Starlette's own test client brings warnings of two packages with it."""

    def __init__(self, app: FastAPI, base_url: str = "http://localhost:8765") -> None:
        self._app, self._base_url = app, base_url

    def get(self, path: str, **more) -> httpx.Response:
        return asyncio.run(self._get(path, more))

    async def _get(self, path: str, more: dict) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
            return await client.get(path, **more)


def _client(database: Database, *folders: Path, password: str | None = None) -> Client:
    Recorder(database, folders, lambda words: None).deliver()
    return Client(make_page(database, password))


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / AUDIT).read_text().splitlines()]


def _table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_board_says_what_the_log_says(real_run: Path, database: Database) -> None:
    client, lines = _client(database, real_run), _lines(real_run)
    rows = {row["site"]: row for row in _table(client.get("/runs/1/board.csv").text)}
    joined = {line["site"]: line for line in lines if line["event"] == "joined"}
    assert list(rows) == list(joined) == ["north", "south"]
    for site, row in rows.items():
        names = (site, f"node {joined[site]['node']}")
        moved: Counter[str] = Counter()
        for line in lines:
            if line.get("site") in names and line["event"] in ("sent", "received"):
                moved[line["event"]] += line["bytes"]
        assert (int(row["to_site"]), int(row["from_site"])) == (moved["sent"], moved["received"])
        assert json.loads(row["samples"]) == joined[site]["num_samples"]
        assert json.loads(row["runs_on"]) == joined[site]["runs_on"]
        assert row["seen"] == max(
            line["time"] for line in lines if line["event"] == "received" and line["site"] in names
        )
        work = [each.seconds for each in read_history(real_run) if (each.site, each.split) == (site, "train")]
        assert float(row["seconds"]) == work[-1]
        assert (row["state"], row["refused"]) == ("done", "0")
    page = client.get("/runs/1").text
    for site in rows:
        assert f"<h3>{site}</h3>" in page
    assert f"best round {read_run(real_run).best_step} by auprc" in page
    assert "finished" in client.get("/").text


def test_the_pictures_are_made_of_the_files_numbers(real_run: Path, database: Database) -> None:
    client, history = _client(database, real_run), read_history(real_run)
    found = client.get("/runs/1/series", params={"metric": "auroc", "split": "val"}).json()
    assert list(found["metric"]) == [POOLED, "north", "south"]
    for site, line in found["metric"].items():
        said = [each for each in history if (each.site, each.split) == (site, "val")]
        assert line == {"step": [each.step for each in said], "value": [each.metrics["auroc"] for each in said]}
    aggregated = [line for line in _lines(real_run) if line["event"] == "aggregated"]
    for site, line in found["norms"].items():
        assert line["value"] == [each["norms"][site]["parameters"] for each in aggregated]
    assert sorted(found["similarity"]) == ["north", "south"]
    for site, line in found["similarity"].items():
        assert line == {"step": [1, 2], "value": [each["with_others"][site] for each in aggregated]}
    cosine = [line for line in _lines(real_run) if line["event"] == "compared"][-1]["cosines"][1][0]
    assert found["compared"] == {"round": 2, "sites": ["north", "south"], "cosines": [[1, cosine], [cosine, 1]]}
    sent = [line for line in _lines(real_run) if line["event"] == "sent" and line["exchange"].startswith("round")]
    assert sum(found["traffic"]["to the sites"]["value"]) == sum(line["bytes"] for line in sent)
    trained = [bar for bar in found["timeline"] if bar["what"] == "train"]
    assert [(bar["site"], bar["round"], bar["end"]) for bar in trained] == [
        (site, number, "answered") for number in (1, 2) for site in ("north", "south")
    ]
    assert all(bar["sent"] < bar["received"] and bar["seconds"] > 0 for bar in trained)
    later = client.get("/runs/1/series", params={"metric": "auroc", "split": "val", "after": 1}).json()
    assert {tuple(line["step"]) for line in later["metric"].values()} == {(2,)}


def test_exports_have_every_row(real_run: Path, database: Database) -> None:
    client, lines, history = _client(database, real_run), _lines(real_run), read_history(real_run)
    events = _table(client.get("/runs/1/events.csv").text)
    assert [(row["time"], row["kind"]) for row in events] == [(line["time"], line["event"]) for line in lines]
    assert [row["kind"] for row in client.get("/runs/1/events.json").json()] == [line["event"] for line in lines]
    kept = client.get("/runs/1/measurements.json").json()
    assert len(kept) == sum(len(each.metrics) + len(each.parts) + 3 for each in history)
    assert len(_table(client.get("/runs/1/measurements.csv").text)) == len(kept)
    aggregated = [line for line in lines if line["event"] == "aggregated"]
    for what, said in (("norms", lambda each, site: each["norms"][site]["parameters"]), ("similarity", _with_others)):
        rows = _table(client.get(f"/runs/1/{what}-by-round.csv").text)
        found = {(int(row["round"]), row["of"]): float(row["value"]) for row in rows}
        assert found == {(each["round"], site): said(each, site) for each in aggregated for site in ("north", "south")}
    moved = _table(client.get("/runs/1/traffic-by-round.csv").text)
    asked = [line for line in lines if line["event"] == "sent" and line["exchange"].startswith("round")]
    assert sum(int(row["value"]) for row in moved if row["of"] == "to the sites") == sum(
        line["bytes"] for line in asked
    )
    (first, _) = _table(client.get("/runs/1/compared.csv").text)
    assert (first["round 2"], first["north"]) == ("north", "1.0")
    results = read_run(real_run).more["results"]
    for row in _table(client.get("/runs/1/chosen-sites.csv?metric=auroc").text):
        assert float(row["test"]) == results[row["auroc"]]["test"]["auroc"]
    shown = _table(client.get("/runs/1/series.csv?metric=loss&split=train").text)
    said = {(each.step, each.site): each.loss for each in history if each.split == "train"}
    assert {(int(row["step"]), row["site"]): float(row["loss"]) for row in shown} == said


def test_another_run_is_drawn_beside(real_run: Path, tmp_path: Path, database: Database) -> None:
    other = tmp_path / "central"
    other.mkdir()
    record = read_run(real_run)
    facts = {**json.loads((real_run / "run.json").read_text()), "kind": "centralized", "name": "all of it"}
    (other / "run.json").write_text(json.dumps(facts))
    metrics = {"auprc": 0.625}
    append_history(
        other,
        [
            Measurement(
                step=record.best_step or 0,
                site=POOLED,
                split="val",
                loss=0.5,
                parts={},
                metrics=metrics,
                num_samples=4,
                seconds=1.0,
            )
        ],
    )
    client = _client(database, real_run, other)
    page = client.get("/runs/1", params={"beside": 2}).text
    assert "all of it: 0.625" in page
    alone = {**facts, "kind": "local", "name": "north alone", "sites": ["north"], "trained_on": ["north"]}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "run.json").write_text(json.dumps(alone))
    line = {"step": record.best_step, "site": "north", "split": "val", "metrics": {"auprc": 0.375}}
    (tmp_path / "alone" / "history.jsonl").write_text(json.dumps(line) + "\n")
    Recorder(database, [tmp_path], lambda words: None).deliver()
    assert "north alone, on north: 0.375" in client.get("/runs/1", params={"beside": 3}).text
    assert "checked" in page
    results = record.more["results"]
    for row in _table(client.get("/runs/1/cross-sites.csv?metric=auroc&beside=2").text):
        assert row.pop("auroc") in ("federated", "all of it")
        assert {site: float(value) for site, value in row.items()} == {
            site: results[site]["test"]["auroc"] for site in ("north", "south")
        }
    assert "Every model at every site: auprc, test" in page
    assert client.get("/runs/2").status_code == 200


def test_only_what_changed_is_sent(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / "run" / AUDIT)
    log.write("run began", settings={"task": "mortality"})
    client = _client(database, tmp_path)

    def version() -> str:
        return re.findall(r'data-version="([^"]*)"', client.get("/runs/1/board").text)[0]

    before = version()
    assert client.get("/runs/1/board", params={"version": before}).status_code == 204
    log.write("sent", exchange="round 1, train", site="north", bytes=2000)
    Recorder(database, [tmp_path], lambda words: None).deliver()
    changed = client.get("/runs/1/board", params={"version": before})
    assert (changed.status_code, "working" in changed.text, "2 kB" in changed.text) == (200, True, True)
    log.write("refused", round=1, site="north", reason="too far off")
    Recorder(database, [tmp_path], lambda words: None).deliver()
    assert "too far off" in client.get("/runs/1/board").text
    bars = client.get("/runs/1/series?metric=loss&split=val").json()["timeline"]
    assert [bar["end"] for bar in bars] == ["refused"]


def test_a_run_that_says_nothing_for_longer_than_it_waits_is_silent(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path=tmp_path / "run" / AUDIT)
    log.write("run began", settings={"task": "mortality", "federation": {"join_seconds": 30}})
    client = _client(database, tmp_path)
    heard = datetime.fromisoformat(json.loads(log.path.read_text())["time"])
    before = re.findall(r'data-version="([^"]*)"', client.get("/runs/1/board").text)[0]
    for seconds, is_silent in ((89, False), (91, True)):
        monkeypatch.setattr("monitor.views.datetime", _clock(heard + timedelta(seconds=seconds)))
        for path in ("/", "/runs/1"):
            assert ("silent" in client.get(path).text) is is_silent
        assert client.get("/runs/1/board", params={"version": before}).status_code == (200 if is_silent else 204)
    log.write("run ended", status="finished", rounds=0)
    Recorder(database, [tmp_path], lambda words: None).deliver()
    assert "silent" not in client.get("/runs/1").text


def _clock(time: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return time

    return Clock


def _with_others(line: dict[str, Any], site: str) -> float:
    return line["with_others"][site]


def test_hostile_texts_are_shown_as_texts(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / HOSTILE.replace("/", "|") / AUDIT)
    log.write("run began", settings={"task": HOSTILE})
    log.write("joined", site=HOSTILE, node=1, num_samples={HOSTILE: HOSTILE}, runs_on=[HOSTILE], patients=HOSTILE)
    log.write("sent", exchange=HOSTILE, site=HOSTILE, round=1, bytes=1)
    log.write("refused", round=1, site=HOSTILE, reason=HOSTILE)
    log.write(HOSTILE, site="=1+1", mood={HOSTILE: [HOSTILE]})
    log.write("aggregated", round=1, norms={HOSTILE: {"parameters": 1.5}}, with_others={HOSTILE: 0.5, "x": HOSTILE})
    log.write("compared", round=1, sites=[HOSTILE, "x"], cosines=[[], [HOSTILE]])
    log.write("run ended", status=HOSTILE, reason=HOSTILE)
    line = {"step": 1, "site": HOSTILE, "split": HOSTILE, "metrics": {HOSTILE: 0.5}}
    (log.path.parent / "history.jsonl").write_text(json.dumps(line) + "\n")
    client = _client(database, tmp_path)
    for path in ("/", "/runs/1", "/runs/1/board"):
        answer = client.get(path, params={"metric": HOSTILE, "split": HOSTILE} if path == "/runs/1" else None)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "<img" not in answer.text
        assert "&lt;script&gt;alert" in answer.text or path == "/"
    page = client.get("/runs/1").text
    (facts,) = re.findall(r'data-facts="([^"]*)"', page)
    assert "<" not in facts
    found = client.get("/runs/1/series", params={"metric": HOSTILE, "split": HOSTILE})
    assert found.headers["content-type"] == "application/json"
    line = {HOSTILE: {"step": [1], "value": [0.5]}}
    assert (found.json()["metric"], found.json()["similarity"], found.json()["compared"]) == (line, line, None)
    assert "'=1+1" in client.get("/runs/1/events.csv").text


def test_an_undefined_metric_is_a_gap(tmp_path: Path, database: Database) -> None:
    AuditLog(path=tmp_path / AUDIT).write("run began", settings={})
    values = {"split": "val", "loss": 0.5, "parts": {}, "num_samples": 4, "seconds": 1.0}
    append_history(
        tmp_path,
        [
            Measurement(step=step, site="north", metrics={"auprc": each}, **values)
            for step, each in ((1, None), (2, 0.5))
        ],
    )
    client = _client(database, tmp_path)
    found = client.get("/runs/1/series?metric=auprc&split=val").json()["metric"]["north"]
    assert found == {"step": [1, 2], "value": [None, 0.5]}
    rows = _table(client.get("/runs/1/measurements.csv").text)
    (undefined,) = [row for row in rows if row["metric"] == "auprc" and row["step"] == "1"]
    assert (undefined["value"], "leave it undefined" in undefined["reason"]) == ("", True)


def test_everything_comes_from_the_page_itself(real_run: Path, database: Database) -> None:
    client = _client(database, real_run)
    page = client.get("/runs/1")
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert all(each.startswith(("/", "data:")) for each in wanted)
    for each in ("/static/plotly.js", "/static/monitor.js", "/static/monitor.css"):
        assert each in wanted
        assert client.get(each).status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/runs/9", "/runs/9/board", "/runs/1/other.csv", "/runs/9/events.csv", "/static/x"])
def test_what_is_not_there_is_not_found(path: str, real_run: Path, database: Database) -> None:
    assert _client(database, real_run).get(path).status_code == 404


def test_a_database_that_is_away_is_told(real_run: Path, database: Database, tmp_path: Path) -> None:
    away = open_database(f"sqlite:///{tmp_path}")  # a folder is no database
    answer = Client(make_page(away)).get("/")
    assert (answer.status_code, "The database is away" in answer.text) == (503, True)


def test_beyond_loopback_a_password_is_asked_for(real_run: Path, database: Database, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.7", "fed.example.org"):
        with pytest.raises(AccessError, match="needs a login"):
            require_login(host, None)
        require_login(host, "a long password")
    for host in ("127.0.0.1", "::1", "localhost"):
        require_login(host, None)
    client = _client(database, real_run, password="a long password")
    for path in ("/", "/runs/1", "/runs/1/events.csv", "/static/monitor.js", "/nothing"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("any", "wrong")).status_code == 401
        assert client.get(path, headers={"Authorization": "Basic ?"}).status_code == 401
    assert client.get("/", auth=("any", "a long password")).status_code == 200
    # Without one, a name that somebody else made lead to this machine opens nothing.
    open_page = _client(database, real_run)
    assert open_page.get("/", headers={"Host": "evil.example.org:8765"}).status_code == 400
    for name in ("localhost:8765", "127.0.0.1:8765", "[::1]:8765", "localhost"):
        assert open_page.get("/", headers={"Host": name}).status_code == 200


def test_a_password_is_long_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "password"
    with pytest.raises(AccessError, match="found none"):
        read_password(path)
    path.write_text("a long password\n")
    path.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        read_password(path)
    path.chmod(0o600)
    assert read_password(path) == "a long password"
    path.write_text("short\n")
    with pytest.raises(AccessError, match="12 characters or more, found 5"):
        read_password(path)


def test_watchers_who_read_slowly_hold_nobody_up(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / "run" / AUDIT)
    log.write("run began", settings={})
    Recorder(database, [tmp_path], lambda words: None).deliver()
    with database.writing() as connection:
        filler = {"run_id": 1, "time": "2026-01-01", "kind": "sent", "facts": {"more": "x" * 2000}}
        connection.execute(insert(events), [{**filler, "number": number} for number in range(10, 5010)])
    with _served(make_page(database)) as port:
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]  # twice what the pool has
        try:
            for watcher in slow:
                watcher.sendall(b"GET /runs/1/events.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert watcher.recv(100).startswith(b"HTTP/1.1 200")
            assert httpx.get(f"http://127.0.0.1:{port}/runs/1", timeout=20).status_code == 200
            log.write("sent", exchange="round 1, train", site="north", bytes=1)
            assert Recorder(database, [tmp_path], lambda words: None).deliver() == 1
            assert "north" in httpx.get(f"http://127.0.0.1:{port}/runs/1/board", timeout=20).text
        finally:
            for watcher in slow:
                watcher.close()
        found = httpx.get(f"http://127.0.0.1:{port}/runs/1/events.json", timeout=60).json()
        assert [row["number"] for row in found] == [1, 2, *range(10, 5010)]


@contextmanager
def _served(app: FastAPI) -> Iterator[int]:
    """The page on a free port of loopback."""
    # Without web sockets, whose library warns of itself.
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def test_two_runs_of_one_name_are_two(tmp_path: Path, database: Database) -> None:
    for place in ("a", "b"):
        AuditLog(path=tmp_path / place / "trial" / AUDIT).write("run began", settings={"task": place})
    page = _client(database, tmp_path).get("/").text
    assert page.count(">trial</a>") == 2
    for place in ("a", "b"):
        assert str(tmp_path / place / "trial") in page
