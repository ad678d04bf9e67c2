"""The page of one site: its own log and measurements, whatever the server says."""

import asyncio
import json
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from client.site_history import keep_measurements
from federation.audit import AUDIT, AuditLog
from federation.messages import EvaluateReply, Instruction, MessageError
from federation.results import SplitResult
from federation.run_folder import OWN_ROUNDS, POOLED, read_history
from monitor.database import Database
from monitor.page import make_page
from monitor.recorder import Recorder
from monitor.site_files import SITE, find_site_runs
from monitor.tables import events, runs


def _deliver(database: Database, folder: Path) -> None:
    Recorder(database, [folder], lambda words: None, partial(find_site_runs, site="north")).deliver()


def _get(database: Database, path: str, **parameters: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_page(database))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8766") as client:
            return await client.get(path, params=parameters)

    return asyncio.run(get())


def test_a_site_sees_what_left_it_and_its_metrics_beside_all_sites(real_run: Path, database: Database) -> None:
    site = real_run / "north"
    _deliver(database, site)
    lines = [json.loads(line) for line in (site / AUDIT).read_text().splitlines()]
    with database.reading() as connection:
        (run,) = connection.execute(select(runs)).all()
        kept = connection.execute(select(events.c.kind, events.c.bytes).order_by(events.c.number)).all()
    assert (run.kind, run.status, run.started, run.ended) == (SITE, "finished", lines[0]["time"], lines[-1]["time"])
    assert [tuple(row) for row in kept] == [(line["event"], line["bytes"]) for line in lines]
    page = _get(database, "/runs/1").text
    assert "What left this site" in page
    assert f"weights float32 {lines[1]['arrays']['weights']['shape']}" in page
    history = read_history(real_run)
    for split, metric in (("val", "auroc"), ("val", "loss"), ("train", "loss"), ("test", "auroc")):
        found = _get(database, "/runs/1/series", metric=metric, split=split).json()["metric"]
        of_site = [each for each in history if (each.site, each.split) == ("north", split)]
        own = [each.loss if metric == "loss" else each.metrics[metric] for each in of_site]
        if split != "test":  # which the server asks for once, at the end
            assert found["north"]["value"] == own
    pooled = _get(database, "/runs/1/series", metric="auroc", split="val").json()["metric"][POOLED]
    said = {each.step: each.metrics["auroc"] for each in history if (each.site, each.split) == (POOLED, "val")}
    assert pooled["value"] == [said[step] for step in pooled["step"]]
    assert set(pooled["step"]) == set(said)


def test_each_run_of_a_site_is_one_and_a_refusal_says_why(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / AUDIT)
    log.write("refused", asked="query", reason="MessageError: unreadable")
    log.write("left", asked="query", run="aa", round=0, bytes=10, arrays={}, numbers=["train"], text_bytes={})
    log.write("refused", asked="train", run="aa", round=1, reason="PolicyError: outside the hours of work <b>")
    _deliver(database, tmp_path)
    log.write("left", asked="query", run="bb", round=0, bytes=10)
    log.write("left", asked="evaluate", run="bb", round=3, bytes=10, final=True)
    log.write("left", asked="train", run="../..", round=3, bytes=10)
    _deliver(database, tmp_path)
    with database.reading() as connection:
        found = connection.execute(select(runs.c.name, runs.c.status).order_by(runs.c.run_id)).all()
    assert [tuple(each) for each in found] == [
        ("north, of no run", "running"),
        ("north, run aa", "running"),
        ("north, run bb", "finished"),
    ]
    assert "unreadable" in _get(database, "/runs/1").text
    page = _get(database, "/runs/2").text
    assert "outside the hours of work &lt;b&gt;" in page
    assert "unreadable" not in page


def _asked(**more: object) -> Instruction:
    import numpy as np

    nothing = np.zeros(0, np.float32)
    return Instruction(server_round=2, code_digest="", layout_digest="", weights=nothing, run="aa", **more)  # pyright: ignore[reportArgumentType]


def _reply(loss: float) -> EvaluateReply:
    part = SplitResult(num_samples=3, losses={"total": loss, "task": loss}, metrics={"auroc": None})
    return EvaluateReply(site="north", splits={"val": part}, seconds=1.0)


def test_a_site_sees_that_its_update_was_masked_and_whose_masks_it_took_away(
    tmp_path: Path, database: Database
) -> None:
    log, common = (
        AuditLog(path=tmp_path / AUDIT),
        {"run": "ab", "round": 1, "bytes": 8, "numbers": [], "text_bytes": {}},
    )
    log.write("left", asked="train", masked=True, arrays={"0": {"type": "uint8", "shape": [8], "bytes": 8}}, **common)
    log.write("left", asked="masks", self_masks=["north", "south"], mask_keys=["west"], arrays={}, **common)
    _deliver(database, tmp_path)
    page = _get(database, "/runs/1").text
    assert "0 uint8 [8]" in page
    assert "masked: it says nothing without the other sites" in page
    assert "took away the masks of the sum&#39;s sites: north, south; opened the masks of lost sites: west" in page


def test_measurements_stay_whole_whatever_ended_their_writer(tmp_path: Path) -> None:
    keep_measurements(tmp_path, _asked(), _reply(0.5))
    path = tmp_path / OWN_ROUNDS / "aa" / "history.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "si')  # killed here
    keep_measurements(tmp_path, _asked(), _reply(0.25))
    keep_measurements(tmp_path, _asked(), _reply(float("nan")))  # no number: left out
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [line["loss"] for line in whole] == [0.5, 0.25]


@pytest.mark.parametrize("together", ["{}", "no JSON", '{"step": 1, "site": "pooled", "split": "night"}'])
def test_what_the_server_says_of_all_sites_must_be_a_measurement(together: str, tmp_path: Path) -> None:
    with pytest.raises(MessageError, match="what all sites reach together"):
        keep_measurements(tmp_path, _asked(together=together), _reply(0.5))
    assert not list(tmp_path.rglob("history.jsonl"))
