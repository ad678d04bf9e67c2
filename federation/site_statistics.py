"""What a site discloses of its training part before the first round, and whether that can be."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Self

import pydantic

from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, TASK_CLASSES, Task

MEASURES = ("age", "height", "weight")
"""Demographics that are numbers."""
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    group: tuple(name for name in DEMOGRAPHICS if name.startswith(f"{group}_"))
    for group in ("gender", "race_group", "language", "marital_status")
}
"""The fixed one-hot columns of each category; a stay without a column of its own is 0 in all of them."""


class AgreementError(ValueError):
    """Sites that cannot train together, or statistics that cannot be; names the sites and what differs."""


class JsonText:
    """To and from JSON text that loses no digit; reading refuses what is missing, unknown or of another type."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return pydantic.TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
        except pydantic.ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
            raise AgreementError(f"{cls.__name__}: expected its JSON, found a text that is not ({faults})") from None


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over some values, in their unit."""

    count: int
    mean: float
    """0 of no value."""
    squares: float
    """Sum of squared deviations from the mean."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the values mean; sites that differ in any of it cannot train one model."""

    variables: tuple[str, ...]
    """EHR variables in the order of the columns."""
    columns: tuple[str, ...]
    """Demographic columns, one-hot ones among them."""
    windows: Mapping[str, float]
    """Hours that a sample reads, see `client.cohort.Windows`."""
    fills: Mapping[str, float]
    """By variable, the value before the first measurement, in the variable's unit: another unit shows here."""


@dataclass(frozen=True, kw_only=True)
class SiteStatistics(JsonText):
    """What one site discloses of its training part before the first round."""

    site: str
    task: Task
    source: str
    """SHA-256 of the cohort's statistics.json; sites cut from one cohort share it, and its statistics count once."""
    profile: str
    """Name of the profile that prepared the cohort."""
    minimum_cell: int
    """Patients that each item tells of at least."""
    schema: Schema
    ehr: Mapping[str, Moments]
    """By variable, of the measurements behind the cohort's own normalisation."""
    demographics: Mapping[str, Moments]
    """By measure, of the training stays' values without interquartile outliers of this cohort."""
    categories: Mapping[str, int]
    """By one-hot column, the cohort's training stays that have it."""
    labels: Mapping[str, tuple[int, ...]]
    """By output, the site's training labels of each class."""
    withheld: Mapping[str, str]
    """By item (`ehr/Albumin`, `demographics/race_group`, `labels/mortality`), why the site does not disclose it."""


def label_outputs(task: Task) -> tuple[str, ...]:
    """Names of the outputs whose labels are counted."""
    return DISEASES if task is Task.DISEASE_PROGRESSION else (task.value,)


def items_of(task: Task) -> tuple[str, ...]:
    """Everything that a site may disclose or withhold."""
    return (
        *(f"ehr/{name}" for name in EHR_VARIABLES),
        *(f"demographics/{name}" for name in chain(MEASURES, CATEGORIES)),
        *(f"labels/{output}" for output in label_outputs(task)),
    )


def check_statistics(site: SiteStatistics) -> None:
    """Raise AgreementError for numbers that no site can have, or an item that is neither told nor withheld."""
    wrong = [
        name
        for name, each in chain(site.ehr.items(), site.demographics.items())
        if each.count < 0 or each.squares < 0 or not math.isfinite(each.mean) or not math.isfinite(each.squares)
    ]
    wrong += [name for name, count in site.categories.items() if count < 0]
    num_classes = len(TASK_CLASSES[site.task])
    wrong += [name for name, counts in site.labels.items() if len(counts) != num_classes or min(counts) < 0]
    said = [f"ehr/{name}" for name in site.ehr] + [f"demographics/{name}" for name in site.demographics]
    said += [f"labels/{name}" for name in site.labels] + list(site.withheld)
    said += [f"demographics/{group}" for group, names in CATEGORIES.items() if set(names) <= site.categories.keys()]
    expected = set(items_of(site.task))
    if wrong or set(said) != expected or len(said) != len(expected) or set(site.schema.fills) != set(EHR_VARIABLES):
        unsaid = sorted(expected ^ set(said))
        raise AgreementError(
            f"{site.site}: expected numbers that can be for each of the {len(expected)} items, or that it is withheld; "
            f"impossible: {', '.join(wrong) or 'none'}; missing or unknown: {', '.join(unsaid) or 'none'}"
        )


def differences(one: SiteStatistics, other: SiteStatistics) -> Iterator[str]:
    """What keeps two sites from training together, item by item."""
    if one.task is not other.task:
        yield f"task {one.task} and {other.task}"
    yield from schema_differences(one.schema, other.schema)


def schema_differences(one: Schema, other: Schema) -> Iterator[str]:
    """How what values mean differs, item by item."""
    for what, left, right in (
        ("variables", one.variables, other.variables),
        ("demographic columns", one.columns, other.columns),
    ):
        if left != right:
            unshared = sorted(set(left) ^ set(right))
            yield f"{what} {', '.join(unshared) if unshared else 'in another order'}"
    for what, mine, theirs in (
        ("window", one.windows, other.windows),
        ("fill value (or unit) of", one.fills, other.fills),
    ):
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                yield f"{what} {name}: {mine.get(name, 'none')} and {theirs.get(name, 'none')}"
