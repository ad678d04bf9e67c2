"""How long the monitor's page takes where much is in its database: to load, and until it shows a further round.

    python benchmarks/monitor_page.py [--sites 50] [--rounds 1000] [--repeats 5]

The run's files are written here as a server writes them, with random numbers; `dipro-fed monitor` records and serves
them from SQLite; headless Chromium, of the system's packages, shows the page. Loading ends when the curves are drawn.
An update is a round's lines added to the files; it ends when the page's curve has the round. Each answer that the page
is made of is asked for by itself too.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
from measure import RESULTS, conditions, show, write_results

from federation.audit import AUDIT
from federation.run_folder import HISTORY, Measurement, RunRecord, history_line, write_run
from federation.settings import load_settings
from tests.browser import Browser, browser

WINDOW = (1280, 1400)
AIM_LOAD_S, AIM_UPDATE_S = 2.0, 1.0
METRICS = ("accuracy", "auprc", "auroc", "brier", "ece", "f1", "precision", "recall")
PARTS = ("task", "orthogonal", "temporal", "static", "dynamic")
_DRAWN = """
  const plot = document.getElementById("plot-metric");
  return plot && plot.data && plot.data.length ? Math.max(...plot.data[0].x) : 0;
"""


class LongRun:
    """A run folder that grows round by round."""

    def __init__(self, folder: Path, num_sites: int) -> None:
        self._folder, self.rounds, self._number = folder, 0, 0
        self._sites = [f"hospital {number:02d}" for number in range(num_sites)]
        self._time, self._rng = datetime(2026, 1, 1, tzinfo=UTC), np.random.default_rng(0)
        folder.mkdir(parents=True)
        settings = load_settings(overrides=["task=mortality"]).model_dump(mode="json")
        write_run(
            folder,
            RunRecord(
                kind="federated",
                name="long",
                task=load_settings().task,
                seed=23,
                step_unit="round",
                sites=tuple(self._sites),
                trained_on=tuple(self._sites),
                settings=settings,
                status="running",
                best_step=1,
                monitor="auprc",
                seconds=1.0,
            ),
        )
        with (folder / AUDIT).open("w") as audit:
            self._say(audit, "run began", settings=settings)
            for node, site in enumerate(self._sites):
                runs_on = ["dipro-fed 0.1.0", "torch 2.13.0", "CPU"]
                counts = {"train": 100, "val": 20, "test": 30}
                self._say(audit, "joined", site=site, node=node, num_samples=counts, patients=120, runs_on=runs_on)

    def grow(self, num_rounds: int) -> None:
        with (self._folder / AUDIT).open("a") as audit, (self._folder / HISTORY).open("a") as history:
            for _ in range(num_rounds):
                self.rounds += 1
                self._round(audit, history)

    def _round(self, audit: TextIO, history: TextIO) -> None:
        for what in ("train", "evaluate"):
            asked = {"exchange": f"round {self.rounds}, {what}", "bytes": 10_000_000}
            arrays = {"weights": {"type": "float32", "shape": [2_500_000], "bytes": 10_000_000}}
            for site in self._sites:
                self._say(audit, "sent", site=site, **asked)
            for site in self._sites:
                self._say(audit, "received", site=site, arrays=arrays, numbers=["loss/total"] * 8, **asked)
            if what == "train":
                self._aggregated(audit)
        for site in (*self._sites, "pooled"):
            for split, metrics in (("train", ()), ("val", METRICS)):
                history.write(history_line(self._measured(site, split, metrics)) + "\n")

    def _aggregated(self, audit: TextIO) -> None:
        sites, draw = self._sites, self._rng.random
        norms = {site: {"parameters": float(draw()), "running statistics": 1.0} for site in sites}
        others = {site: round(float(draw()), 3) for site in sites}
        self._say(audit, "aggregated", round=self.rounds, sites=len(sites), norms=norms, with_others=others)
        cosines = [draw(place).round(3).tolist() for place in range(len(sites))]
        self._say(audit, "compared", round=self.rounds, sites=sites, cosines=cosines)

    def _measured(self, site: str, split: str, metrics: tuple[str, ...]) -> Measurement:
        return Measurement(
            step=self.rounds,
            site=site,
            split=split,
            loss=1 / self.rounds,
            parts=dict.fromkeys(PARTS, 0.1),
            metrics={name: float(self._rng.random()) for name in metrics},
            num_samples=100,
            seconds=1.5,
        )

    def _say(self, audit: TextIO, event: str, **facts: object) -> None:
        self._number += 1
        self._time += timedelta(milliseconds=50)
        time_text, link = self._time.isoformat(timespec="milliseconds"), f"{self._number:064d}"
        entry = {"number": self._number, "time": time_text, "event": event, **facts, "previous": link, "hash": link}
        audit.write(json.dumps(entry) + "\n")


def measure(folder: Path, num_sites: int, num_rounds: int, repeats: int) -> dict[str, Any]:
    run = LongRun(folder / "runs" / "long", num_sites)
    run.grow(num_rounds)
    database = f"sqlite:///{folder / 'monitor.sqlite'}"
    command = [sys.executable, "-m", "dipro_fed"]
    recording = _seconds(
        lambda: subprocess.run([*command, "record", str(folder / "runs"), "--once", "--database", database], check=True)
    )
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    watched = [str(folder / "runs"), "--port", str(port), "--database", database]
    process = subprocess.Popen([*command, "monitor", *watched], stdout=subprocess.DEVNULL)
    try:
        _await(address)
        found = {"recording_s": recording, "answers_s": _answers(address, repeats, run.rounds)}
        with browser(folder / "profile") as page:
            page.resize(*WINDOW)
            found["load_s"] = [_load(page, address, run.rounds) for _ in range(repeats)]
            found["update_s"] = [_update(page, run) for _ in range(repeats)]
        return found
    finally:
        process.terminate()
        process.wait(30)


def _load(page: Browser, address: str, rounds: int) -> float:
    page.open("about:blank")
    return _seconds(lambda: (page.open(f"{address}/runs/1"), page.wait(_DRAWN, lambda found: found == rounds)))


def _update(page: Browser, run: LongRun) -> float:
    time.sleep(1.5 + 0.3 * np.random.default_rng(run.rounds).random())  # the last one is through, and no common beat
    run.grow(1)
    return _seconds(lambda: page.wait(_DRAWN, lambda found: found == run.rounds))


def _answers(address: str, repeats: int, rounds: int) -> dict[str, list[float]]:
    wanted = {
        "list of runs": "/",
        "page": "/runs/1",
        "board": "/runs/1/board",
        "all curves": "/runs/1/series?metric=auprc&split=val",
        "curves of one more round": f"/runs/1/series?metric=auprc&split=val&after={rounds - 1}",
    }
    with httpx.Client(base_url=address, timeout=60) as client:
        return {
            name: [_seconds(lambda path=path: client.get(path).raise_for_status()) for _ in range(repeats)]
            for name, path in wanted.items()
        }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _await(address: str) -> None:
    for _ in range(120):
        try:
            httpx.get(address, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"{address} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "monitor_page.json")
    arguments = parser.parse_args()
    known = conditions(1)
    with TemporaryDirectory() as scratch:
        found = measure(Path(scratch), arguments.sites, arguments.rounds, arguments.repeats)
    asked = {"sites": arguments.sites, "rounds": arguments.rounds, "aims_s": [AIM_LOAD_S, AIM_UPDATE_S]}
    write_results(arguments.out, {"conditions": known, **asked, **found})
    timed = {**found["answers_s"], "page in the browser": found["load_s"], "a further round": found["update_s"]}
    rows = [(name, f"{np.median(each):.2f}", f"{max(each):.2f}") for name, each in timed.items()]
    show("The monitor's page", ("what", "median, s", "longest, s"), rows)


if __name__ == "__main__":
    main()
