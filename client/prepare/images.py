"""Which radiographs a cohort keeps: from the metadata table to images placed in stays and spaced in time."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from client.prepare.rejections import Rejections

METADATA_TABLE = "mimic-cxr-2.0.0-metadata"
METADATA_COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
WHERE = "images"
"""The stage under which rejections are counted."""

_HOUR = pd.Timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Which radiographs and which stays enter a cohort."""

    view_position: str = "AP"
    """The view kept; the portable chest radiograph of an intensive care unit is antero-posterior."""
    longer_than_hours: float = 48.0
    """A stay must last longer than this."""
    outlier_iqr: float = 1.5
    """A stay is left out where its length lies more than this many interquartile ranges beyond a quartile."""
    quartiles_over: Literal["all", "train"] = "train"
    """Whose stays, of those long enough, give the quartiles: everyone's, or those of training patients only."""
    min_images: int = 2
    """A stay needs at least this many images."""
    max_images: int = 14
    """A stay may have at most this many images."""
    min_gap_hours: float = 8.0
    """An image is kept where it was taken at least this long after the image before."""
    max_gap_hours: float = 96.0
    """A stay with a gap of this length, or longer, between neighbouring images is left out."""
    limits_on: Literal["candidates", "kept"] = "kept"
    """What "the image before" and the number of images mean: with "kept" only images that are kept themselves, with
    "candidates" also those that the smallest gap removes, so that a stay may end up with a single image."""


def find_radiographs(metadata: pd.DataFrame, rules: ImageRules, rejections: Rejections) -> pd.DataFrame:
    """The latest radiograph of the wanted view of every study: dicom_id, subject_id, study_id, taken.

    `metadata` holds METADATA_COLUMNS as text. Rows without usable identifiers or time, and repeated rows of an image,
    are rejected and counted.
    """
    frame = _typed(metadata, rejections)
    blank = frame["ViewPosition"].isna()
    _exclude(frame.loc[blank], "view position blank", rejections)
    frame = frame.loc[~blank]
    other = frame["ViewPosition"] != rules.view_position
    _exclude(frame.loc[other], f"view position not {rules.view_position}", rejections)
    frame = frame.loc[~other].sort_values(["subject_id", "study_id", "taken"], kind="stable")
    earlier = frame.duplicated(["subject_id", "study_id"], keep="last")
    _exclude(frame.loc[earlier], "not the latest view of its study", rejections)
    return frame.loc[~earlier, ["dicom_id", "subject_id", "study_id", "taken"]].reset_index(drop=True)


def identifiers(text: pd.Series) -> pd.Series:
    """The whole numbers written in a column of text, NaN where it holds none."""
    written = _numbers(text)
    return written.where(written % 1 == 0)


def study_times(date: pd.Series, time: pd.Series) -> pd.Series:
    """Date (YYYYMMDD) and time (HHMMSS, leading zeros lost, fractions of a second dropped) as instants, NaT if bad."""
    seconds = _numbers(time)
    # A number outside a day's range cannot be a time; letting it through would overflow the cast to whole numbers.
    digits = seconds.where(seconds.between(0, 240000)).fillna(-1).astype("int64")
    text = date.astype("string").str.strip() + " " + digits.astype("string").str.zfill(6)
    return pd.to_datetime(text, format="%Y%m%d %H%M%S", errors="coerce")


def place_in_stays(
    radiographs: pd.DataFrame, stays: pd.DataFrame, rules: ImageRules, rejections: Rejections
) -> pd.DataFrame:
    """Radiographs taken in a long enough stay: dicom_id, subject_id, stay_id, study_id, taken, hours.

    `stays` needs stay_id, subject_id, intime, outtime, los_days. Both ends of a stay belong to it. `hours` are since
    ICU admission. An image on the very border of two stays goes to the later one.
    """
    long = stays["los_days"] * 24 > rules.longer_than_hours
    _exclude_stays(stays.loc[~long, "stay_id"], f"stay not over {rules.longer_than_hours:g} h", rejections)
    windows = stays.loc[long, ["stay_id", "subject_id", "intime", "outtime"]]
    merged = radiographs.merge(windows, on="subject_id").sort_values("intime", kind="stable")
    inside = merged.loc[merged["taken"].between(merged["intime"], merged["outtime"])]
    inside = inside.drop_duplicates("dicom_id", keep="last")
    _exclude(
        radiographs.loc[~radiographs["dicom_id"].isin(inside["dicom_id"])], "outside every eligible stay", rejections
    )
    placed = inside.assign(hours=(inside["taken"] - inside["intime"]) / pd.Timedelta(days=1) * 24)
    columns = ["dicom_id", "subject_id", "stay_id", "study_id", "taken", "hours"]
    return placed.sort_values(["subject_id", "stay_id", "taken", "dicom_id"])[columns].reset_index(drop=True)


def usual_length(stays: pd.DataFrame, rules: ImageRules) -> tuple[float, float]:
    """The shortest and the longest stay, in days, that are no outliers among those of `stays` that are long enough."""
    lengths = stays.loc[stays["los_days"] * 24 > rules.longer_than_hours, "los_days"]
    if lengths.empty:
        return 0.0, float("inf")
    first, third = lengths.quantile(0.25), lengths.quantile(0.75)
    margin = rules.outlier_iqr * (third - first)
    return float(first - margin), float(third + margin)


def select_images(
    placed: pd.DataFrame,
    stays: pd.DataFrame,
    rules: ImageRules,
    rejections: Rejections,
    *,
    length_limits: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """The images that are kept, of those of `place_in_stays` that can be read: the same columns and order.

    `length_limits` are those of `usual_length`; None keeps stays of any length.
    """
    if length_limits is not None:
        placed = _drop_unusual_stays(placed, stays, length_limits, rejections)
    if rules.limits_on == "candidates":
        counted = _limit_number(placed, rules, rejections)
        gaps = _gaps(counted)
        return _limit_gaps(_drop_crowded(counted, gaps, rules, rejections), gaps, rules, rejections)
    kept = _drop_crowded(placed, _gaps_to_kept(placed, rules), rules, rejections)
    spaced = _limit_gaps(kept, _gaps(kept), rules, rejections)
    return _limit_number(spaced, rules, rejections)


def _numbers(text: pd.Series) -> pd.Series:
    return pd.Series(pd.to_numeric(text, errors="coerce"), index=text.index)


def _typed(metadata: pd.DataFrame, rejections: Rejections) -> pd.DataFrame:
    frame = metadata.assign(
        subject_id=identifiers(metadata.loc[:, "subject_id"]),
        study_id=identifiers(metadata.loc[:, "study_id"]),
        taken=study_times(metadata.loc[:, "StudyDate"], metadata.loc[:, "StudyTime"]),
        ViewPosition=metadata["ViewPosition"].str.strip().replace("", None),
    )
    nameless = frame[["dicom_id", "subject_id", "study_id"]].isna().any(axis=1)
    _reject(frame.loc[nameless], "image without a usable dicom_id, subject_id or study_id", rejections)
    timeless = ~nameless & frame["taken"].isna()
    _reject(frame.loc[timeless], "study date or time unreadable", rejections)
    frame = frame.loc[~nameless & ~timeless].astype({"subject_id": "int64", "study_id": "int64"})
    frame = frame.sort_values("taken", kind="stable")
    repeated = frame.duplicated("dicom_id", keep="last")
    _reject(frame.loc[repeated], "metadata row repeated", rejections)
    return frame.loc[~repeated]


def _drop_unusual_stays(
    placed: pd.DataFrame, stays: pd.DataFrame, limits: tuple[float, float], rejections: Rejections
) -> pd.DataFrame:
    usual = stays.loc[stays["los_days"].between(*limits), "stay_id"]
    unusual = ~placed["stay_id"].isin(usual)
    _exclude_stays(placed.loc[unusual, "stay_id"], "length of stay is an interquartile outlier", rejections)
    return placed.loc[~unusual]


def _limit_number(placed: pd.DataFrame, rules: ImageRules, rejections: Rejections) -> pd.DataFrame:
    number = placed["stay_id"].value_counts()
    few = placed["stay_id"].isin(number.loc[number < rules.min_images].index)
    many = placed["stay_id"].isin(number.loc[number > rules.max_images].index)
    _exclude_stays(placed.loc[few, "stay_id"], f"stay with fewer than {rules.min_images} images", rejections)
    _exclude_stays(placed.loc[many, "stay_id"], f"stay with more than {rules.max_images} images", rejections)
    return placed.loc[~few & ~many]


def _gaps(placed: pd.DataFrame) -> pd.Series:
    """Time since the image before in the same stay, NaT for a stay's first image."""
    first = placed["stay_id"] != placed["stay_id"].shift()
    return placed.loc[:, "taken"].diff().mask(first)


def _gaps_to_kept(placed: pd.DataFrame, rules: ImageRules) -> pd.Series:
    """Time since the last image of the stay that is itself kept, NaT for a stay's first image."""
    gaps: list[pd.Timedelta | None] = []
    last_kept: dict[int, pd.Timestamp] = {}
    for stay, taken in zip(placed["stay_id"], placed["taken"], strict=True):
        gaps.append(taken - last_kept[stay] if stay in last_kept else None)
        if stay not in last_kept or taken - last_kept[stay] >= rules.min_gap_hours * _HOUR:
            last_kept[stay] = taken
    return pd.Series(pd.to_timedelta(pd.Series(gaps, dtype="object")).to_numpy(), index=placed.index)


def _drop_crowded(placed: pd.DataFrame, gaps: pd.Series, rules: ImageRules, rejections: Rejections) -> pd.DataFrame:
    crowded = gaps < rules.min_gap_hours * _HOUR
    _exclude(placed.loc[crowded], f"less than {rules.min_gap_hours:g} h after the image before", rejections)
    return placed.loc[~crowded]


def _limit_gaps(placed: pd.DataFrame, gaps: pd.Series, rules: ImageRules, rejections: Rejections) -> pd.DataFrame:
    wide = placed.loc[gaps.reindex(placed.index) >= rules.max_gap_hours * _HOUR, "stay_id"]
    _exclude_stays(wide, f"stay with {rules.max_gap_hours:g} h or more between images", rejections)
    return placed.loc[~placed["stay_id"].isin(wide)]


def _reject(rows: pd.DataFrame, reason: str, rejections: Rejections) -> None:
    rejections.add(reason, len(rows), where=WHERE, examples=_names(rows))


def _exclude(rows: pd.DataFrame, reason: str, rejections: Rejections) -> None:
    rejections.exclude(reason, len(rows), where=WHERE, examples=_names(rows))


def _names(rows: pd.DataFrame) -> list[str]:
    return [f"dicom_id {name}" for name in rows["dicom_id"].head()]


def _exclude_stays(stay_ids: pd.Series, reason: str, rejections: Rejections) -> None:
    unique = stay_ids.drop_duplicates()
    examples = [f"stay_id {stay}" for stay in unique.head()]
    rejections.exclude(reason, len(unique), where=WHERE, examples=examples)
