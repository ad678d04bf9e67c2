"""What a site may tell of its training part before the first round: sums, counts, and what it keeps to itself.

The sums behind the EHR normalisation are those that the preparation took, of all measurements of the training stays;
number, mean and deviation in statistics.json give them back. Demographics and label counts come from the cohort's own
tables. An item with too few training patients behind it, or that the site will not tell, is named and left out.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from client.cohort import STATISTICS, Cohort, open_cohort
from client.dataset import SampleSet
from client.normalisation import OwnScales, own_scales
from client.records import SiteRecords
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, TASK_CLASSES, Task
from federation.agreement import Scale
from federation.pooled import MINIMUM_CELL
from federation.site_statistics import CATEGORIES, MEASURES, Moments, SiteStatistics, items_of

OUTLIER_IQR = 1.5
"""Values beyond a quartile by more than so many interquartile ranges take no part, as in the preparation."""

_NO_SPREAD = 1e-6
"""z-scores that were only centred, and are no more than rounding."""


def site_statistics(
    records: SiteRecords, task: Task, *, minimum_cell: int = MINIMUM_CELL, withheld: Sequence[str] = ()
) -> SiteStatistics:
    """The site's statistics, each item of at least `minimum_cell` training patients.

    withheld: items that the site refuses to tell, as `federation.agreement.items_of` names them, or the beginning of
    some (`ehr`, `labels`). EHR and demographics are of the whole cohort that the site's z-scores were made with, labels
    of the site's own samples. Raises ValueError for an unknown item or an impossible minimum, CohortError for a cohort
    whose statistics.json lacks numbers.
    """
    refused = _refused(task, withheld)
    if minimum_cell < 1:
        raise ValueError(f"expected a minimum cell of 1 patient or more, found {minimum_cell}; the rule is 10")
    cohort = open_cohort(records.path, verify_regions=False)
    own = own_scales(cohort)
    hidden = dict.fromkeys(refused, "the site refuses")
    few = f"fewer than {minimum_cell} training patients"

    def keep(item: str, num_patients: Sequence[int]) -> bool:
        """Whether an item may be told, behind whose numbers are so many patients each; notes why not."""
        if item not in hidden and any(0 < number < minimum_cell for number in num_patients):
            hidden[item] = few
        return item not in hidden

    hidden |= {f"ehr/{name}": "the site does not chart it" for name in records.gaps.variables}
    ehr, measures, groups = _cohort_sums(records.path, _checksums(cohort))
    labels = _labels(records, task)
    told = {name: values for name, (values, patients) in groups.items() if keep(f"demographics/{name}", patients)}
    return SiteStatistics(
        site=records.name,
        task=task,
        source=own.source,
        profile=str(cohort.manifest.get("profile", "")),
        minimum_cell=minimum_cell,
        schema=own.schema,
        ehr={name: sums for name, (sums, patients) in ehr.items() if keep(f"ehr/{name}", [patients])},
        demographics={
            name: sums for name, (sums, patients) in measures.items() if keep(f"demographics/{name}", [patients])
        },
        categories={column: count for counts in told.values() for column, count in counts.items()},
        labels={name: counts for name, (counts, patients) in labels.items() if keep(f"labels/{name}", patients)},
        withheld=hidden,
    )


Patients = int
EhrSums = Mapping[str, tuple[Moments, Patients]]
Categories = Mapping[str, tuple[Mapping[str, int], Sequence[Patients]]]


@lru_cache(maxsize=8)
def _cohort_sums(path: Path, checksums: tuple[str, ...]) -> tuple[EhrSums, EhrSums, Categories]:
    """EHR, measures and categories of a cohort, which sites of a partition share; a changed one has other checksums."""
    cohort = open_cohort(path, verify_regions=False)
    own = own_scales(cohort)
    return _ehr(cohort, own), _measures(cohort, own), _categories(cohort)


def _checksums(cohort: Cohort) -> tuple[str, ...]:
    """Of the files that the sums come from."""
    names = (STATISTICS, "stays.parquet", "demographics.parquet", "ehr_hourly.parquet")
    return tuple(str(cohort.manifest["files"][name]["sha256"]) for name in names)


def _refused(task: Task, withheld: Sequence[str]) -> list[str]:
    items = items_of(task)
    unknown = [name for name in withheld if not any(_is_of(item, name) for item in items)]
    if unknown:
        raise ValueError(
            f"a site may refuse to tell items such as {items[0]}, or all of `ehr`, `demographics` or `labels`; found "
            f"{', '.join(unknown)}"
        )
    return [item for item in items if any(_is_of(item, name) for name in withheld)]


def _is_of(item: str, name: str) -> bool:
    return item == name or item.startswith(f"{name}/")


def _ehr(cohort: Cohort, own: OwnScales) -> dict[str, tuple[Moments, int]]:
    """By variable, the sums behind the normalisation and the training patients with a measured hour."""
    patients = _measured_patients(cohort)
    found = {}
    for name in EHR_VARIABLES:
        scale, (num_patients, varies) = own.ehr[name], patients[name]
        # A value that was only measured before admission is in the sums, but its patient is in no hour: too few.
        num_patients = max(num_patients, 1) if scale.num_values else 0
        # Where there is no spread, the preparation divides by 1; nothing else gives away that the spread is 0.
        flat = scale.sd == 1.0 and not varies
        found[name] = (_moments(scale, flat=flat), num_patients)
    return found


def _moments(scale: Scale, *, flat: bool) -> Moments:
    if not scale.num_values:
        return Moments(count=0, mean=0.0, squares=0.0)
    squares = 0.0 if flat else scale.num_values * scale.sd**2
    return Moments(count=scale.num_values, mean=scale.mean, squares=squares)


def _measured_patients(cohort: Cohort) -> dict[str, tuple[int, bool]]:
    """By variable, training patients with a measured hour, and whether their values differ from one another."""
    measured = ", ".join(f'bool_or("{name}_mask") AS m{k}' for k, name in enumerate(EHR_VARIABLES))
    varying = ", ".join(
        f'bool_or("{name}_mask" AND abs("{name}") > {_NO_SPREAD}) AS v{k}' for k, name in enumerate(EHR_VARIABLES)
    )
    totals = ", ".join(f"count_if(m{k}), coalesce(bool_or(v{k}), false)" for k in range(len(EHR_VARIABLES)))
    hourly = str(cohort.path / "ehr_hourly.parquet")
    with duckdb.connect() as connection:
        connection.register("stays", _training(cohort))
        row = connection.execute(
            f"SELECT {totals} FROM (SELECT subject_id, {measured}, {varying} FROM read_parquet(?) "
            "JOIN stays USING (stay_id) GROUP BY subject_id)",
            [hourly],
        ).fetchall()[0]
    return {name: (int(row[2 * k]), bool(row[2 * k + 1])) for k, name in enumerate(EHR_VARIABLES)}


def _training(cohort: Cohort) -> pd.DataFrame:
    """stay_id, subject_id and age of the cohort's training stays, with images or without."""
    return cohort.stays.loc[cohort.stays.split == "train", ["stay_id", "subject_id", "age"]]


def _demographics(cohort: Cohort) -> pd.DataFrame:
    return _training(cohort).merge(cohort.demographics.drop(columns="age"), on="stay_id")


def _measures(cohort: Cohort, own: OwnScales) -> dict[str, tuple[Moments, int]]:
    """By measure, the sums over the training stays' usual values, and their patients.

    A height or weight with the z-score 0 is a missing one, which the preparation wrote as the mean.
    """
    frame = _demographics(cohort)
    found = {}
    for name in MEASURES:
        values = frame[name].to_numpy(np.float64)
        known = np.ones(len(values), bool) if name == "age" else values != 0
        if name != "age":
            values = values * own.demographics[name].sd + own.demographics[name].mean
        usual = known & _usual(values, known)
        found[name] = (_sums(values[usual]), frame.loc[usual, "subject_id"].nunique())
    return found


def _usual(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are no interquartile outliers among the known ones."""
    if not known.any():
        return known
    first, third = np.quantile(values[known], [0.25, 0.75])
    margin = OUTLIER_IQR * (third - first)
    # A value on the border went through a division and a multiplication since it was last compared.
    slack = 1e-9 * max(1.0, abs(first), abs(third))
    return (values >= first - margin - slack) & (values <= third + margin + slack)


def _sums(values: np.ndarray) -> Moments:
    mean = float(values.mean()) if len(values) else 0.0
    return Moments(count=len(values), mean=mean, squares=float(((values - mean) ** 2).sum()))


def _categories(cohort: Cohort) -> dict[str, tuple[dict[str, int], list[int]]]:
    """By category, the training stays of each column, and the patients of each and of none of them."""
    frame = _demographics(cohort)
    found = {}
    for group, columns in CATEGORIES.items():
        chosen = frame[list(columns)].to_numpy() != 0
        patients = [frame.loc[mask, "subject_id"].nunique() for mask in (*chosen.T, ~chosen.any(axis=1))]
        found[group] = (dict(zip(columns, chosen.sum(axis=0).tolist(), strict=True)), patients)
    return found


def _labels(records: SiteRecords, task: Task) -> Mapping[str, tuple[tuple[int, ...], list[int]]]:
    """By output, the site's training labels of each class and their patients."""
    if task is Task.DISEASE_PROGRESSION:
        split = records.pairs.stay_id.map({number: stay.split for number, stay in records.stays.items()})
        pairs = records.pairs.loc[split == "train"]
        patients = pairs.stay_id.map({number: stay.subject_id for number, stay in records.stays.items()}).to_numpy()
        return {name: _counted(pairs[name].to_numpy(), patients, task) for name in DISEASES}
    samples = SampleSet([records], task, "train")
    patients = np.array([patient for _, patient in samples.patients])
    return {task.value: _counted(samples.labels, patients, task)}


def _counted(labels: np.ndarray, patients: np.ndarray, task: Task) -> tuple[tuple[int, ...], list[int]]:
    classes = [labels == value for value in range(len(TASK_CLASSES[task]))]
    return tuple(int(chosen.sum()) for chosen in classes), [len(np.unique(patients[chosen])) for chosen in classes]
