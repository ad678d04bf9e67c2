"""Other tools that draw measurements: TensorBoard's event files, and MLflow's runs."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

_EXPERIMENT = "dipro-fed"
_UID = "dipro_fed_uid"
_AT_ONCE = 1000
"""Metrics of one message, the most that MLflow takes; of parameters it takes a tenth."""
_LONGEST_VALUE = 500
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class SinkError(ValueError):
    """A tool that is not installed or does not take what it is given; says why, and nothing that is secret."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number that is defined."""

    site: str
    split: str
    metric: str
    step: int
    value: float
    seconds: float
    """When, since 1970."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run as other tools know it."""

    run_id: int
    uid: str
    name: str
    status: str
    started: float
    """Seconds since 1970."""
    ended: float
    """The same; 0 while it goes on."""
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Short, and in plain letters."""
        return hashlib.sha256(self.uid.encode()).hexdigest()[:16]


class Sink(Protocol):
    """A tool that draws measurements."""

    @property
    def name(self) -> str:
        """What people may read."""
        ...

    @property
    def target(self) -> str:
        """What the database calls it; another folder or server is another one, and gets everything."""
        ...

    def write(self, run: Watched, points: Sequence[Point]) -> None:
        """Add points of a run; what there is already may come again."""
        ...

    def end(self, run: Watched) -> None:
        """The run has ended, and all its points are there."""
        ...


class TensorBoard:
    """A folder for each run, in it one for each site, so that TensorBoard draws the sites into one picture."""

    def __init__(self, folder: Path) -> None:
        """Raises SinkError where TensorBoard is not installed."""
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise SinkError(
                "--tensorboard: expected the package tensorboard, found none; pip install 'dipro-fed[tensorboard]'"
            ) from None
        self._make, self._folder = Writer, folder.resolve()
        self._open: dict[tuple[str, str], Any] = {}

    @property
    def name(self) -> str:
        return f"TensorBoard {self._folder}"

    @property
    def target(self) -> str:
        return f"tensorboard {_short(str(self._folder))}"

    def write(self, run: Watched, points: Sequence[Point]) -> None:
        for site in dict.fromkeys(point.site for point in points):
            if (run.key, site) not in self._open:
                place = self._folder / f"{safe(run.name)}-{run.key[:8]}" / safe(site)
                self._open[run.key, site] = self._make(str(place))
        for point in points:
            tag = f"{safe(point.split)}/{_path(point.metric)}"
            writer = self._open[run.key, point.site]
            writer.add_scalar(tag, point.value, point.step, wall_time=point.seconds)
        for site in dict.fromkeys(point.site for point in points):
            self._open[run.key, site].flush()

    def end(self, run: Watched) -> None:
        for key in [key for key in self._open if key[0] == run.key]:
            self._open.pop(key).close()


class MLflow:
    """A run in the experiment dipro-fed for each run, with its settings as parameters."""

    def __init__(self, uri: str) -> None:
        """Raises SinkError where MLflow is not installed. Nothing is asked of the server yet."""
        # Unless told not to, MLflow reports its use to its makers, and prints addresses; and it would wait minutes for
        # a server that is away.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise SinkError(
                "--mlflow: expected the package mlflow-skinny, found none; pip install 'dipro-fed[mlflow]'"
            ) from None
        self._make, self._uri = MlflowClient, uri
        self._client: Any = None
        self._runs: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Without what may be a password."""
        parts = urlsplit(self._uri)
        return f"MLflow {parts.scheme}://{parts.hostname or ''}" if parts.scheme else "MLflow"

    @property
    def target(self) -> str:
        return f"mlflow {_short(self._uri)}"

    def write(self, run: Watched, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        own = self._run(run)
        metrics = [
            Metric(
                f"{safe(point.split)}/{_path(point.metric)}/{safe(point.site)}",
                point.value,
                int(1000 * point.seconds),
                point.step,
            )
            for point in points
        ]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(own, metrics=metrics[start : start + _AT_ONCE])

    def end(self, run: Watched) -> None:
        own = self._run(run)
        self._client.set_terminated(own, _STATUS.get(run.status, "KILLED"), int(1000 * run.ended) or None)
        self._runs.pop(run.key, None)

    def _run(self, run: Watched) -> str:
        """MLflow's number of a run, which is found by its tag, or made."""
        if run.key not in self._runs:
            client = self._client_()
            experiment = client.get_experiment_by_name(_EXPERIMENT)
            where = client.create_experiment(_EXPERIMENT) if experiment is None else experiment.experiment_id
            found = client.search_runs([where], f"tags.{_UID} = '{run.key}'", max_results=1)
            if found:
                client.update_run(found[0].info.run_id, status="RUNNING")
                self._runs[run.key] = found[0].info.run_id
            else:
                began = int(1000 * run.started)
                made = client.create_run(where, start_time=began, tags={_UID: run.key}, run_name=run.name[:250])
                self._settings(made.info.run_id, run)
                self._runs[run.key] = made.info.run_id
        return self._runs[run.key]

    def _client_(self) -> Any:
        if self._client is None:
            self._client = self._make(tracking_uri=self._uri)
        return self._client

    def _settings(self, own: str, run: Watched) -> None:
        from mlflow.entities import Param

        found = [Param(_path(name, "."), str(value)[:_LONGEST_VALUE]) for name, value in _flat(run.settings)]
        for start in range(0, len(found), _AT_ONCE // 10):
            self._client.log_batch(own, params=found[start : start + _AT_ONCE // 10])


def make_sinks(tensorboard: Path | None, mlflow: str | None) -> list[Sink]:
    """The tools of a command line. Raises SinkError for one that is not installed."""
    sinks: list[Sink] = []
    if tensorboard is not None:
        sinks.append(TensorBoard(tensorboard))
    if mlflow:
        sinks.append(MLflow(mlflow))
    return sinks


def safe(name: str) -> str:
    """A name of plain letters, for a folder or a key; names that differ stay different."""
    kept = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:80]
    is_same = kept == name != "" and name == name.strip(". ")
    return kept if is_same else f"{kept.strip(' .') or '_'}-{_short(name)}"


def _path(name: str, separator: str = "/") -> str:
    """Such names in a row, as of a term of the loss: loss/task."""
    return separator.join(safe(part) for part in name.split(separator))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Settings in each other as section.name."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", value))
    return found
