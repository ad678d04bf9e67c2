"""The database: brought up to date without loss, refused where it is another's, and named without its password."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from monitor import database as databases
from monitor.database import VERSION_TABLE, DatabaseAwayError, DatabaseError, open_database, prepare
from monitor.tables import metadata
from tests.postgres import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


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


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
@pytest.mark.parametrize("older", ["0001", "0002"])
def test_an_older_database_is_migrated_and_loses_nothing(
    older: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    url = _sqlite(tmp_path) if where == "sqlite" else request.getfixturevalue("server").url
    found = open_database(url)
    upgrade = databases.command.upgrade
    monkeypatch.setattr(databases.command, "upgrade", lambda config, revision: upgrade(config, older))
    prepare(found)
    monkeypatch.undo()
    with found.writing() as connection:
        names = set(inspect(connection).get_table_names())
        assert names == {"runs", "events", "measurements", "positions", VERSION_TABLE}
        connection.exec_driver_sql(
            "INSERT INTO runs (uid, folder, name, kind, status, started, sites, settings, facts) "
            "VALUES ('u', 'f', 'n', 'federated', 'running', 't', '[]', '{}', '{}')"
        )
        connection.exec_driver_sql("INSERT INTO events VALUES (1, 1, 't', 'run began', NULL, NULL, NULL, '{}')")
        connection.exec_driver_sql("INSERT INTO measurements VALUES (1, 'loss', 'val', 3, 'north', 0.5, NULL)")
        connection.exec_driver_sql("INSERT INTO positions VALUES (1, 'audit', 7, 1, 'tail')")
    prepare(found)
    try:
        with found.writing() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata) == []
            for table, row in {
                "runs": (1, "u", "f", "n", "federated"),
                "events": (1, 1, "t", "run began"),
                "measurements": (1, "loss", "val", 3, "north", 0.5, None),
                "positions": (1, "audit", 7, 1, "tail"),
            }.items():
                (kept,) = connection.exec_driver_sql(f"SELECT * FROM {table}").all()
                assert tuple(kept)[: len(row)] == row
            assert connection.exec_driver_sql("SELECT * FROM alarms").all() == []
    finally:
        with found.writing() as connection:
            metadata.drop_all(connection)
            connection.exec_driver_sql(f"DROP TABLE {VERSION_TABLE}")
        found.close()


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    found = open_database(_sqlite(tmp_path))
    prepare(found)
    with sqlite3.connect(tmp_path / "monitor.sqlite") as newer:
        newer.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9000'")
    with pytest.raises(DatabaseError, match=r"newer version of dipro-fed \(schema 9000, this one knows 0003 at most\)"):
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
