"""TensorBoard and MLflow get each defined number of a run once, as their own readers read it."""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.audit import AUDIT, AuditLog
from federation.run_folder import Measurement, append_history, cut_history, read_history, read_run
from monitor import loggers
from monitor.database import Database, open_database
from monitor.loggers import Logger, keep_logging
from monitor.recorder import Recorder
from monitor.sinks import MLflow, Point, Sink, SinkError, TensorBoard, Watched, make_sinks, safe
from monitor.times import seconds_of
from tests.monitor.test_page import HOSTILE
from tests.postgres import postgres


def _recorded(database: Database, folder: Path) -> None:
    Recorder(database, [folder], lambda words: None).deliver()


def _numbers(folder: Path) -> dict[tuple[str, str, str], dict[int, float]]:
    """What a history says, by site, split and name, then by step."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for each in read_history(folder):
        named = {**each.metrics, **{f"loss/{part}": value for part, value in each.parts.items()}, "loss": each.loss}
        named |= {"num_samples": each.num_samples, "seconds": each.seconds}
        for name, value in named.items():
            if value is not None:
                found.setdefault((each.site, each.split, name), {})[each.step] = value
    return found


class Kept:
    """A tool that keeps what it is given, or fails."""

    name, target = "a tool", "kept"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.ended: list[str] = []
        self.fails = False
        self.delay = 0.0

    def write(self, run: Watched, points: Sequence[Point]) -> None:
        time.sleep(self.delay)
        if self.fails:
            raise ConnectionError("http://user:secret@host is away")
        self.points += points

    def end(self, run: Watched) -> None:
        self.ended.append(run.status)


def test_tensorboard_reads_what_the_history_says(real_run: Path, tmp_path: Path, database: Database) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _recorded(database, real_run)
    numbers = _numbers(real_run)
    count = sum(map(len, numbers.values()))
    sent = [Logger(database, [real_run], TensorBoard(tmp_path / "tb")).deliver() for _ in range(2)]
    assert sent == [count, 0]
    (folder,) = (tmp_path / "tb").iterdir()
    assert folder.name.startswith("federated-")
    assert {path.name for path in folder.iterdir()} == {"pooled", "north", "south"}
    readers = {path.name: accumulator.EventAccumulator(str(path)).Reload() for path in folder.iterdir()}
    assert sum(len(reader.Tags()["tensors"]) for reader in readers.values()) == len(numbers)
    aggregated = [json.loads(line) for line in (real_run / AUDIT).read_text().splitlines()]
    times = {line["round"]: line["time"] for line in aggregated if line["event"] == "aggregated"}
    for (site, split, name), values in numbers.items():
        events = readers[site].Tensors(f"{split}/{name}")
        read = {event.step: event.tensor_proto.float_val[0] for event in events}
        assert len(events) == len(values)
        assert read == pytest.approx(values, rel=1e-6)
        assert [seconds_of(times[event.step]) for event in events] == [event.wall_time for event in events]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its tables are made when they are used first, which takes seconds."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def test_mlflow_reads_what_the_history_says(real_run: Path, mlflow_uri: str, database: Database) -> None:
    sink = MLflow(mlflow_uri)
    _recorded(database, real_run)
    numbers = _numbers(real_run)
    sent = [Logger(database, [real_run], each).deliver() for each in (sink, MLflow(mlflow_uri))]
    assert sent == [sum(map(len, numbers.values())), 0]
    client = sys.modules["mlflow"].MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("dipro-fed")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    record = read_run(real_run)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "federated")
    assert run.data.params["federation.rounds"] == "2"
    assert len(run.data.params) == sum(len(part) if isinstance(part, dict) else 1 for part in record.settings.values())
    assert len(run.data.metrics) == len(numbers)
    for (site, split, name), values in numbers.items():
        history = client.get_metric_history(run.info.run_id, f"{split}/{name}/{site}")
        assert {each.step: each.value for each in history} == values
        assert len(history) == len(values)


def _run(folder: Path) -> AuditLog:
    log = AuditLog(path=folder / AUDIT)
    log.write("run began", settings={})
    return log


def _append(folder: Path, *steps: int, **more) -> None:
    facts = {"site": "north", "split": "val", "loss": None, "parts": {}, "metrics": {"auprc": 0.25}, "seconds": 1.0}
    append_history(folder, [Measurement(step=step, num_samples=1, **{**facts, **more}) for step in steps])


@pytest.fixture
def at_work(tmp_path: Path, real_run: Path, database: Database) -> Path:
    """A run that goes on."""
    folder = tmp_path / "run"
    _run(folder)
    facts = json.loads((real_run / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    return folder


def _steps(kept: Kept) -> list[int]:
    return [point.step for point in kept.points if point.metric == "auprc"]


def test_each_number_is_handed_on_once_and_the_end_too(at_work: Path, database: Database) -> None:
    kept = Kept()
    logger = Logger(database, [at_work], kept)
    assert logger.deliver() == 0  # the recorder has not been here
    _append(at_work, 1, 2)
    _append(at_work, 2, metrics={"auprc": None})
    _recorded(database, at_work)
    logger.deliver()
    assert (_steps(kept), kept.ended) == ([1, 2], [])
    _append(at_work, 3)
    Logger(database, [at_work], kept).deliver()  # after a restart
    for _ in range(2):
        logger.deliver()
    assert (_steps(kept), kept.ended) == ([1, 2, 3], [])
    AuditLog(path=at_work / AUDIT).write("run ended", status="failed", reason="gone")
    logger.deliver()
    _recorded(database, at_work)
    for each in (logger, logger, Logger(database, [at_work], kept)):
        each.deliver()
    assert (_steps(kept), kept.ended) == ([1, 2, 3], ["failed"])


def test_a_run_that_makes_steps_again_is_handed_on_again(at_work: Path, database: Database) -> None:
    kept = Kept()
    _append(at_work, 1, 2, 3)
    _recorded(database, at_work)
    logger = Logger(database, [at_work], kept)
    logger.deliver()
    cut_history(at_work, 1)
    _append(at_work, 2, 3, 4, metrics={"auprc": 0.5})
    logger.deliver()
    assert _steps(kept) == [1, 2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_of_several_one_hands_on(where: str, at_work: Path, tmp_path: Path) -> None:
    kept = Kept()
    kept.delay = 0.2
    _append(at_work, *range(1, 50))
    with postgres() if where == "postgresql" else nullcontext() as server:
        url = f"sqlite:///{tmp_path / 'other.sqlite'}" if server is None else server.url
        opened = [open_database(url) for _ in range(3)]
        _recorded(opened[0], at_work)
        with ThreadPoolExecutor(3) as pool:
            made = [Logger(each, [at_work], kept) for each in opened]
            assert sorted(pool.map(lambda logger: logger.deliver() > 0, made)) == [False, False, True]
        assert [logger.deliver() for logger in made] == [0, 0, 0]
        for each in opened:
            each.close()
    assert _steps(kept) == list(range(1, 50))


def test_a_tool_that_is_away_is_told_once_and_gets_it_later(
    at_work: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(loggers, "_LONGEST_BACK_OFF", 0.05)
    kept, told, stop = Kept(), [], threading.Event()
    kept.fails = True
    _append(at_work, 1)
    _recorded(database, at_work)
    thread = threading.Thread(
        target=keep_logging, args=(Logger(database, [at_work], kept), stop, told.append), daemon=True
    )
    thread.start()
    _until(lambda: len(told) == 1)
    time.sleep(0.3)
    _append(at_work, 2)
    _recorded(database, at_work)  # the recorder waits for nobody
    kept.fails = False
    _until(lambda: _steps(kept) == [1, 2])
    _until(lambda: len(told) == 2)
    stop.set()
    thread.join()
    assert told == [
        "a tool: did not take measurements (ConnectionError); tried again",
        "a tool: takes measurements again",
    ]


def _until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_hostile_names_stay_inside(
    kind: str, at_work: Path, tmp_path: Path, database: Database, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(kind)
    hostile = f"../../{HOSTILE}"
    for site in (hostile, "..", "", " ", "a/../b"):
        _append(at_work, 1, site=site, metrics={hostile: 0.5, "..": 1.0})
    _recorded(database, at_work)
    sink: Sink = TensorBoard(tmp_path / "tb")
    if kind == "mlflow":
        sink = MLflow(request.getfixturevalue("mlflow_uri"))
    before = {path for path in tmp_path.iterdir() if path.name != "tb"}
    assert Logger(database, [at_work], sink).deliver() == 20
    assert {path for path in tmp_path.iterdir() if path.name != "tb"} == before
    if kind == "tensorboard":
        (folder,) = (tmp_path / "tb").iterdir()
        assert len(list(folder.iterdir())) == 5


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.text(max_size=100), unique=True, max_size=5))
def test_safe_names_are_safe_and_differ(names: list[str]) -> None:
    found = [safe(name) for name in names]
    assert len(set(found)) == len(names)
    for each in found:
        assert each.isascii()
        assert each.strip(". ") == each.strip() != ""
        assert "/" not in each
        assert "\\" not in each


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "tensorboard.summary", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SinkError, match=r"pip install 'dipro-fed\[tensorboard\]'"):
        make_sinks(tmp_path, None)
    with pytest.raises(SinkError, match=r"pip install 'dipro-fed\[mlflow\]'"):
        make_sinks(None, "sqlite:///x")


def test_an_address_is_shown_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    sink = MLflow("https://user:secret@host.example/path?token=secret")
    assert sink.name == "MLflow https://host.example"
    assert "secret" not in sink.target
