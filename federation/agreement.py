"""What sites agree on before they train: one normalisation, one schema, the label counts behind the class weights.

Each site sends `SiteStatistics` of its training part; `agree` pools them into an `Agreement`, the same whatever the
order of the sites. Sums travel as number, mean and sum of squared deviations, which pool without loss (Chan, Golub and
LeVeque 1979), where raw sums of squares would cancel. docs/agreement.md says what equals pooled preparation, and what
cannot.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from dipro_model.losses import ClassWeights, Weighting, class_weights_from_counts
from dipro_model.vocabulary import TASK_CLASSES, Task
from federation.site_statistics import (
    CATEGORIES,
    MEASURES,
    AgreementError,
    JsonText,
    Moments,
    Schema,
    SiteStatistics,
    check_statistics,
    differences,
    label_outputs,
    schema_differences,
)

_SIGNIFICANT_DIGITS = 12
"""As the preparation rounds its statistics."""
_LEAST_SPREAD = 1e-10
"""Of the mean; below it a deviation is the rounding of values that are all the same."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """z-score = (value - mean) / sd."""

    mean: float
    sd: float
    num_values: int
    """Values behind both."""


@dataclass(frozen=True, kw_only=True)
class Agreement(JsonText):
    """What all sites train with."""

    task: Task
    schema: Schema
    sources: Mapping[str, str]
    """By site, the SHA-256 of the statistics that its z-scores were made with."""
    profiles: Mapping[str, str]
    minimum_cells: Mapping[str, int]
    ehr: Mapping[str, Scale]
    """By variable; one that no site with measurements discloses is missing here and left out of training (always 0)."""
    demographics: Mapping[str, Scale]
    """The same by measure."""
    categories: Mapping[str, int]
    labels: Mapping[str, tuple[int, ...]]
    """By output, labels of each class at the sites that disclose them."""
    withheld: Mapping[str, Mapping[str, str]]
    """By site, what it does not disclose, and why."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything agreed; a site that trains with another one is refused."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Items that are always 0 in training, because no site with values discloses them."""
        variables = [f"ehr/{name}" for name in self.schema.variables if name not in self.ehr]
        return (*variables, *(f"demographics/{name}" for name in MEASURES if name not in self.demographics))

    def reading_as(self, other: "Agreement") -> "Agreement":
        """What these sites train with where values are read as a model of other sites reads them.

        Raises AgreementError where that model's values have another schema.
        """
        if other.schema != self.schema:
            raise AgreementError(
                "the start's values have another schema than the sites' "
                f"({'; '.join(schema_differences(other.schema, self.schema))}); "
                "expected one that was trained on cohorts of the same preparation"
            )
        return replace(self, ehr=other.ehr, demographics=other.demographics, withheld={})

    def class_weights(self, weighting: Weighting) -> ClassWeights:
        """The same class weights for all sites, from the agreed label counts.

        A class of which no count is disclosed, though some site withholds its own, counts as the most that those sites
        can have without disclosing it, so that it is not left out of the loss.
        """
        table = [self._counts(output) for output in label_outputs(self.task)]
        return class_weights_from_counts(
            weighting,
            progression=table if self.task is Task.DISEASE_PROGRESSION else None,
            mortality=table[0] if self.task is Task.MORTALITY else None,
        )

    def _counts(self, output: str) -> list[int]:
        hidden = [site for site, items in self.withheld.items() if f"labels/{output}" in items]
        most = sum(max(1, self.minimum_cells[site] - 1) for site in hidden)
        return [count or most for count in self.labels[output]]

    def report(self) -> list[str]:
        """Sentences for people: which site disclosed what not, what is left out, what is not as pooled."""
        lines = [
            f"{site} does not disclose {', '.join(sorted(each for each in items if items[each] == reason))}: {reason}"
            for site, items in sorted(self.withheld.items())
            for reason in sorted(set(items.values()))
        ]
        if self.left_out:
            lines.append(f"left out of training, since no site with values discloses it: {', '.join(self.left_out)}")
        if published := sorted(site for site, profile in self.profiles.items() if profile == "published"):
            lines.append(
                f"prepared by the published profile, whose EHR statistics are of all stays and not of the training "
                f"part only: {', '.join(published)}"
            )
        if len(set(self.profiles.values())) > 1:
            named = ", ".join(f"{site} by {profile}" for site, profile in sorted(self.profiles.items()))
            lines.append(f"the cohorts were prepared by different profiles, so values may differ in meaning: {named}")
        return lines


class Affine(NamedTuple):
    """agreed z-score = factor * own z-score + shift."""

    factor: float
    shift: float


def affine(own: Scale, agreed: Scale | None) -> Affine:
    """From a site's own z-scores to the agreed ones; to 0 where the item is left out."""
    if agreed is None:
        return Affine(0.0, 0.0)
    return Affine(own.sd / agreed.sd, (own.mean - agreed.mean) / agreed.sd)


def pool_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of the union: sums of squares within the parts and between their means. Exact up to rounding.

    `math.fsum` rounds once, so the order of the parts does not change a bit.
    """
    parts = [part for part in parts if part.count]
    count = sum(part.count for part in parts)
    if not count:
        return Moments(count=0, mean=0.0, squares=0.0)
    mean = math.fsum(part.count * part.mean for part in parts) / count
    between = [part.count * (part.mean - mean) ** 2 for part in parts]
    return Moments(count=count, mean=mean, squares=math.fsum([*(part.squares for part in parts), *between]))


def agree(sites: Sequence[SiteStatistics]) -> Agreement:
    """Pool what the sites disclose, in whatever order they come.

    Means and standard deviations are those of the union of the values behind what is disclosed, to 1e-9. Raises
    AgreementError, naming the sites, where a name comes twice, where tasks or schemas differ, or numbers cannot be.
    """
    sites = sorted(sites, key=lambda each: each.site)
    _check_sites(sites)
    by_source = {source: [each for each in sites if each.source == source] for source in {s.source for s in sites}}

    def disclosed(kind: Callable[[SiteStatistics], Mapping[str, Moments]], name: str) -> list[Moments]:
        """One of each cohort, from the first of its sites that discloses the item."""
        found = (next((kind(each)[name] for each in group if name in kind(each)), None) for group in by_source.values())
        return [moments for moments in found if moments is not None]

    first = sites[0]
    ehr = {name: _ehr_scale(disclosed(_ehr, name), sites, name) for name in first.schema.variables}
    measures = {name: _measure_scale(disclosed(_demographics, name), sites, name) for name in MEASURES}
    columns = {
        name: sum(next((s.categories[name] for s in group if name in s.categories), 0) for group in by_source.values())
        for name in chain(*CATEGORIES.values())
    }
    return Agreement(
        task=first.task,
        schema=first.schema,
        sources={each.site: each.source for each in sites},
        profiles={each.site: each.profile for each in sites},
        minimum_cells={each.site: each.minimum_cell for each in sites},
        ehr={name: scale for name, scale in ehr.items() if scale},
        demographics={name: scale for name, scale in measures.items() if scale},
        categories=columns,
        labels={output: _label_sum(sites, output) for output in label_outputs(first.task)},
        withheld={each.site: dict(each.withheld) for each in sites if each.withheld},
    )


def _ehr(site: SiteStatistics) -> Mapping[str, Moments]:
    return site.ehr


def _demographics(site: SiteStatistics) -> Mapping[str, Moments]:
    return site.demographics


def _ehr_scale(parts: Sequence[Moments], sites: Sequence[SiteStatistics], name: str) -> Scale | None:
    """Population standard deviation, as the preparation takes it; a variable that nobody measured is only centred."""
    pooled = pool_moments(parts)
    if not pooled.count:
        hidden = any(f"ehr/{name}" in each.withheld for each in sites)
        return None if hidden else Scale(mean=sites[0].schema.fills[name], sd=1.0, num_values=0)
    return _scale(pooled, pooled.count)


def _measure_scale(parts: Sequence[Moments], sites: Sequence[SiteStatistics], name: str) -> Scale | None:
    """Sample standard deviation, as the preparation takes it for demographics."""
    pooled = pool_moments(parts)
    if not pooled.count and any(f"demographics/{name}" in each.withheld for each in sites):
        return None
    return _scale(pooled, pooled.count - 1)


def _scale(pooled: Moments, divisor: int) -> Scale:
    """The sd is 1 where there is none to divide by, as in the preparation."""
    sd = math.sqrt(pooled.squares / divisor) if divisor > 0 else 0.0
    sd = _rounded(sd) if sd > _LEAST_SPREAD * abs(pooled.mean) else 1.0
    return Scale(mean=_rounded(pooled.mean), sd=sd, num_values=pooled.count)


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _label_sum(sites: Sequence[SiteStatistics], output: str) -> tuple[int, ...]:
    counts = [each.labels[output] for each in sites if output in each.labels]
    return (
        tuple(sum(column) for column in zip(*counts, strict=True))
        if counts
        else (0,) * len(TASK_CLASSES[sites[0].task])
    )


def _check_sites(sites: Sequence[SiteStatistics]) -> None:
    names = [each.site for each in sites]
    if not names or len(set(names)) < len(names):
        raise AgreementError(f"expected statistics of sites of different names, found {', '.join(names) or 'none'}")
    for each in sites:
        check_statistics(each)
    first = sites[0]
    for other in sites[1:]:
        found = list(differences(first, other))
        if found:
            raise AgreementError(
                f"{first.site} and {other.site} cannot train one model: {'; '.join(found)}. Prepare both with "
                "one profile and this version of dipro-fed"
            )
