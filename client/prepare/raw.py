"""Raw tables of a hospital, plain or gzipped CSV or TSV, opened with DuckDB as text.

Every column arrives as text, because cleaning must see what was written; `number_sql` and `instant_sql` turn text
into a value or, where it is none, into NULL, which the stages count. DuckDB streams the files: no table needs to fit in
memory.
"""

import csv
import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas as pd

from client.prepare.rejections import NUM_EXAMPLES, PrepareError, Rejections

_SUFFIXES = ("", ".gz")
DEFAULT_MEMORY_GB = 2.5
"""What DuckDB may hold before it spills to the scratch folder; the process itself takes about 0.3 GB more."""


@contextmanager
def connect(
    scratch: Path, *, threads: int | None = None, memory_gb: float = DEFAULT_MEMORY_GB
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty in-memory database that spills to the folder `scratch` and uses `threads` cores (None: all)."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_gb * 1000:.0f}MB",
        "threads": str(threads or os.cpu_count() or 1),
        "temp_directory": str(scratch),
        "preserve_insertion_order": "false",
        # Preparing never reaches for the network.
        "autoinstall_known_extensions": "false",
    }
    connection = duckdb.connect(config=config)
    try:
        # Progress is there to be asked for; the library prints none.
        connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
        yield connection
    finally:
        connection.close()


def find_table(folder: Path | str, relative_name: str) -> Path:
    """The table `relative_name` (`icu/icustays`, or with a suffix of its own: `gold_dataset/x.txt`) below `folder`.

    A name without suffix means CSV; a plain file is preferred to a gzipped one.
    Raises PrepareError naming the folder and both names tried.
    """
    name = relative_name if relative_name.endswith((".csv", ".tsv", ".txt")) else f"{relative_name}.csv"
    for suffix in _SUFFIXES:
        path = Path(folder) / f"{name}{suffix}"
        if path.is_file():
            return path
    tried = " or ".join(f"{name}{suffix}" for suffix in _SUFFIXES)
    raise PrepareError(f"{folder}: expected the table {tried}, found neither; check the folder given for the raw data")


def create_view(connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Sequence[str]) -> None:
    """Make `columns` of the table at `path` a view called `name`, every column text, an empty field NULL.

    Nothing is read yet but the first line. Lines that are not a row of the table (too few or too many fields, a
    dangling quote, bytes that are not UTF-8) are left out of the view and counted by `count_broken_lines`.
    Raises PrepareError naming the file and the missing columns.
    """
    header = read_header(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise PrepareError(
            f"{path}: expected the columns {', '.join(columns)}; missing {', '.join(missing)}; "
            f"found {', '.join(header)}"
        )
    types = ", ".join(f"{literal_sql(column)}: 'VARCHAR'" for column in header)
    chosen = ", ".join(f'"{column}"' for column in columns)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {chosen} FROM read_csv({literal_sql(str(path))}, "
        f"auto_detect=false, header=true, delim={literal_sql(_delimiter(path))}, quote='\"', escape='\"', "
        f"nullstr='', columns={{{types}}}, ignore_errors=true, store_rejects=true)"
    )


def read_table(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    columns: Sequence[str],
    rejections: Rejections,
    optional: Sequence[str] = (),
) -> pd.DataFrame:
    """`columns` of a small table as text in rows of file order, None where empty; broken lines are counted.

    `optional` columns follow, all None where the table does not have them.
    """
    header = read_header(path)
    create_view(connection, "small_table", path, [*columns, *(name for name in optional if name in header)])
    with reading(path):
        connection.execute("SET preserve_insertion_order = true")
        frame = connection.execute("SELECT * FROM small_table").df()
        connection.execute("SET preserve_insertion_order = false")
    count_broken_lines(connection, path, rejections)
    # Adds what is missing.
    frame = frame.reindex(columns=[*columns, *optional]).astype(object)
    return frame.where(frame.notna(), None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what DuckDB raises over a damaged file (a truncated gzip, a disk error) into PrepareError naming it."""
    try:
        yield
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise PrepareError(
            f"{path}: cannot be read, so it may be damaged or cut short ({_first_line(error)})"
        ) from None


def count_broken_lines(connection: duckdb.DuckDBPyConnection, path: Path, rejections: Rejections) -> None:
    """Count the lines of `path` that views over it have left out so far, with their line numbers as examples."""
    exists = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'reject_errors'"
    if not connection.execute(exists).fetchall()[0][0]:
        return
    # A table scanned twice reports each broken line twice. The text of the line is never looked at: it holds values.
    rows = connection.execute(
        "SELECT error_type::VARCHAR, count(DISTINCT line), list_sort(list(DISTINCT line))[:?] "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) WHERE file_path = ? GROUP BY 1 ORDER BY 1",
        [NUM_EXAMPLES, str(path)],
    ).fetchall()
    for kind, count, lines in rows:
        examples = [f"line {line}" for line in lines]
        rejections.add(f"broken line: {kind.lower()}", count, where=path.name, examples=examples)


def read_header(path: Path) -> list[str]:
    """Column names of the table at `path`. Raises PrepareError where the first line names none, or one twice."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, EOFError) as error:
        raise PrepareError(f"{path}: expected a table, cannot read its first line ({error})") from None
    if not any(header):
        raise PrepareError(f"{path}: expected a first line with column names, found an empty file")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise PrepareError(f"{path}: expected each column once, found {', '.join(repeated)} more than once")
    return header


def number_sql(column: str) -> str:
    """SQL for the finite number written in a text column, NULL where it holds none."""
    value = f"TRY_CAST({column} AS DOUBLE)"
    return f"(CASE WHEN isfinite({value}) THEN {value} END)"


def integer_sql(column: str) -> str:
    """SQL for the whole number written in a text column (an identifier), NULL where it holds none."""
    value = f"TRY_CAST({column} AS BIGINT)"
    # A cast alone would round 7.5 to 8.
    return f"(CASE WHEN {value} = TRY_CAST({column} AS DOUBLE) THEN {value} END)"


def instant_sql(column: str) -> str:
    """SQL for the time written in a text column (year-month-day hour:minute:second), NULL where it holds none."""
    value = f"TRY_CAST({column} AS TIMESTAMP)"
    # DuckDB reads the word "inf" as a time, too.
    return f"(CASE WHEN isfinite({value}) THEN {value} END)"


def literal_sql(text: str) -> str:
    """SQL for a text, quotes doubled."""
    return "'" + text.replace("'", "''") + "'"


def _delimiter(path: Path) -> str:
    return "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".txt")) else ","


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
