"""The ledger on a site's disk: what is spent stays spent, and a ledger that cannot be trusted stops training."""

import json
from pathlib import Path

import pytest

from client.privacy_ledger import LEDGER, STEPS, Budget, LedgerError, PrivacyLedger, patients_digest, spent_epsilon
from federation.accounting import Answers
from federation.audit import AUDIT, verify

PATIENTS = patients_digest([1, 2, 3])
TEN = Answers(noise_multiplier=2.0, sampling_rate=0.1, count=10)


def _ledger(folder: Path, patients: str = PATIENTS) -> PrivacyLedger:
    return PrivacyLedger(folder=folder, patients=patients)


def _spend(ledger: PrivacyLedger, run: str = "one", server_round: int = 1, budget: Budget | None = None) -> None:
    ledger.spend(run=run, server_round=server_round, what=STEPS, answers=[TEN], budget=budget)


def test_what_is_spent_stays_spent_run_after_run(tmp_path: Path) -> None:
    assert _ledger(tmp_path).entries() == []
    for run in ("one", "two"):
        for number in (1, 2):
            _spend(_ledger(tmp_path), run, number)  # a new process each
    entries = _ledger(tmp_path).entries()
    assert [(each.run, each.server_round, each.answers) for each in entries] == [
        (run, number, TEN) for run in ("one", "two") for number in (1, 2)
    ]
    assert _ledger(tmp_path).steps_of("one") == 20
    together = spent_epsilon([each.answers for each in entries], 1e-5)
    assert together == pytest.approx(spent_epsilon([Answers(noise_multiplier=2.0, sampling_rate=0.1, count=40)], 1e-5))
    assert verify(tmp_path / LEDGER).num_entries == 5


def test_past_the_budget_nothing_is_spent(tmp_path: Path) -> None:
    budget = Budget(epsilon=spent_epsilon([TEN, TEN, TEN], 1e-5) + 1e-6, delta=1e-5)
    for number in (1, 2, 3):
        _spend(_ledger(tmp_path), f"run{number}", budget=budget)
    with pytest.raises(LedgerError, match="this would make it"):
        _spend(_ledger(tmp_path), "run4", budget=budget)
    assert len(_ledger(tmp_path).entries()) == 3


def test_a_ledger_that_is_gone_stops_training(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    (tmp_path / LEDGER).unlink()
    with pytest.raises(LedgerError, match="found none; put it back from a backup"):
        _spend(_ledger(tmp_path))


def test_a_ledger_put_back_to_an_older_one_stops_training(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    older = (tmp_path / LEDGER).read_bytes()
    _spend(_ledger(tmp_path), server_round=2)
    (tmp_path / LEDGER).write_bytes(older)
    with pytest.raises(LedgerError, match="expected the line of hash"):
        _ledger(tmp_path).entries()


def test_a_damaged_ledger_stops_training(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    path = tmp_path / LEDGER
    path.write_text(path.read_text().replace('"count": 10', '"count": 1'))
    with pytest.raises(LedgerError, match=f"{LEDGER}, line 2: .*the line was changed; the site does not train"):
        _spend(_ledger(tmp_path))


def test_the_ledger_of_other_patients_stops_training(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    others = _ledger(tmp_path, patients_digest([1, 2, 4]))
    with pytest.raises(LedgerError, match="found one of others"):
        _spend(others)
    assert others.begin_anew() == tmp_path / "privacy-1.jsonl"
    _spend(others)
    assert len(others.entries()) == 1
    assert len((tmp_path / "privacy-1.jsonl").read_text().splitlines()) == 2, "what was spent is kept aside"


def test_a_crash_between_ledger_and_audit_log_loses_nothing(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    audit = (tmp_path / AUDIT).read_bytes()
    _spend(_ledger(tmp_path), server_round=2)
    (tmp_path / AUDIT).write_bytes(audit)  # killed before it was told
    assert len(_ledger(tmp_path).entries()) == 2
    _spend(_ledger(tmp_path), server_round=3)
    assert _ledger(tmp_path).steps_of("one") == 30


def test_the_digest_names_patients_whatever_their_order() -> None:
    assert patients_digest([3, 1, 2, 2]) == PATIENTS != patients_digest([1, 2])


def test_the_audit_log_tells_of_it_without_figures_of_patients(tmp_path: Path) -> None:
    _spend(_ledger(tmp_path))
    line = json.loads((tmp_path / AUDIT).read_text().splitlines()[-1])
    assert (line["event"], line["run"], line["round"]) == ("privacy spent", "one", 1)
    assert line["ledger"] == verify(tmp_path / LEDGER).head
