"""`dipro-fed record` and `dipro-fed monitor`, as far as they go without staying."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dipro_fed.main import app
from federation.audit import AUDIT, AuditLog
from monitor.access import AccessError
from monitor.hooks import HookError
from monitor.limits import LimitsError


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


def test_alarms_are_sent_by_a_recorder_that_ends(tmp_path: Path) -> None:
    log = AuditLog(path=tmp_path / "runs" / "one" / AUDIT)
    log.write("run began", settings={})
    log.write("run ended", status="failed", reason="gone")
    words = ("record", str(tmp_path / "runs"), "--once", "--database", f"sqlite:///{tmp_path / 'm.sqlite'}")
    for sent in (1, 0):
        done = _run(*words, "--alarm-command", f"tee {tmp_path / 'got'}")
        assert (done.exit_code, f"command tee: {sent} alarms sent" in done.output) == (0, True), done.output
    assert '"words": "expected a run that finishes; it failed: gone"' in (tmp_path / "got").read_text()


@pytest.mark.parametrize("command", ["record", "monitor"])
def test_alarms_that_could_never_arrive_are_refused(command: str, tmp_path: Path) -> None:
    words = (command, str(tmp_path), "--database", f"sqlite:///{tmp_path / 'm.sqlite'}")
    limits = tmp_path / "alarms.yaml"
    limits.write_text("clocks: {}")
    assert isinstance(_run(*words, "--alarms", str(limits)).exception, LimitsError)
    assert isinstance(_run(*words, "--alarm-command", "no-such-program").exception, HookError)
    webhook = _run(*words, env={"DIPRO_FED_WEBHOOK": "ftp://host/secret"})
    assert "found ftp" in str(webhook.exception)
    assert not (tmp_path / "m.sqlite").exists()
