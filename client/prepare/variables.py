"""The variable table of a profile: which charted items are which EHR variable, their units, bounds and cleaning."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from client.prepare.rejections import PrepareError
from dipro_model.vocabulary import EHR_VARIABLES

SOURCES = ("chartevents", "outputevents")

CLEANINGS = (
    "number",
    "plain number",
    "first of a/b",
    "second of a/b",
    "percent",
    "percent above 1",
    "saturation",
    "fahrenheit from 79",
    "eye opening",
    "motor response",
    "verbal response",
)
"""Ways to turn a charted text into a number; events.py gives each its SQL."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One charted item that measures a variable."""

    item: int
    """Item identifier, column `itemid` of the raw tables."""
    source: str
    """Raw table that holds it, one of SOURCES."""
    item_unit: str
    """Unit where a row states none; empty for an item without units, whose rows' units are not looked at."""
    cleaning: str
    """How its text becomes a number, one of CLEANINGS."""


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One of the 38 EHR variables and how its hours are made."""

    name: str
    items: tuple[Item, ...]
    """In order of preference: an hour's value comes from the first of them that was measured in that hour."""
    ties: str
    """Which of several values of one item at one instant counts: the largest `number`, or the last as `text`."""
    low: float
    high: float
    """Bounds, in the model's unit; beyond them a value is clipped or rejected, as the profile says."""
    fill: float
    """Value before the first measurement, in the model's unit."""
    hour: str
    """What an hour holds: the `last` value, carried forward; or the `sum` of its values, not carried."""


@dataclass(frozen=True, kw_only=True)
class StaticItem:
    """One charted item that gives a patient's height or weight once for a stay."""

    item: int
    unit: str
    """Its unit where a row states none, or where rows' units are not read."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit that a variable may be charted in: model unit = value * factor + offset."""

    variable: str
    unit: str
    """Lower-case spelling."""
    factor: float
    offset: float


_COLUMNS = ("variable", "item", "source", "item_unit", "cleaning", "ties", "low", "high", "fill", "hour")


def read_variables(path: Path) -> tuple[Variable, ...]:
    """The 38 variables of the table at `path`, in the vocabulary's order; rows of one variable rank its items.

    Raises PrepareError naming the file, the row and the fault.
    """
    rows = _read_rows(path, _COLUMNS)
    unknown = sorted({row["variable"] for _, row in rows} - set(EHR_VARIABLES))
    missing = [name for name in EHR_VARIABLES if name not in {row["variable"] for _, row in rows}]
    if unknown or missing:
        raise PrepareError(
            f"{path}: expected the {len(EHR_VARIABLES)} variables of dipro_model.vocabulary; "
            f"missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}"
        )
    return tuple(
        _variable(path, name, [(line, row) for line, row in rows if row["variable"] == name]) for name in EHR_VARIABLES
    )


def read_units(path: Path) -> tuple[Unit, ...]:
    """The accepted units of the table at `path`. Raises PrepareError naming the file, the row and the fault."""
    rows = _read_rows(path, [field.name for field in fields(Unit)])
    units = [
        Unit(
            variable=_one_of(path, line, row, "variable", EHR_VARIABLES),
            unit=row["unit"].lower(),
            factor=_number(path, line, row, "factor"),
            offset=_number(path, line, row, "offset"),
        )
        for line, row in rows
    ]
    if len({(unit.variable, unit.unit) for unit in units}) < len(units):
        raise PrepareError(f"{path}: expected each unit of a variable once (spellings are compared in lower case)")
    return tuple(units)


def _variable(path: Path, name: str, rows: Sequence[tuple[int, dict[str, str]]]) -> Variable:
    line, first = rows[0]
    shared = ("ties", "low", "high", "fill", "hour")
    for other_line, row in rows[1:]:
        if any(row[column] != first[column] for column in shared):
            raise PrepareError(
                f"{path}, line {other_line}: {', '.join(shared)} must equal those of line {line} ({name})"
            )
    return Variable(
        name=name,
        items=tuple(_item(path, item_line, row) for item_line, row in rows),
        ties=_one_of(path, line, first, "ties", ("number", "text")),
        low=_number(path, line, first, "low"),
        high=_number(path, line, first, "high"),
        fill=_number(path, line, first, "fill"),
        hour=_one_of(path, line, first, "hour", ("last", "sum")),
    )


def _item(path: Path, line: int, row: dict[str, str]) -> Item:
    return Item(
        item=int(_number(path, line, row, "item")),
        source=_one_of(path, line, row, "source", SOURCES),
        item_unit=row["item_unit"].lower(),
        cleaning=_one_of(path, line, row, "cleaning", CLEANINGS),
    )


def _read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: expected a table of the profile, cannot read it ({error})") from None
    if list(reader.fieldnames or ()) != list(columns):
        found = ", ".join(reader.fieldnames or ()) or "none"
        raise PrepareError(f"{path}: expected the columns {', '.join(columns)}; found {found}")
    for line, row in rows:
        if None in row or None in row.values():
            raise PrepareError(f"{path}, line {line}: expected {len(columns)} fields")
    return rows


def _number(path: Path, line: int, row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise PrepareError(f"{path}, line {line}: expected a number in {column}, found {row[column]!r}") from None


def _one_of(path: Path, line: int, row: dict[str, str], column: str, allowed: Sequence[str]) -> str:
    if row[column] not in allowed:
        raise PrepareError(
            f"{path}, line {line}: expected {column} to be one of {', '.join(allowed)}; found {row[column]!r}"
        )
    return row[column]
