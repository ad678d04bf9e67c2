"""/metrics says what the run's own files say, in Prometheus' own form, and the dashboard asks for nothing else."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from federation.audit import AUDIT, AuditLog
from federation.run_folder import POOLED, Measurement, append_history, read_history, read_run
from monitor.alarms import RULES
from monitor.database import Database, open_database
from monitor.page import make_page
from monitor.recorder import Recorder
from monitor.tables import runs
from tests.monitor.hiding_run import write_hiding_log
from tests.monitor.test_page import HOSTILE, Client
from tests.postgres import postgres

Sample = tuple[str, frozenset]


def _scrape(database: Database, *folders: Path, **more) -> dict[Sample, float]:
    """Every series, by its name and labels but those of the run."""
    Recorder(database, folders, lambda words: None).deliver()
    answer = Client(make_page(database)).get("/metrics", **more)
    assert answer.status_code == 200
    parse = parse_openmetrics if "openmetrics" in answer.headers["content-type"] else text_string_to_metric_families
    found: dict[Sample, float] = {}
    for family in parse(answer.text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in ("run", "run_id")}
            key = (sample.name, frozenset(labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def _of(found: dict[Sample, float], name: str, **labels: str) -> float | None:
    return found.get((f"dipro_fed_{name}", frozenset(labels.items())))


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_figures_are_those_of_the_files(accept: str, real_run: Path, database: Database) -> None:
    found = _scrape(database, real_run, headers={"Accept": accept})
    record, history = read_run(real_run), read_history(real_run)
    lines = [json.loads(line) for line in (real_run / AUDIT).read_text().splitlines()]
    assert _of(found, "run_info", kind="federated", task="mortality", step_unit="round") == 1
    states = {state: _of(found, "run_state", state=state) for state in ("joining", "running", "finished", "failed")}
    assert states == {"joining": 0, "running": 0, "finished": 1, "failed": 0}
    assert _of(found, "rounds_finished") == 2
    assert _of(found, "best_round") == record.best_step
    last = datetime.fromisoformat(lines[-1]["time"])
    assert _of(found, "last_event_timestamp_seconds") == pytest.approx(last.timestamp(), abs=1e-3)
    sent = [line for line in lines if line["event"] == "sent" and line["exchange"] == "round 2, train"]
    (end,) = [line["time"] for line in lines if line["event"] == "aggregated" and line["round"] == 2]
    took = datetime.fromisoformat(end) - datetime.fromisoformat(sent[0]["time"])
    assert _of(found, "round_duration_seconds") == pytest.approx(took.total_seconds(), abs=2e-3)
    nodes = {f"node {line['node']}": line["site"] for line in lines if line["event"] == "joined"}
    moved: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["event"] in ("sent", "received"):
            moved[line["event"], nodes.get(line["site"], line["site"])] += line["bytes"]
    for site in ("north", "south"):
        assert _of(found, "to_site_bytes_total", site=site) == moved["sent", site]
        assert _of(found, "from_site_bytes_total", site=site) == moved["received", site]
        assert _of(found, "refused_updates_total", site=site) == 0
        assert _of(found, "site_state", site=site, state="done") == 1
        assert _of(found, "site_state", site=site, state="working") == 0
    num_numbers = 0
    for each in [each for each in history if each.step == 2]:
        where = {"site": each.site, "split": each.split}
        assert _of(found, "loss", **where) == each.loss
        for part, value in each.parts.items():
            assert _of(found, "loss_part", **where, part=part) == value
        for metric, value in each.metrics.items():
            assert _of(found, "metric", **where, metric=metric) == value
        num_numbers += 1 + len(each.parts) + sum(value is not None for value in each.metrics.values())
        if each.split == "train" and each.site != POOLED:
            assert _of(found, "site_work_seconds", site=each.site) == each.seconds
    numbers = ("dipro_fed_loss", "dipro_fed_loss_part", "dipro_fed_metric")
    assert sum(name in numbers for name, _ in found) == num_numbers > 30
    assert [_of(found, "alarms_total", rule=rule) for rule in RULES] == [0] * len(RULES)


def test_postgresql_gives_the_same_figures(real_run: Path, database: Database) -> None:
    with postgres() as server:
        other = open_database(server.url)
        try:
            assert _scrape(other, real_run) == _scrape(database, real_run)
        finally:
            other.close()


def test_an_undefined_metric_is_not_there(tmp_path: Path, database: Database) -> None:
    AuditLog(path=tmp_path / AUDIT).write("run began", settings={})
    values = {"split": "val", "loss": None, "parts": {}, "num_samples": 4, "seconds": 1.0}
    for step, each in ((1, 0.5), (2, None)):
        append_history(tmp_path, [Measurement(step=step, site="north", metrics={"auprc": each}, **values)])
    found = _scrape(database, tmp_path)
    assert [name for name, _ in found if name in ("dipro_fed_metric", "dipro_fed_loss")] == []
    assert all(value == value for value in found.values())


def test_refusals_alarms_and_hostile_names(tmp_path: Path, database: Database) -> None:
    hostile = f'{HOSTILE}"}} 1\n# \\ é'
    log = AuditLog(path=tmp_path / AUDIT)
    log.write("run began", settings={"task": hostile})
    log.write("joined", site=hostile, node=1)
    log.write("received", exchange="round 1, train", site=hostile, bytes=7)
    log.write("refused", round=1, site=hostile, reason="too long")
    line = {"step": 1, "site": hostile, "split": hostile, "metrics": {hostile: 0.5}}
    (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        found = _scrape(database, tmp_path, headers={"Accept": accept})
        assert _of(found, "refused_updates_total", site=hostile) == 1
        assert _of(found, "from_site_bytes_total", site=hostile) == 7
        assert _of(found, "metric", site=hostile, split=hostile, metric=hostile) == 0.5
        assert _of(found, "alarms_total", rule="refused update") == 1
        assert _of(found, "site_state", site=hostile, state="refused") == 1


def test_runs_of_yesterday_are_left_out(real_run: Path, tmp_path: Path, database: Database) -> None:
    AuditLog(path=tmp_path / "run" / AUDIT).write("run began", settings={})
    assert len([name for name, _ in _scrape(database, real_run) if name == "dipro_fed_run_info"]) == 1
    with database.writing() as connection:
        ended = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="milliseconds")
        connection.execute(update(runs).values(ended=ended))
    infos = [dict(labels) for name, labels in _scrape(database, tmp_path) if name == "dipro_fed_run_info"]
    assert [labels["task"] for labels in infos] == [""]  # the one that goes on


def test_a_password_guards_the_figures_too(database: Database, tmp_path: Path) -> None:
    Recorder(database, [tmp_path], print).deliver()
    client = Client(make_page(database, "a long password"))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", auth=("any", "a long password")).status_code == 200
    assert Client(make_page(database)).get("/metrics", headers={"Host": "evil.example.org"}).status_code == 400


def test_what_was_hidden_is_counted(tmp_path: Path, database: Database) -> None:
    write_hiding_log(tmp_path / "run")
    found = _scrape(database, tmp_path)
    assert [_of(found, "patient_epsilon", site=site) for site in ("north", "south", "west")] == [4.0, 5.0, 6.0]
    assert _of(found, "patient_epsilon_budget", site="north") == 8.0
    assert (_of(found, "site_epsilon"), _of(found, "site_epsilon_budget")) == (3.0, 4.0)
    assert (_of(found, "masked_rounds_total"), _of(found, "masked_rounds_begun_again_total")) == (2, 1)
    assert [_of(found, "masked_updates_total", site=site) for site in ("north", "west")] == [2, 1]
    assert [_of(found, "opened_masks_total", site=site) for site in ("north", "west")] == [0, 1]


def test_a_run_that_hides_nothing_has_no_such_figures(real_run: Path, database: Database) -> None:
    names = {name.removeprefix("dipro_fed_") for name, _ in _scrape(database, real_run)}
    assert not [each for each in names if "epsilon" in each or "mask" in each]


def test_the_dashboard_asks_for_what_there_is(real_run: Path, tmp_path: Path, database: Database) -> None:
    write_hiding_log(tmp_path / "run")
    Recorder(database, [real_run, tmp_path], print).deliver()
    client = Client(make_page(database))
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    dashboard = client.get("/grafana.json").json()
    panels, variables = dashboard["panels"], dashboard["templating"]["list"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [each["query"]["query"] for each in variables if each["type"] == "query"]
    used: set[str] = set()
    for text in asked:
        for name, selector in re.findall(r"(dipro_fed_\w+)(\{(?:[^{}]|\$\{[^}]*\})*\})?", text):
            used.add(name)
            assert name in series, text
            assert {label for label, _ in re.findall(r"(\w+)(=~?)", selector)} <= series[name], text
        known = {each["name"] for each in variables}
        assert set(re.findall(r"\$\{?(\w+)", text)) <= known, text
    for name in ("rounds_finished", "round_duration_seconds", "site_state", "loss", "metric", "to_site_bytes_total"):
        assert f"dipro_fed_{name}" in used
    assert {f"dipro_fed_{name}" for name in ("refused_updates_total", "alarms_total")} <= used
    assert {name for name in series if "epsilon" in name or "mask" in name} <= used
    places = [panel["gridPos"] for panel in panels]
    for number, one in enumerate(places):
        assert one["x"] + one["w"] <= 24
        for two in places[number + 1 :]:
            beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
            assert beside or one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
