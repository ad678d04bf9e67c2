"""Step 3, the hourly EHR: the table `events` into one row a stay and hour, filled forward, with masks, z-scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb
import pandas as pd
import pyarrow as pa

from client.cohort import TABLES
from client.prepare.variables import Variable

SEED_HOUR = -1
"""Values of the hour before admission seed the forward fill; earlier ones never enter."""

_STAYS_A_BATCH = 5_000
_SIGNIFICANT_DIGITS = 12
"""Threads add in any order, so the last digits of a sum vary; rounding keeps the cohort's files the same every time."""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """Location and spread of one variable, in the model's unit."""

    mean: float
    sd: float
    """Population standard deviation; 1 where there is none to divide by."""
    num_values: int
    """Measurements behind both."""
    fill: float


def settle_instants(connection: duckdb.DuckDBPyConnection, variables: tuple[Variable, ...]) -> None:
    """Replace `events` by `measurements`, one value per stay, item and instant: the largest, or the last as text."""
    by_text = any(variable.ties == "text" for variable in variables)
    value = "coalesce(arg_max(value, written), max(value))" if by_text else "max(value)"
    connection.execute(
        f"CREATE TABLE measurements AS SELECT target, rank, stay_id, charted_at, {value} AS value "
        "FROM events WHERE value IS NOT NULL GROUP BY target, rank, stay_id, charted_at"
    )
    connection.execute("DROP TABLE events")


def gather_hours(connection: duckdb.DuckDBPyConnection, variables: tuple[Variable, ...]) -> None:
    """Make `hours`: stay_id, hour (from SEED_HOUR on), target, value of every hour with a measurement.

    An hour [h, h + 1) since admission holds the last value of the first of the variable's items that was measured in
    it or, of a variable whose hours are sums, the sum of them all.
    """
    summed = ", ".join(str(target) for target in _summed(variables)) or "NULL"
    # The key grows with the item's preference first, with time second; an hour has fewer than 2^40 microseconds.
    connection.execute(
        f"""CREATE TABLE hours AS
        WITH timed AS (
            SELECT stay_id, target, rank, value, epoch_us(charted_at) - epoch_us(intime) AS since
            FROM measurements JOIN kept_stays USING (stay_id) WHERE target < {len(variables)}
        )
        SELECT stay_id, floor(since / 3.6e9)::INTEGER AS hour, target,
            CASE WHEN target IN ({summed}) THEN sum(value)
                ELSE arg_max(value, ((255 - rank)::BIGINT << 40) + since - (floor(since / 3.6e9) * 3.6e9)::BIGINT)
            END AS value
        FROM timed WHERE since >= {SEED_HOUR} * 3600000000 GROUP BY stay_id, hour, target"""
    )


def variable_statistics(
    connection: duckdb.DuckDBPyConnection, variables: tuple[Variable, ...], stay_ids: pd.Series
) -> dict[str, Statistic]:
    """Mean and population standard deviation of each variable over the measurements of the stays `stay_ids`.

    Every settled measurement of a stay counts, also those before admission; of a variable whose hours are sums, every
    hour counts. A variable never measured there, or with no spread, is only centred: its sd is 1 (mean its fill value
    where there is no measurement), so that nothing is divided by zero.
    """
    connection.register("counted_stays", pd.DataFrame({"stay_id": stay_ids.astype("int64")}))
    summed = ", ".join(str(target) for target in _summed(variables)) or "NULL"
    rows = connection.execute(
        f"""SELECT target, count(*), avg(value), stddev_pop(value) FROM (
            SELECT target, stay_id, value FROM measurements
            WHERE target < {len(variables)} AND coalesce(target NOT IN ({summed}), true)
            UNION ALL SELECT target, stay_id, value FROM hours WHERE target IN ({summed})
        ) SEMI JOIN counted_stays USING (stay_id) GROUP BY target"""
    ).fetchall()
    connection.unregister("counted_stays")
    found = {target: (count, _rounded(mean), _rounded(sd)) for target, count, mean, sd in rows}
    return {variable.name: _statistic(variable, *found.get(i, (0, 0.0, 0.0))) for i, variable in enumerate(variables)}


def hourly_batches(
    connection: duckdb.DuckDBPyConnection, variables: tuple[Variable, ...], statistics: Mapping[str, Statistic]
) -> Iterator[tuple[pa.Table, int]]:
    """`ehr_hourly` in the cohort's schema, sorted by stay_id and hour, a few thousand stays at a time.

    Yields (rows, number of stays among them). A stay's rows reach from hour 0 to the hour of its last measurement;
    a stay without any measurement after admission has none.
    """
    connection.execute(
        "CREATE TABLE spans AS SELECT stay_id, max(hour) AS last_hour, "
        "row_number() OVER (ORDER BY stay_id) - 1 AS number FROM hours GROUP BY stay_id"
    )
    num_stays = connection.execute("SELECT count(*) FROM spans").fetchall()[0][0]
    sql = _batch_sql(variables, statistics)
    for first in range(0, num_stays, _STAYS_A_BATCH):
        last = min(first + _STAYS_A_BATCH, num_stays)
        rows = connection.sql(sql, params=[first, last - 1]).to_arrow_table()
        yield rows.cast(TABLES["ehr_hourly"]), last - first


def _batch_sql(variables: tuple[Variable, ...], statistics: Mapping[str, Statistic]) -> str:
    measured, values, masks = [], [], []
    for target, variable in enumerate(variables):
        statistic = statistics[variable.name]
        measured.append(f"max(value) FILTER (WHERE target = {target}) AS v{target}")
        known = f"v{target}" if variable.hour == "sum" else f"last_value(v{target} IGNORE NULLS) OVER so_far"
        score = f"(coalesce({known}, {variable.fill!r}) - {statistic.mean!r}) / {statistic.sd!r}"
        values.append(f'CAST({score} AS FLOAT) AS "{variable.name}"')
        masks.append(f'v{target} IS NOT NULL AS "{variable.name}_mask"')
    return f"""
    WITH chosen AS (SELECT * FROM spans WHERE number BETWEEN ? AND ?),
    grid AS (SELECT stay_id, unnest(range({SEED_HOUR}, last_hour + 1))::INTEGER AS hour FROM chosen),
    wide AS (
        SELECT stay_id, hour, {", ".join(measured)} FROM hours SEMI JOIN chosen USING (stay_id) GROUP BY stay_id, hour
    ), filled AS (
        SELECT stay_id, hour, {", ".join(values + masks)} FROM grid LEFT JOIN wide USING (stay_id, hour)
        WINDOW so_far AS (PARTITION BY stay_id ORDER BY hour ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    )
    SELECT * FROM filled WHERE hour >= 0 ORDER BY stay_id, hour"""


def _summed(variables: tuple[Variable, ...]) -> list[int]:
    return [target for target, variable in enumerate(variables) if variable.hour == "sum"]


def _statistic(variable: Variable, num_values: int, mean: float, sd: float) -> Statistic:
    return Statistic(
        mean=mean if num_values else variable.fill, sd=sd or 1.0, num_values=num_values, fill=variable.fill
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
