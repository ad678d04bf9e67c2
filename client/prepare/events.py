"""Charted events: one scan of each raw table, every value cleaned into a number or rejected for a reason.

The result is the table `events`: one row a charted value of interest in a cohort's stay, with the columns target (index
of an EHR variable, or HEIGHT or WEIGHT of the demographics), rank (place of its item among the variable's items), item,
stay_id, charted_at, value (in the model's unit, NULL where rejected), written (its text, where ties are settled by
text) and reason (index into REASONS, NULL where there is nothing to count).
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pandas as pd

from client.prepare.parallel import Progress, silent
from client.prepare.raw import (
    count_broken_lines,
    create_view,
    find_table,
    instant_sql,
    integer_sql,
    literal_sql,
    number_sql,
    reading,
)
from client.prepare.rejections import NUM_EXAMPLES, Rejections
from client.prepare.variables import SOURCES, StaticItem, Unit, Variable
from dipro_model.vocabulary import EHR_VARIABLES

EVENT_COLUMNS = ("stay_id", "charttime", "itemid", "value", "valueuom")
HEIGHT, WEIGHT = len(EHR_VARIABLES), len(EHR_VARIABLES) + 1
"""Targets of the demographics, numbered after the EHR variables."""
STATIC_VARIABLES = {HEIGHT: "Height", WEIGHT: "Weight"}

REASONS = (
    "itemid is no whole number",
    "stay_id is no whole number",
    "charttime is no time",
    "value empty",
    "value is no number or known score",
    "unit not known for the variable",
    "charted long after the end of the stay",
    "value outside the variable's bounds",
    "value outside the variable's bounds, clipped",
)
_ITEM, _STAY, _TIME, _EMPTY, _NUMBER, _UNIT, _LATE, _BOUNDS, _CLIPPED = range(len(REASONS))
_NO_FAULT = (_EMPTY, _CLIPPED)
"""Counted without stopping a strict run: nothing was charted, or the profile asks for it."""
WHERE = "events"
"""The stage under which rejections are counted."""

_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class EhrRules:
    """How charted events become hourly values."""

    variables: str
    """File name of the variable table, beside the profile."""
    units: str
    """File name of the table of accepted units, beside the profile."""
    read_units: bool
    """Whether the unit of each row decides about its conversion; otherwise rows' units are not looked at."""
    out_of_bounds: Literal["rejected", "clipped"]
    """What happens to a value beyond its variable's bounds."""
    late_hours: float
    """A value charted longer than this after the end of its stay is rejected."""
    statistics_over: Literal["train", "all"]
    """Whose stays give mean and standard deviation: those of training patients only, or everyone's."""
    missing_words: tuple[str, ...]
    """Texts that count as an empty field."""
    scores: Mapping[str, Mapping[str, float]]
    """Of each coma-scale cleaning, the score of each label."""
    scores_may_be_numbers: bool
    """Whether a score may also be charted as its number."""


def read_events(
    connection: duckdb.DuckDBPyConnection,
    mimic_iv: Path,
    stays: pd.DataFrame,
    variables: tuple[Variable, ...],
    static_items: Mapping[int, tuple[StaticItem, ...]],
    units: tuple[Unit, ...],
    rules: EhrRules,
    rejections: Rejections,
    *,
    check_static: bool,
    progress: Progress = silent,
) -> int:
    """Make the table `events` from the raw tables of SOURCES; returns the number of usable values.

    `stays` needs stay_id, intime, outtime and stays behind as the table `kept_stays`; `static_items` maps HEIGHT and
    WEIGHT to their items; `check_static` holds them to the bounds of the hourly Height and Weight.
    """
    _create_stays(connection, stays)
    _create_targets(connection, variables, static_items, check_static)
    _create_units(connection, units)
    statement = "CREATE TABLE events AS"
    for source in SOURCES:
        path = find_table(mimic_iv, f"icu/{source}")
        create_view(connection, "raw_events", path, EVENT_COLUMNS)
        with reading(path):
            _execute(connection, f"{statement} {_scan_sql(source, rules)}", f"{source}, per cent read", progress)
        count_broken_lines(connection, path, rejections)
        statement = "INSERT INTO events"
    _count_rejections(connection, rejections)
    return connection.execute("SELECT count(value) FROM events").fetchall()[0][0]


def _execute(connection: duckdb.DuckDBPyConnection, sql: str, what: str, progress: Progress) -> None:
    """Execute a long statement in a thread, to tell meanwhile how much of it is done."""
    progress(what, 0, 100)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connection.execute, sql)
        while not wait([running], timeout=_PROGRESS_SECONDS).done:
            progress(what, max(0, min(99, int(connection.query_progress()))), 100)
    running.result()
    progress(what, 100, 100)


def _create_stays(connection: duckdb.DuckDBPyConnection, stays: pd.DataFrame) -> None:
    connection.register("stays_frame", stays[["stay_id", "intime", "outtime"]])
    connection.execute("CREATE TABLE kept_stays AS SELECT * FROM stays_frame")
    connection.unregister("stays_frame")


def _create_targets(
    connection: duckdb.DuckDBPyConnection,
    variables: tuple[Variable, ...],
    static_items: Mapping[int, tuple[StaticItem, ...]],
    check_static: bool,
) -> None:
    connection.execute(
        "CREATE TABLE targets (source VARCHAR, item BIGINT, target UTINYINT, rank UTINYINT, cleaning VARCHAR, "
        "ties VARCHAR, item_unit VARCHAR, low DOUBLE, high DOUBLE)"
    )
    rows = [
        (
            item.source,
            item.item,
            target,
            rank,
            item.cleaning,
            variable.ties,
            item.item_unit,
            variable.low,
            variable.high,
        )
        for target, variable in enumerate(variables)
        for rank, item in enumerate(variable.items)
    ]
    bounds = {variable.name: (variable.low, variable.high) for variable in variables}
    for target, items in static_items.items():
        low, high = bounds[STATIC_VARIABLES[target]] if check_static else (float("-inf"), float("inf"))
        for rank, item in enumerate(items):
            rows.append(("chartevents", item.item, target, rank, "number", "number", item.unit.lower(), low, high))
    connection.executemany("INSERT INTO targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _create_units(connection: duckdb.DuckDBPyConnection, units: tuple[Unit, ...]) -> None:
    indices = {name: [target] for target, name in enumerate(EHR_VARIABLES)}
    for target, name in STATIC_VARIABLES.items():
        indices[name].append(target)
    connection.execute("CREATE TABLE units (target UTINYINT, unit VARCHAR, factor DOUBLE, shift DOUBLE)")
    rows = [(target, unit.unit, unit.factor, unit.offset) for unit in units for target in indices[unit.variable]]
    connection.executemany("INSERT INTO units VALUES (?, ?, ?, ?)", rows)


def _scan_sql(source: str, rules: EhrRules) -> str:
    """One pass over `raw_events`: meet item, stay and unit, clean, judge."""
    words = "".join(f", {literal_sql(word)}" for word in rules.missing_words)
    # Rows whose itemid or stay_id is no number meet the extra NULL row of either side and are counted, not lost.
    return f"""
    WITH met AS (
        SELECT target.*, stay.stay_id, stay.intime, stay.outtime, {instant_sql("charttime")} AS charted_at,
            CASE WHEN value NOT IN (''{words}) THEN value END AS written,
            CASE WHEN item_unit <> '' THEN {_unit_sql(rules)} END AS unit
        FROM raw_events
        JOIN (SELECT * EXCLUDE source FROM targets WHERE source = {literal_sql(source)}
              UNION ALL BY NAME SELECT NULL AS item) AS target
            ON target.item IS NOT DISTINCT FROM {integer_sql("itemid")}
        JOIN (FROM kept_stays UNION ALL BY NAME SELECT NULL AS stay_id) AS stay
            ON stay.stay_id IS NOT DISTINCT FROM {integer_sql("raw_events.stay_id")}
    ), cleaned AS (
        SELECT met.*, factor, {_clean_sql(rules)} * coalesce(factor, 1) + coalesce(shift, 0) AS number
        FROM met LEFT JOIN units USING (target, unit)
    ), judged AS (
        SELECT *, {_judge_sql(rules)} AS reason FROM cleaned
    )
    SELECT target, rank, item, stay_id, charted_at,
        CASE WHEN reason IS NULL THEN number
            WHEN reason = {_CLIPPED} THEN least(greatest(number, low), high) END AS value,
        CASE WHEN ties = 'text' THEN written END AS written, reason::UTINYINT AS reason
    FROM judged"""


def _unit_sql(rules: EhrRules) -> str:
    return "coalesce(lower(nullif(trim(valueuom), '')), item_unit)" if rules.read_units else "item_unit"


def _clean_sql(rules: EhrRules) -> str:
    """The number that a text means, by the cleaning of its item; NULL where it means none."""
    number, plain = number_sql("written"), r"regexp_full_match(written, '\d+(\.\d*)?')"
    first, second = (number_sql(f"split_part(written, '/', {part})") for part in (1, 2))
    clean = {
        "number": number,
        "plain number": f"CASE WHEN {plain} THEN {number} END",
        # Pressures may be charted as "systolic/diastolic".
        "first of a/b": first,
        "second of a/b": f"CASE WHEN contains(written, '/') THEN {second} ELSE {number} END",
        "percent": f"{number} / 100",
        "percent above 1": f"CASE WHEN {number} > 1 THEN {number} / 100 ELSE {number} END",
        "saturation": f"CASE WHEN {plain} THEN CASE WHEN {number} <= 1 THEN {number} * 100 ELSE {number} END END",
        # Below 79 a body temperature in Fahrenheit cannot be, so that a smaller number must be Celsius.
        "fahrenheit from 79": f"CASE WHEN {number} >= 79 THEN ({number} - 32) * 5 / 9 ELSE {number} END",
    }
    for name, scores in rules.scores.items():
        labels = " ".join(f"WHEN {literal_sql(label)} THEN {score:.17g}" for label, score in scores.items())
        clean[name] = f"CASE written {labels} ELSE {number if rules.scores_may_be_numbers else 'NULL'} END"
    cases = " ".join(f"WHEN {literal_sql(name)} THEN {sql}" for name, sql in clean.items())
    return f"(CASE cleaning {cases} END)"


def _judge_sql(rules: EhrRules) -> str:
    unit_unknown = "unit IS NOT NULL AND factor IS NULL" if rules.read_units else "false"
    beyond = _CLIPPED if rules.out_of_bounds == "clipped" else _BOUNDS
    return (
        f"CASE WHEN item IS NULL THEN {_ITEM} WHEN stay_id IS NULL THEN {_STAY} WHEN charted_at IS NULL THEN {_TIME} "
        f"WHEN written IS NULL THEN {_EMPTY} WHEN number IS NULL THEN {_NUMBER} WHEN {unit_unknown} THEN {_UNIT} "
        f"WHEN charted_at > outtime + to_microseconds({round(rules.late_hours * 3.6e9)}) THEN {_LATE} "
        f"WHEN number < low OR number > high THEN {beyond} END"
    )


def _count_rejections(connection: duckdb.DuckDBPyConnection, rejections: Rejections) -> None:
    rows = connection.execute(
        "SELECT reason, count(*), min(item), list_sort(list(DISTINCT stay_id) FILTER (WHERE stay_id IS NOT NULL))[:?] "
        "FROM events WHERE reason IS NOT NULL GROUP BY reason, item ORDER BY reason, item",
        [NUM_EXAMPLES],
    ).fetchall()
    for reason, count, item, stay_ids in rows:
        names = [f"itemid {item} of stay_id {stay}" for stay in stay_ids or ()]
        record = rejections.exclude if reason in _NO_FAULT else rejections.add
        record(REASONS[reason], count, where=WHERE, examples=names[:1])
