"""Step 4, the demographics: 17 columns of each stay, z-scored or one-hot, in the vocabulary's order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import duckdb
import numpy as np
import pandas as pd

from client.cohort import TABLES
from client.prepare.events import HEIGHT, WEIGHT
from client.prepare.rejections import Rejections
from client.prepare.variables import StaticItem
from dipro_model.vocabulary import DEMOGRAPHICS

WHERE = "demographics"
"""The stage under which rejections are counted."""

_MEASURES = ("age", "height", "weight")
_CATEGORIES = ("gender", "race_group", "language", "marital_status")
_SIGNIFICANT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class DemographicRules:
    """How a stay's demographics are found and scaled."""

    height: tuple[StaticItem, ...]
    """Items that give the height, in order of preference."""
    weight: tuple[StaticItem, ...]
    """Items that give the weight, in order of preference."""
    body_size: Literal["within bounds", "unchecked"]
    """Whether height and weight must lie within the bounds of the hourly variables Height and Weight."""
    one_instant: Literal["first item", "largest"]
    """Of the values charted at the first instant: that of the first item in order, or the largest of all items."""
    outlier_iqr: float
    """Values beyond a quartile by more than this many interquartile ranges stay out of mean and standard deviation."""
    statistics_over: Literal["train", "all"]
    """Whose stays give means, standard deviations and most frequent categories."""
    race_groups: Mapping[str, str]
    """The group of each race as it is written in admissions."""


@dataclass(frozen=True, kw_only=True)
class DemographicStatistics:
    """What the demographics are scaled and completed with."""

    mean: dict[str, float]
    """Of age (years), height (cm), weight (kg), without interquartile outliers."""
    sd: dict[str, float]
    """Sample standard deviation of the same; 1 where there is none to divide by."""
    most_frequent: dict[str, str | None]
    """The category that stands in where none is recorded; None where nobody has one."""


def body_sizes(connection: duckdb.DuckDBPyConnection, rules: DemographicRules) -> pd.DataFrame:
    """Height (cm) and weight (kg) of each stay that has one: the first in time among the table `measurements`.

    Columns stay_id, height, weight; NaN where not measured.
    """
    # Preference among one instant's values: by item and then size, or by size alone.
    order = "rank, value DESC" if rules.one_instant == "first item" else "value DESC"
    frame = connection.execute(
        f"""SELECT stay_id, max(value) FILTER (WHERE target = {HEIGHT}) AS height,
            max(value) FILTER (WHERE target = {WEIGHT}) AS weight
        FROM (
            SELECT stay_id, target, value FROM measurements WHERE target IN ({HEIGHT}, {WEIGHT})
            QUALIFY row_number() OVER (PARTITION BY stay_id, target ORDER BY charted_at, {order}) = 1
        ) GROUP BY stay_id ORDER BY stay_id"""
    ).df()
    return frame.astype({"stay_id": "int64", "height": "float64", "weight": "float64"})


def raw_demographics(
    stays: pd.DataFrame, sizes: pd.DataFrame, rules: DemographicRules, rejections: Rejections
) -> pd.DataFrame:
    """One row a stay, unscaled: stay_id, age, height, weight, gender, race_group, language, marital_status.

    A race without a group is counted and then treated like a missing one.
    """
    frame = stays[["stay_id", "age", "gender", "race", "language", "marital_status"]].merge(
        sizes, on="stay_id", how="left"
    )
    frame = frame.assign(race_group=[rules.race_groups.get(race) for race in frame["race"]])
    ungrouped = frame["race"].notna() & frame["race_group"].isna()
    _reject(frame.loc[ungrouped], "race belongs to no group of the profile", rejections)
    return frame.loc[:, ["stay_id", *_MEASURES, *_CATEGORIES]]


def demographic_statistics(frame: pd.DataFrame, stay_ids: pd.Series, rules: DemographicRules) -> DemographicStatistics:
    """Statistics of the rows of `raw_demographics` whose stay is among `stay_ids`."""
    counted = frame[frame["stay_id"].isin(stay_ids)]
    usual = {
        name: _without_outliers(pd.Series(counted.loc[:, name]).to_numpy("float64"), rules.outlier_iqr)
        for name in _MEASURES
    }
    return DemographicStatistics(
        mean={name: _rounded(values.mean() if len(values) else 0.0) for name, values in usual.items()},
        sd={name: _rounded(values.std(ddof=1) if len(values) > 1 else 0.0) or 1.0 for name, values in usual.items()},
        # Of equally frequent categories, the first in alphabetical order.
        most_frequent={name: next(iter(counted.loc[:, name].dropna().mode()), None) for name in _CATEGORIES},
    )


def scale_demographics(frame: pd.DataFrame, statistics: DemographicStatistics, rejections: Rejections) -> pd.DataFrame:
    """`demographics` in the cohort's schema, in the order of `frame`, the rows of `raw_demographics`.

    A missing measure becomes the mean, a missing category the most frequent one; a category without a column of its
    own is 0 in all of its columns, and counted.
    """
    scaled = {"stay_id": frame["stay_id"]}
    for name in _MEASURES:
        values = frame[name].astype("float64").fillna(statistics.mean[name])
        scaled[name] = (values - statistics.mean[name]) / statistics.sd[name]
    for name in _CATEGORIES:
        columns = {column: column.removeprefix(f"{name}_") for column in DEMOGRAPHICS if column.startswith(f"{name}_")}
        values = frame[name].where(frame[name].notna(), statistics.most_frequent[name])
        foreign = values.notna() & ~values.isin(list(columns.values()))
        _reject(frame.loc[foreign], f"{name} has no column for the category", rejections)
        scaled |= {column: (values == category).astype("float64") for column, category in columns.items()}
    return pd.DataFrame(scaled).loc[:, TABLES["demographics"].names]


def _without_outliers(values: np.ndarray, iqr: float) -> np.ndarray:
    values = values[~np.isnan(values)]
    if not len(values):
        return values
    first, third = np.quantile(values, [0.25, 0.75])
    margin = iqr * (third - first)
    return values[(values >= first - margin) & (values <= third + margin)]


def _rounded(value: float) -> float:
    """`value` to 12 digits: the same whatever order it was summed in."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _reject(rows: pd.DataFrame, reason: str, rejections: Rejections) -> None:
    rejections.add(reason, len(rows), where=WHERE, examples=[f"stay_id {name}" for name in rows["stay_id"].head()])
