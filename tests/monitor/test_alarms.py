"""Each rule fires where it should, once, and nowhere else."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Message
from sqlalchemy import select

from federation.audit import AUDIT, AuditLog
from federation.messages import JOIN
from federation.run_folder import HISTORY, POOLED, Measurement, append_history
from monitor.alarms import BUDGET, CLOCK, DIVERGENCE, FAILED, MISSING, REFUSED, SILENT, of_silence
from monitor.database import Database
from monitor.divergence import rises
from monitor.limits import Clock, Divergence, Limits, LimitsError, PrivacyBudget, Rule, SilentRun, load_limits
from monitor.page import make_page
from monitor.recorder import Recorder
from monitor.tables import alarms, deliveries, runs
from tests.make_cohort import write_two_cohorts
from tests.monitor.test_page import HOSTILE, Client
from tests.small_run import federate, small_settings


def _rows(database: Database) -> list[dict]:
    with database.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(select(alarms).order_by(alarms.c.alarm_id))]


def _fired(database: Database, folder: Path, limits: Limits | None = None) -> list[tuple]:
    Recorder(database, [folder], lambda words: None, limits=limits).deliver()
    return [(row["rule"], row["site"], row["round"]) for row in _rows(database)]


def _ask(log: AuditLog, number: int, *, asked: str = "north south", answered: str = "north south") -> None:
    for site in asked.split():
        log.write("sent", exchange=f"round {number}, train", site=site, bytes=1)
    for site in answered.split():
        log.write("received", exchange=f"round {number}, train", site=site, bytes=1)


def _losses(folder: Path, losses: list[float], split: str = "train", first: int = 1) -> None:
    append_history(
        folder,
        [
            Measurement(
                step=step, site=POOLED, split=split, loss=loss, parts={}, metrics={}, num_samples=9, seconds=1.0
            )
            for step, loss in enumerate(losses, start=first)
        ],
    )


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    found = AuditLog(path=tmp_path / "run" / AUDIT)
    found.write("run began", settings={"federation": {"round_seconds": 100.0, "join_seconds": 10}})
    return found


def test_a_run_without_trouble_has_no_alarm(real_run: Path, database: Database) -> None:
    assert _fired(database, real_run) == []


def test_what_was_refused_and_who_was_missing(log: AuditLog, tmp_path: Path, database: Database) -> None:
    _ask(log, 1)
    log.write("aggregated", round=1, sites=1, norms={})
    log.write("refused", round=1, site="south", reason="11 times the median")
    log.write("not scored", round=1, site="north", reason="did not answer in time")
    _ask(log, 2, answered="north")
    log.write("aggregated", round=2, sites=1, norms={}, left_out={"south": "failed: no memory"})
    expected = [(REFUSED, "south", 1), (MISSING, "north", 1), (MISSING, "south", 2)]
    assert _fired(database, tmp_path) == expected
    log.write("refused", round=2, site="south", reason="did not answer in time")  # the same, with the reason
    _ask(log, 3, asked="north north south south")  # asked again, and answered
    log.write("aggregated", round=3, sites=2, norms={})
    log.write("run ended", status="failed", reason="MessageError: too few")
    assert _fired(database, tmp_path) == [*expected, (FAILED, None, None)]
    words = [row["words"] for row in _rows(database)]
    assert "11 times the median" in words[0]
    assert "expected scores of north, none came: did not answer in time" in words[1]
    assert "expected an update of south, none came: failed: no memory" in words[2]
    assert "too few" in words[3]


def test_a_real_round_without_a_site(tmp_path: Path, database: Database) -> None:
    """One site's clock is wrong, and its process fails in the second round."""

    def tamper(reply: Message) -> Message:
        config = reply.content.config_records["config"]
        if config["site"] == "south" and reply.metadata.message_type == JOIN:
            numbers = reply.content.metric_records["metrics"]
            numbers["clock"] = cast(float, numbers["clock"]) + 3600
        if config["site"] == "south" and config.get("round") == 2:
            raise MemoryError("no room for the batch")
        return reply

    run = small_settings("federation.rounds=3", "federation.num_sites=2", "federation.quorum=1")
    federate(tmp_path / "run", write_two_cohorts(tmp_path / "cohorts"), run, tamper=tamper)
    assert _fired(database, tmp_path) == [(MISSING, "south", 2), (CLOCK, "south", None)]
    words = [row["words"] for row in _rows(database)]
    assert "none came: failed: MemoryError: no room for the batch" in words[0]
    assert "found the one of south 3," in words[1]


def test_a_rule_that_is_off_is_silent(log: AuditLog, tmp_path: Path, database: Database) -> None:
    _ask(log, 1)
    log.write("refused", round=1, site="south", reason="too long")
    log.write("run ended", status="failed", reason="gone")
    assert _fired(database, tmp_path, Limits(refused_update=Rule(is_on=False))) == [(FAILED, None, None)]


@pytest.mark.parametrize(
    ("least", "most", "fires"),
    [(-0.2, 0.1, False), (31, 35, True), (29, 99, False), (-99, -31, True), (-99, -29, False), (-1e9, 1e9, False)],
)
def test_a_clock_is_off_where_the_way_does_not_explain_it(
    least: float, most: float, fires: bool, log: AuditLog, tmp_path: Path, database: Database
) -> None:
    log.write("joined", site="south", node=1, clock_ahead_seconds={"least": least, "most": most})
    assert _fired(database, tmp_path) == ([(CLOCK, "south", None)] if fires else [])


def test_a_limit_of_the_clock(log: AuditLog, tmp_path: Path, database: Database) -> None:
    log.write("joined", site="south", node=1, clock_ahead_seconds={"least": 3.0, "most": 4.0})
    log.write("joined", site="east", node=2)  # a log of an older version
    assert _fired(database, tmp_path, Limits(clock=Clock(seconds=2))) == [(CLOCK, "south", None)]
    assert "3 s ahead or more" in _rows(database)[0]["words"]


def _silence(database: Database, after: float, limits: Limits) -> list[str]:
    with database.reading() as connection:
        found = of_silence(connection, 1, datetime.now(UTC) + timedelta(seconds=after), limits)
    return [str(alarm.about) for alarm in found]


def test_a_run_is_silent_when_it_says_nothing_for_longer_than_it_waits(
    log: AuditLog, tmp_path: Path, database: Database
) -> None:
    _fired(database, tmp_path)
    assert _silence(database, 65, Limits()) == []  # ten seconds for the sites to come, and a minute
    assert _silence(database, 75, Limits()) == ["(1,)"]
    _ask(log, 1)
    _fired(database, tmp_path)
    assert _silence(database, 155, Limits()) == []
    assert _silence(database, 165, Limits()) == ["(5,)"]
    assert _silence(database, 9, Limits(silent_run=SilentRun(seconds=8))) == ["(5,)"]
    assert _silence(database, 165, Limits(silent_run=SilentRun(is_on=False))) == []
    log.write("run ended", status="finished", rounds=1)
    _fired(database, tmp_path)
    assert _silence(database, 1e6, Limits()) == []


def test_each_silence_is_an_alarm_of_its_own(log: AuditLog, tmp_path: Path, database: Database) -> None:
    limits = Limits(silent_run=SilentRun(seconds=1e-3))
    for _ in range(2):
        for _ in range(3):
            rules = _fired(database, tmp_path, limits)
        log.write("sent", exchange="round 1, train", site="north", bytes=1)
    assert rules == [(SILENT, None, None)] * 2


NOISE = np.random.default_rng(7)
STEPS = np.arange(200)
LEARNED = 0.3 + 0.5 * np.exp(-STEPS / 20)


def _found(curve: np.ndarray | list[float | None], limits: Divergence | None = None) -> list:
    return list(rises([(step, each) for step, each in enumerate(curve, start=1)], limits or Divergence()))


@pytest.mark.parametrize(
    "curve",
    [
        LEARNED,
        LEARNED * (1 + 0.1 * NOISE.standard_normal(200)),
        LEARNED * (1 + 0.25 * NOISE.standard_normal(200)),
        0.7 * np.exp(0.5 * NOISE.standard_normal(200)),  # a loss that moves by half from step to step, and nowhere
        LEARNED + 0.2 * np.clip(STEPS - 50, 0, 100) / 100,  # overfitting by two thirds
        np.where(STEPS % 40 == 39, 9.0, LEARNED),  # one bad round now and then
        np.full(200, 0.7),
        [0.7, 0.9, 2.0, 3.0],  # too short to know
        [],
    ],
)
def test_curves_that_do_not_diverge(curve) -> None:
    assert _found(list(map(float, curve))) == []


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.25])
def test_curves_that_diverge(noise: float) -> None:
    noisy = 1 + noise * np.random.default_rng(3).standard_normal(200)
    grows = LEARNED * noisy * np.where(STEPS > 50, np.exp((STEPS - 50) / 10), 1)
    (rise,) = _found(list(map(float, grows)))
    assert 50 < rise.first < rise.step < 85
    assert rise.best == pytest.approx(0.3, rel=0.5)
    at_once = 0.7 * 1.3 ** STEPS[:30] * noisy[:30]
    assert len(_found(list(map(float, at_once)))) == 1


def test_a_curve_that_comes_back_and_leaves_again_is_told_twice() -> None:
    curve = [0.5] * 10 + [5.0] * 5 + [0.5] * 5 + [7.0] * 4
    assert [(rise.first, rise.step, rise.loss) for rise in _found(curve)] == [(11, 13, 5.0), (21, 23, 7.0)]
    assert [rise.step for rise in _found(curve, Divergence(rounds=5))] == [15]


def test_a_loss_that_is_no_number_is_told_once() -> None:
    curve = [0.5, None, None, 0.5, 0.5, 0.5, None]
    assert [(rise.first, rise.loss) for rise in _found(curve)] == [(2, None), (7, None)]


def test_a_diverging_run(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / AUDIT)
    log.write("run began", settings={})
    _losses(tmp_path, [0.5] * 10)
    _losses(tmp_path, [0.6] * 10, split="val")
    assert _fired(database, tmp_path) == []
    for step in range(11, 15):
        _losses(tmp_path, [3.0], first=step)
        log.write("sent", exchange=f"round {step}, train", site="north", bytes=1)
        fired = _fired(database, tmp_path)
        assert fired == ([(DIVERGENCE, None, 13)] if step >= 13 else [])
    (row,) = _rows(database)
    assert "near its best, 0.5, found it far above since step 11: 3 in step 13" in row["words"]
    with (tmp_path / HISTORY).open("a") as file:
        file.write(json.dumps({"step": 15, "site": POOLED, "split": "val", "loss": float("nan")}) + "\n")
    assert _fired(database, tmp_path)[1:] == [(DIVERGENCE, None, 15)]


def test_a_failed_run_without_an_audit_log(real_run: Path, tmp_path: Path, database: Database) -> None:
    facts = json.loads((real_run / "run.json").read_text())
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**facts, "kind": "centralized", "status": "failed", "error": "no memory"}))
    for _ in range(2):
        path.touch()
        assert _fired(database, tmp_path) == [(FAILED, None, None)]
    assert "no memory" in _rows(database)[0]["words"]


def test_hostile_and_foreign_facts_are_texts(log: AuditLog, tmp_path: Path, database: Database) -> None:
    log.write("refused", round=1, site=HOSTILE * 100, reason={"a": [1]})
    log.write("refused", round="one", site=["a"], reason=HOSTILE)
    log.write("joined", site=HOSTILE, clock_ahead_seconds={"least": "40", "most": True})
    log.write("joined", site=HOSTILE, clock_ahead_seconds=[1, 2])
    log.write("aggregated", round=None)
    log.write("run ended", status=HOSTILE, reason="\x00")
    _fired(database, tmp_path)
    found = _rows(database)
    assert [row["rule"] for row in found] == [MISSING, REFUSED, FAILED]
    assert [len(row["site"] or "") for row in found] == [200, 0, 0]
    page = Client(make_page(database)).get("/runs/1").text
    assert "&lt;script&gt;" in page
    assert "<script>alert" not in page


def test_the_page_shows_alarms_and_what_became_of_them(log: AuditLog, tmp_path: Path, database: Database) -> None:
    _fired(database, tmp_path)
    client = Client(make_page(database))
    seen = [client.get("/runs/1/board").text]
    log.write("run ended", status="failed", reason="gone")
    _fired(database, tmp_path)
    seen.append(client.get("/runs/1/board").text)
    assert "it failed: gone</td><td>no</td>" in seen[-1]
    (exported,) = client.get("/runs/1/alarms.json").json()
    assert (exported["rule"], exported["words"]) == (FAILED, _rows(database)[0]["words"])
    assert exported["words"] in client.get("/runs/1/alarms.csv").text
    with database.writing() as connection:
        row = {
            "alarm_id": 1,
            "hook": "webhook",
            "state": "given up",
            "until": "t",
            "tries": 5,
            "reason": "answered 404",
        }
        connection.execute(deliveries.insert().values(**row))
    seen.append(client.get("/runs/1/board").text)
    assert "webhook: given up (answered 404)" in seen[-1]
    versions = {text.split('data-version="')[1].split('"')[0] for text in seen}
    assert len(versions) == 3
    assert len({client.get("/runs/1/board", params={"version": each}).status_code for each in versions}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("divergance: {}", "divergance: unknown"),
        ("clock: {second: 3}", "clock.second: unknown"),
        ("clock: {seconds: -1}", "clock.seconds: "),
        ("silent_run: {is_on: 'no'}", "silent_run.is_on: "),
        ("clock: off", "clock: "),
        ("[1]", "the file: "),
        ("{", "expected YAML"),
    ],
)
def test_a_typo_in_the_limits_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "alarms.yaml"
    path.write_text(text)
    with pytest.raises(LimitsError, match=words):
        load_limits(path)


def test_limits_change_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "alarms.yaml"
    path.write_text("clock: {seconds: 5}\nsilent_run: {seconds: 900}\nmissing_site: {is_on: false}\n")
    found = load_limits(path)
    assert (found.clock.seconds, found.silent_run.seconds, found.has(MISSING)) == (5, 900, False)
    assert found.divergence == Divergence()
    path.write_text("")
    assert load_limits(path) == load_limits(None) == Limits()
    with pytest.raises(LimitsError, match="can be read"):
        load_limits(tmp_path / "missing.yaml")


def test_an_alarm_has_the_time_of_its_event(log: AuditLog, tmp_path: Path, database: Database) -> None:
    log.write("run ended", status="failed", reason="gone")
    _fired(database, tmp_path)
    line = json.loads(log.path.read_text().splitlines()[-1])
    assert _rows(database)[0]["time"] == line["time"]
    with database.reading() as connection:
        assert connection.execute(select(runs.c.ended)).scalar_one() == line["time"]


def test_a_privacy_budget_is_nearly_spent_and_spent_once_each(
    log: AuditLog, tmp_path: Path, database: Database
) -> None:
    for number, (north, south) in enumerate([(1.0, 2.0), (3.5, 3.7), (3.9, 4.1), (4.0, 4.5)], start=1):
        sites = {"north": {"steps": number, "epsilon": north}, "south": {"steps": number, "epsilon": south}}
        log.write("privacy", round=number, delta=1e-5, budget=4.0, statistics="noised", sites=sites)
    found = _fired(database, tmp_path)
    assert found == [(BUDGET, "south", 2), (BUDGET, "north", 3), (BUDGET, "south", 3)]
    assert [row["words"].split(" is ")[1].split(":")[0] for row in _rows(database)] == [
        "nearly spent",
        "nearly spent",
        "spent",
    ]
    log.write("privacy", round=5, budget="much", sites={"north": None})
    assert len(_fired(database, tmp_path)) == 3


def test_when_a_privacy_budget_is_nearly_spent_can_be_said(log: AuditLog, tmp_path: Path, database: Database) -> None:
    log.write("privacy", round=1, budget=4.0, sites={"north": {"steps": 1, "epsilon": 2.1}})
    assert _fired(database, tmp_path, Limits(privacy_budget=PrivacyBudget(share=0.5))) == [(BUDGET, "north", 1)]


def test_the_budget_of_whole_sites_is_nearly_spent_and_ends_the_run(
    log: AuditLog, tmp_path: Path, database: Database
) -> None:
    for number, epsilon in enumerate((2.0, 3.7, 3.9), start=1):
        log.write("charged", round=number, epsilon=epsilon, delta=1e-5, budget=4.0, clip=1.0, far_longer=[])
    assert _fired(database, tmp_path) == [(BUDGET, None, 2)]
    log.write("charged", round=4, epsilon="much", budget=4.0)
    log.write("charged", round=4, epsilon=3.95)  # of an older version, which did not say the budget
    log.write("budget spent", of="site_privacy", said="after round 3 of 9: another one would spend more")
    assert _fired(database, tmp_path) == [(BUDGET, None, 2), (BUDGET, None, None)]
    nearly, ended = (row["words"] for row in _rows(database))
    assert nearly == "the privacy budget of whole sites is nearly spent: epsilon 3.7 of 4 in this run"
    assert ended.endswith("is spent and ended the run after round 3 of 9: another one would spend more")
