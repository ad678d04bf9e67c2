"""What the page gives away as files: CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Table, select, tuple_
from starlette.responses import Response, StreamingResponse

from monitor.database import Database
from monitor.tables import alarms, events, measurements

EXPORTS = {"events": events, "measurements": measurements, "alarms": alarms}
"""Tables of which all rows of a run can be had."""
_ROWS_AT_ONCE = 1000


def exported(database: Database, run_id: int, what: str, form: str) -> Response:
    """All rows of a run in a table, `what`, as csv or json."""
    table = EXPORTS[what]
    names = [column.name for column in table.columns if column.name != "run_id"]

    def as_json() -> Iterator[str]:
        start = "["
        for row in _rows(database, table, run_id, names):
            yield f"{start}\n{json.dumps(row)}"
            start = ","
        yield "\n]\n" if start == "," else "[]\n"

    def as_csv() -> Iterator[str]:
        yield _line(names)
        for row in _rows(database, table, run_id, names):
            yield _line([json.dumps(value) if isinstance(value, dict) else value for value in row.values()])

    content, kind = (as_csv(), "text/csv") if form == "csv" else (as_json(), "application/json")
    return StreamingResponse(content, media_type=kind, headers=attached(f"run-{run_id}-{what}.{form}"))


def _rows(database: Database, table: Table, run_id: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows of a run, some at a time: who reads slowly holds no connection, and nobody else up."""
    key = [column for column in table.primary_key.columns if column.name != "run_id"]
    asked = select(*(table.c[name] for name in names)).where(table.c.run_id == run_id).order_by(*key)
    last: list[Any] = []
    while True:
        behind = asked.where(tuple_(*key) > tuple_(*last)) if last else asked
        with database.reading() as connection:
            rows = [dict(row._mapping) for row in connection.execute(behind.limit(_ROWS_AT_ONCE))]
        yield from rows
        if len(rows) < _ROWS_AT_ONCE:
            return
        last = [rows[-1][column.name] for column in key]


def as_table(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """A CSV file of this name."""
    text = "".join([_line(header), *(_line(row) for row in rows)])
    return Response(text, media_type="text/csv", headers=attached(f"{name}.csv"))


def _line(values: Sequence[object]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow([_cell(value) for value in values])
    return written.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def attached(name: str) -> dict[str, str]:
    """Headers of an answer that the browser keeps as a file."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}
