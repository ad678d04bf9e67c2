"""The page says what a run hid and what was spent, and has words where there can be no picture."""

import csv
import re
from pathlib import Path

from federation.audit import AUDIT, AuditLog
from monitor.database import Database
from monitor.page import make_page
from monitor.recorder import Recorder
from tests.monitor.hiding_run import SECTIONS, write_hiding_log
from tests.monitor.test_page import HOSTILE, Client


def _client(database: Database, *folders: Path) -> Client:
    Recorder(database, folders, lambda words: None).deliver()
    return Client(make_page(database))


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_curves_are_those_of_the_log(tmp_path: Path, database: Database) -> None:
    write_hiding_log(tmp_path / "run")
    client = _client(database, tmp_path)
    found = client.get("/runs/1/series?metric=loss&split=val&parts=epsilon,masks").json()
    both = [1, 2]
    assert list(found["epsilon"].items()) == [
        ("north", {"step": both, "value": [2.0, 4.0]}),
        ("south", {"step": both, "value": [3.0, 5.0]}),
        ("west", {"step": both, "value": [4.0, 6.0]}),
        ("any whole site", {"step": both, "value": [1.5, 3.0]}),
    ]
    assert found["masks"] == {
        "updates in the sum": {"step": both, "value": [3, 2]},
        "masks opened": {"step": both, "value": [0, 1]},
        "begun again": {"step": [1, 2, 3], "value": [0, 1, 0]},
    }
    later = client.get("/runs/1/series?metric=loss&split=val&parts=epsilon&after=1").json()["epsilon"]
    assert {tuple(line["step"]) for line in later.values()} == {(2,)}
    rows = list(csv.DictReader(client.get("/runs/1/masks-by-round.csv").text.splitlines()))
    assert {"round": "2", "of": "masks opened", "value": "1"} in rows


def test_the_page_says_what_was_hidden_and_why_there_are_no_lengths(tmp_path: Path, database: Database) -> None:
    log = write_hiding_log(tmp_path / "run")
    page = _client(database, tmp_path).get("/runs/1").text
    text = _text(page)
    for words in (
        "west 6 8 1e-05 75 %",
        "any whole site 3 4 1e-05 75 %",
        "Rounds summed 2 Updates hidden 5 Begun again round 2 Masks opened west in 1 round",
        "there are no pictures of them here",
        "3 no sum yet – once 2 north, south west 2 times 1 north, south, west – once",
    ):
        assert words in text
    assert 'id="plot-masks"' in page
    assert not re.search(r'id="plot-(norms|similarity|compared)"', page)
    assert "budget of whole sites" in page, "both budgets are lines of the picture"
    assert "masking" not in text[text.index("Refusals and alarms") :], "what happens every round is no happening"
    log.write("run ended", status="finished", rounds=2)


def test_a_run_without_masks_has_its_lengths_and_one_that_hides_nothing_no_such_section(
    tmp_path: Path, database: Database
) -> None:
    write_hiding_log(tmp_path / "spends", {**SECTIONS, "secure_aggregation": {"enabled": False}})
    AuditLog(path=tmp_path / "plain" / AUDIT).write("run began", settings={})
    client = _client(database, tmp_path)
    pages = {name: client.get(f"/runs/{number}").text for number, name in ((1, "plain"), (2, "spends"))}
    assert all('id="plot-norms"' in page and "Updates hidden" not in page for page in pages.values())
    assert {name: 'id="hidden"' in page for name, page in pages.items()} == {"plain": False, "spends": True}
    assert {name: 'id="plot-epsilon"' in page for name, page in pages.items()} == {"plain": False, "spends": True}


def test_facts_of_another_form_are_no_numbers(tmp_path: Path, database: Database) -> None:
    log = AuditLog(path=tmp_path / "run" / AUDIT)
    log.write("run began", settings={**SECTIONS, "patient_privacy": {"enabled": True, "epsilon": HOSTILE}})
    log.write("privacy", round=1, sites={HOSTILE: {"epsilon": HOSTILE}, "x": 3, HOSTILE + "2": {"epsilon": 1.0}})
    log.write("charged", round=1, epsilon=[HOSTILE])
    log.write("unmasked", round=1, attempt="a", members=[HOSTILE], survivors=[HOSTILE])
    client = _client(database, tmp_path)
    page = client.get("/runs/1")
    assert page.status_code == 200
    assert "<img" not in page.text
    assert "<script>alert" not in page.text
    assert list(client.get("/runs/1/series?metric=a&split=b&parts=epsilon").json()["epsilon"]) == [HOSTILE + "2"]
    assert client.get("/metrics").status_code == 200
