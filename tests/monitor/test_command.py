"""`dipro-fed record` and `dipro-fed monitor`, as far as they go without staying."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dipro_fed.main import app
from federation.audit import AUDIT, AuditLog
from monitor.access import AccessError


def _run(*words: str, **more):
    return CliRunner().invoke(app, list(words), **more)


def test_record_once_delivers_into_the_state_folder(tmp_path: Path) -> None:
    AuditLog(path=tmp_path / "runs" / "one" / AUDIT).write("run began", settings={})
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "DIPRO_FED_DATABASE": None}
    for expected in ("1 lines delivered", "0 lines delivered"):
        done = _run("record", str(tmp_path / "runs"), "--once", env=environment)
        assert (done.exit_code, expected in done.output) == (0, True), done.output
    assert (tmp_path / "state" / "dipro-fed" / "monitor.sqlite").is_file()


def test_what_cannot_be_watched_or_shown_is_refused(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'm.sqlite'}"
    missing = _run("record", str(tmp_path / "missing"), "--database", database, "--once")
    assert "expected a run's folder" in str(missing.exception)
    open_to_all = _run("monitor", str(tmp_path), "--database", database, "--host", "0.0.0.0")
    assert isinstance(open_to_all.exception, AccessError)
    assert not (tmp_path / "m.sqlite").exists()
    with pytest.raises(ValueError, match="found mysql"):
        raise _run("record", str(tmp_path), "--database", "mysql://x/y").exception or AssertionError
