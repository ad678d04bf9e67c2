"""A run is watched in a browser from its beginning to its end; what the page says is what the database has."""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import WebDriverException

from tests.browser import Browser, browser
from tests.make_cohort import write_two_cohorts
from tests.small_run import federate, small_settings

ROUNDS, SITES = 3, ("north", "south")
_LINES = """
  const plot = document.getElementById("plot-%s");
  return plot && plot.data ? plot.data.map((each) => ({ name: each.name, x: [...each.x], y: [...each.y] })) : [];
"""
_BOARD = """
  return [...document.querySelectorAll(".seat")].map((seat) => {
    const terms = [...seat.querySelectorAll("dt")];
    const said = terms.map((each) => [each.textContent, each.nextElementSibling.textContent]);
    const site = seat.querySelector("h3").textContent, state = seat.querySelector(".doing").textContent;
    return { site, state, ...Object.fromEntries(said) };
  });
"""
_CHOSEN = """
  const rows = [...document.querySelectorAll("#chosen ~ .scroll tbody tr")];
  return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
"""
_ENTER = 'const link = document.querySelector("tbody a"); if (link) link.click(); return Boolean(link)'
_HEADING = 'const found = document.querySelector("h1"); return found && found.textContent'
_STATUS = 'return document.querySelector("[data-status]").dataset.status'
_LABEL = 'return getComputedStyle(document.querySelector("#plot-metric .xtick text")).fill'


@contextmanager
def _monitor(folder: Path, database: Path) -> Iterator[str]:
    """The command itself, in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dipro_fed", "monitor", str(folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--database", f"sqlite:///{database}"], stderr=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert said == ""


class _Steps:
    """Lets a run go on round by round."""

    def __init__(self, folder: Path, cohorts: list[Path]) -> None:
        self._go_on = threading.Semaphore(0)
        settings = small_settings(f"federation.rounds={ROUNDS}", "federation.num_sites=2")
        options = {"after_round": self._wait}
        self._thread = threading.Thread(target=federate, args=(folder, cohorts, settings), kwargs=options)

    def begin(self) -> None:
        self._thread.start()

    def next(self) -> None:
        self._go_on.release()

    def end(self) -> None:
        self._go_on.release(ROUNDS)
        self._thread.join(60)

    def _wait(self) -> None:
        self._go_on.acquire(timeout=120)


def _asked(database: Path, question: str, *values: object) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(question, values).fetchall()


def _measured(database: Path, metric: str, split: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    question = "SELECT site, step, value FROM measurements WHERE metric = ? AND split = ? ORDER BY step"
    for site, step, value in _asked(database, question, metric, split):
        found.setdefault("all sites" if site == "pooled" else site, {})[step] = value
    return found


def _drawn(page: Browser, name: str) -> dict[str, dict[int, float]]:
    return {each["name"]: dict(zip(each["x"], each["y"], strict=True)) for each in page.run(_LINES % name)}


def _is_at(number: int) -> Any:
    return lambda lines: any(each["name"] == "all sites" and each["x"][-1:] == [number] for each in lines)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_a_run_is_watched_from_its_beginning_to_its_end(page: Browser, tmp_path: Path) -> None:
    runs, database = tmp_path / "runs", tmp_path / "monitor.sqlite"
    runs.mkdir()
    steps = _Steps(runs / "first", write_two_cohorts(tmp_path / "cohorts"))
    with _monitor(runs, database) as address:
        page.resize(1280, 6000)  # pictures are drawn when they are looked at
        _open(page, address)
        assert "None yet" in page.run("return document.body.innerText")
        try:
            steps.begin()
            page.wait(_ENTER)
            page.wait('return location.pathname === "/runs/1"')
            for number in range(1, ROUNDS + 1):
                page.wait(_LINES % "metric", _is_at(number))
                assert _drawn(page, "metric") == _measured(database, "auprc", "val")
                if number < ROUNDS:
                    assert page.run(_STATUS) == "running"
                steps.next()
            page.wait(_STATUS, lambda found: found == "finished")
        finally:
            steps.end()
        page.wait(_LINES % "metric", _is_at(ROUNDS))
        page.wait('return [...document.querySelectorAll(".plot")].every((plot) => plot.data)')
        _the_page_says_what_the_database_has(page, database)
        _it_reads_well(page)
        wanted = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert wanted
        assert all(each.startswith((address, "data:", "blob:")) for each in wanted)
        assert page.complaints() == []


def _open(page: Browser, address: str) -> None:
    """The monitor may still be starting."""
    for _ in range(60):
        try:
            page.open(address)
            if page.run(_HEADING) == "Runs":
                page.complaints()
                return
        except WebDriverException:  # nobody listens yet
            threading.Event().wait(0.5)
    raise AssertionError(f"{address} does not answer")


def _the_page_says_what_the_database_has(page: Browser, database: Path) -> None:
    facts = _asked(database, "SELECT round, facts FROM events WHERE kind = 'aggregated'")
    said = [(number, json.loads(each)) for number, each in facts]
    for site in SITES:
        assert _drawn(page, "norms")[site] == {number: each["norms"][site]["parameters"] for number, each in said}
        assert _drawn(page, "similarity")[site] == {number: each["with_others"][site] for number, each in said}
    cosines = "SELECT json_extract(facts, '$.cosines[1][0]') FROM events WHERE kind = 'compared' AND round = ?"
    ((cosine,),) = _asked(database, cosines, ROUNDS)
    assert page.run('return document.getElementById("plot-compared").data[0].z') == [[1, cosine], [cosine, 1]]
    by_round = "SELECT round, sum(bytes) FROM events WHERE kind = ? AND round IS NOT NULL GROUP BY round"
    moved = {"to the sites": "sent", "from the sites": "received"}
    assert _drawn(page, "traffic") == {name: dict(_asked(database, by_round, kind)) for name, kind in moved.items()}
    board = {seat["site"]: seat for seat in page.run(_BOARD)}
    assert tuple(sorted(board)) == SITES
    for site, seat in board.items():
        _the_seat_says_what_the_database_has(site, seat, database)
    ((results,),) = _asked(database, "SELECT json_extract(facts, '$.results') FROM runs")
    assert {row[0]: float(row[-1]) for row in page.run(_CHOSEN)} == {
        site: pytest.approx(each["test"]["auprc"], rel=1e-3) for site, each in json.loads(results).items()
    }


def _the_seat_says_what_the_database_has(site: str, seat: dict[str, str], database: Path) -> None:
    ((joined,),) = _asked(database, "SELECT facts FROM events WHERE kind = 'joined' AND site = ?", site)
    facts = json.loads(joined)
    assert seat["Samples"] == ", ".join(f"{count} {split}" for split, count in facts["num_samples"].items())
    both = "SELECT sum(bytes) FROM events WHERE kind = ? AND site IN (?, ?)"
    for label, kind in (("Sent to it", "sent"), ("Came back", "received")):
        ((size,),) = _asked(database, both, kind, site, f"node {facts['node']}")
        number, unit = seat[label].split()
        assert float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit] == pytest.approx(size, rel=0.005)
    assert (seat["state"], seat["Refused"]) == ("done", "0")


def _it_reads_well(page: Browser) -> None:
    for width, height in ((1280, 900), (375, 812)):
        page.resize(width, height)
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            page.wait(f"return innerWidth === {width}")
            assert page.run("return document.documentElement.scrollWidth") <= width
            background = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            ink = page.run("return getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
            assert (sum(background) > sum(ink)) is (scheme == "light")
            page.run('document.getElementById("plot-metric").scrollIntoView()')
            assert page.wait(_LABEL, lambda found, ink=ink: [int(each) for each in found[4:-1].split(",")] == ink)
