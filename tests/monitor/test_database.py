"""The database: brought up to date without loss, refused where it is another's, and named without its password."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from monitor import database as databases
from monitor.database import VERSION_TABLE, DatabaseAwayError, DatabaseError, open_database, prepare
from monitor.tables import metadata


def _sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'monitor.sqlite'}"


def test_migrations_make_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    found = open_database(_sqlite(tmp_path))
    prepare(found)
    prepare(found)
    with found.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    found.close()


def test_an_older_database_is_migrated_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_database(_sqlite(tmp_path))
    upgrade = databases.command.upgrade
    monkeypatch.setattr(databases.command, "upgrade", lambda config, revision: upgrade(config, "0001"))
    prepare(found)
    monkeypatch.undo()
    with sqlite3.connect(tmp_path / "monitor.sqlite") as old:
        assert "events_by_kind" not in {name for (name,) in old.execute("SELECT name FROM sqlite_master")}
        old.execute(
            "INSERT INTO runs (uid, folder, name, kind, status, started, sites, settings, facts) "
            "VALUES ('u', 'f', 'n', 'federated', 'running', 't', '[]', '{}', '{}')"
        )
        old.execute("INSERT INTO events VALUES (1, 1, 't', 'run began', NULL, NULL, NULL, '{}')")
    prepare(found)
    with sqlite3.connect(tmp_path / "monitor.sqlite") as new:
        assert "events_by_kind" in {name for (name,) in new.execute("SELECT name FROM sqlite_master")}
        assert new.execute("SELECT uid, kind FROM runs").fetchall() == [("u", "federated")]
        assert new.execute("SELECT kind FROM events").fetchall() == [("run began",)]
    found.close()


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    found = open_database(_sqlite(tmp_path))
    prepare(found)
    with sqlite3.connect(tmp_path / "monitor.sqlite") as newer:
        newer.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9000'")
    with pytest.raises(DatabaseError, match=r"newer version of dipro-fed \(schema 9000, this one knows 0002 at most\)"):
        prepare(found)
    with sqlite3.connect(tmp_path / "monitor.sqlite") as newer:
        assert newer.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [("9000",)]
    found.close()


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "monitor.sqlite") as other:
        other.execute("CREATE TABLE runs (run_uuid TEXT)")
    found = open_database(_sqlite(tmp_path))
    with pytest.raises(DatabaseError, match=r"tables of something else \(runs\)"):
        prepare(found)
    found.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nothing", "found a text that is no URL"),
        ("mysql://host/name", "found mysql"),
        ("sqlite://", "expected a file"),
    ],
)
def test_other_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(DatabaseError, match=words):
        open_database(url)


def test_a_password_is_not_shown(unused_port: int) -> None:
    found = open_database(f"postgresql://watcher:secret@127.0.0.1:{unused_port}/runs")
    with pytest.raises(DatabaseAwayError, match="watcher:") as told:
        prepare(found)
    assert "secret" not in str(told.value)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
