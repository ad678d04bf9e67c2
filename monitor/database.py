"""The monitor's database: opened by URL, brought to the present tables, and its failures told in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)

from monitor.tables import metadata

VERSION_TABLE = "dipro_fed_schema"
"""Where the database says which migration it is at."""
_PATIENCE_SECONDS = 5
"""Longest wait for a lock or a connection before the database counts as away."""


class DatabaseError(ValueError):
    """A database that cannot be used; says which, why, and what to do."""


class DatabaseAwayError(DatabaseError):
    """A database that cannot be used now, and may be later."""


@dataclass(frozen=True)
class Database:
    """A database that may be away at any time; opening this touches nothing."""

    engine: Engine

    @property
    def name(self) -> str:
        """What people may read: the URL without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, kept when the block ends and undone when it raises. Raises DatabaseAwayError."""
        with self._in_words(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the database, however much is written meanwhile. Raises DatabaseAwayError."""
        with self._in_words(), self.engine.connect() as connection:
            yield connection.execution_options(is_reading=True)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise DatabaseAwayError(f"{self.name}: another process wrote the same at the same time") from None
        except (OperationalError, InterfaceError) as error:
            raise DatabaseAwayError(f"{self.name}: {_why(error)}") from None
        except DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseAwayError(f"{self.name}: {_why(error)}") from None
            raise


def default_url() -> str:
    """SQLite in the state folder of whoever watches: one file for all runs, none in the runs' own folders."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return f"sqlite:///{Path(state) / 'dipro-fed' / 'monitor.sqlite'}"


def open_database(url: str) -> Database:
    """The database of a URL, sqlite:///FILE or postgresql://USER@HOST/NAME. Raises DatabaseError for any other."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError(f"--database: {_EXPECTED}, found a text that is no URL") from None
    kind = parsed.get_backend_name()
    try:
        if kind == "sqlite":
            return Database(_sqlite(parsed))
        if kind == "postgresql":
            return Database(_postgresql(parsed))
    except (ModuleNotFoundError, NoSuchModuleError):
        raise DatabaseError(
            "--database: PostgreSQL needs psycopg, which is not installed: pip install 'dipro-fed[postgres]'"
        ) from None
    raise DatabaseError(f"--database: {_EXPECTED}, found {kind}")


_EXPECTED = "expected sqlite:///FILE or postgresql://USER@HOST/NAME"


def prepare(database: Database) -> None:
    """Bring the database to the present tables; what it holds stays.

    Raises DatabaseError for one that a newer version of dipro-fed made and for one of something else,
    DatabaseAwayError where it cannot be reached.
    """
    if database.engine.url.get_backend_name() == "sqlite" and (file := database.engine.url.database):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7234982)")  # one migration at a time
        found = _revision(connection)
        if found is not None and found not in known:
            raise DatabaseError(
                f"{database.name}: its tables are of a newer version of dipro-fed (schema {found}, this one knows "
                f"{script.get_current_head()} at most); update dipro-fed, or name another database"
            )
        taken = sorted(set(metadata.tables) & set(inspect(connection).get_table_names()))
        if found is None and taken:
            raise DatabaseError(
                f"{database.name}: expected an empty database or one of this monitor, found tables of something else "
                f"({', '.join(taken)}); name another database"
            )
        if found != script.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that can say what becomes of a row that is there already, which each database says in its own words."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise DatabaseError("--database: expected a file, sqlite:///FILE, found none in the URL")
    engine = create_engine(url, connect_args={"timeout": _PATIENCE_SECONDS})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver's own transactions begin too late
        connection.execute("PRAGMA journal_mode=WAL")  # who reads does not hold up who writes
        connection.execute("PRAGMA synchronous=NORMAL")  # what a power cut undoes is delivered again
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        is_reading = connection.get_execution_options().get("is_reading")
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    patience = f"-c lock_timeout={1000 * _PATIENCE_SECONDS}"
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        connect_args={"connect_timeout": _PATIENCE_SECONDS, "tcp_user_timeout": 10_000, "options": patience},
    )


def _why(error: DBAPIError) -> str:
    text = str(error.orig).strip()
    if "database is locked" in text:
        return "another process holds it locked"
    if "is full" in text or "No space left" in text:
        return "it has no room left, or its disk has none"
    return text.splitlines()[0] if text else type(error.orig).__name__
