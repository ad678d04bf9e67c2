"""The schemes: how patients are given to sites, as pure functions of the patients and a random generator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from client.gaps import Gaps
from dipro_model.vocabulary import EHR_VARIABLES, SPLITS
from simulation.partition.patients import NO_SAMPLE


class SchemeName(StrEnum):
    """How sites differ; docs/partitions.md says what each imitates."""

    IID = "iid"
    LOG_NORMAL = "log_normal"
    POWER_LAW = "power_law"
    DIRICHLET = "dirichlet"
    CARE_UNIT = "care_unit"
    ADMISSION_PERIOD = "admission_period"
    INSURANCE = "insurance"
    RACE_GROUP = "race_group"
    MODALITY_GAPS = "modality_gaps"
    COHORTS = "cohorts"


NATURAL: dict[SchemeName, str] = {
    SchemeName.CARE_UNIT: "first_careunit",
    SchemeName.ADMISSION_PERIOD: "anchor_year_group",
    SchemeName.INSURANCE: "insurance",
    SchemeName.RACE_GROUP: "race_group",
}
"""Column of the cohort's groups by which each natural split is made."""

DRAWN = (SchemeName.LOG_NORMAL, SchemeName.DIRICHLET)
"""Schemes that draw the sites' shares, so that another draw may do where one leaves a site without patients."""

LABORATORY = (
    *("Alanine aminotransferase", "Albumin", "Alkaline phosphate", "Asparate aminotransferase", "Bilirubin"),
    *("Magnesium", "Partial pressure of carbon dioxide", "Partial thromboplastin time", "Troponin-T", "pH"),
)
DEFAULT_GAPS: dict[int, Gaps] = {
    2: Gaps(variables=LABORATORY),
    3: Gaps(max_images=2),
    4: Gaps(no_region_labels=True),
}
"""What sites lack with `modality_gaps` where nobody says otherwise; the other sites lack nothing."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A scheme with its parameters; those of other schemes are ignored."""

    name: SchemeName = SchemeName.IID
    num_sites: int | None = None
    """How many sites; None is a site a group or a cohort, and otherwise not enough."""
    alpha: float = 0.5
    """Of `dirichlet`: the smaller, the more the sites differ."""
    sigma: float = 1.0
    """Of `log_normal`: standard deviation of the logarithm of a site's size."""
    exponent: float = 1.0
    """Of `power_law`: site i has a share proportional to i to the power of minus this."""
    min_patients: int = 1
    """Fewest training patients that a site must have."""
    gaps: Mapping[int, Gaps] = field(default_factory=dict)
    """What sites lack, by number from 1; with any scheme."""

    def __post_init__(self) -> None:
        for name, given, ok, expected in (
            ("--sites", self.num_sites, self.num_sites is None or self.num_sites >= 1, "one site or more"),
            ("--alpha", self.alpha, self.alpha > 0, "a number above 0"),
            ("--sigma", self.sigma, 0 <= self.sigma <= 10, "a number from 0 to 10"),
            ("--exponent", self.exponent, 0 <= self.exponent <= 10, "a number from 0 to 10"),
            ("--min-patients", self.min_patients, self.min_patients >= 1, "one patient or more"),
        ):
            if not ok:
                raise ValueError(f"{name}: expected {expected}, found {given}")

    @property
    def site_gaps(self) -> Mapping[int, Gaps]:
        """Those given, or the scheme's own."""
        return DEFAULT_GAPS if self.name is SchemeName.MODALITY_GAPS and not self.gaps else self.gaps

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that this scheme heeds, beside the gaps."""
        own = {SchemeName.DIRICHLET: "alpha", SchemeName.LOG_NORMAL: "sigma", SchemeName.POWER_LAW: "exponent"}
        names = ["num_sites", *([own[self.name]] if self.name in own else []), "min_patients"]
        return {name: getattr(self, name) for name in names}


def size_shares(scheme: Scheme, num_sites: int, rng: np.random.Generator) -> np.ndarray:
    """float [site]: the share of the patients that each site gets, largest first, of a size skew."""
    if scheme.name is SchemeName.POWER_LAW:
        weights = np.arange(1, num_sites + 1, dtype=float) ** -scheme.exponent
    else:
        weights = np.sort(np.exp(scheme.sigma * rng.standard_normal(num_sites)))[::-1]
    return weights / weights.sum()


def by_size(patients: pd.DataFrame, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int [patient]: the site of each patient where sites differ by size alone.

    Within each split the sites fill up in step with their shares, class after class and the rarest first, so that every
    site gets its share of each class as nearly as whole patients allow.
    """
    sites = np.full(len(patients), -1)
    for split in SPLITS:
        inside = (patients.split == split).to_numpy()
        of_class = {value: np.flatnonzero(inside & (patients["class"] == value)) for value in set(patients["class"])}
        rarest_first = sorted(of_class, key=lambda value: (len(of_class[value]), value))
        order = [rng.permutation(of_class[value]) for value in rarest_first]
        dealt = np.concatenate([np.empty(0, int), *order])
        sites[dealt] = deal(len(dealt), shares)
    return sites


def by_label(patients: pd.DataFrame, alpha: float, num_sites: int, rng: np.random.Generator) -> np.ndarray:
    """int [patient]: the site of each patient under label skew.

    For each class c, p_c ~ Dirichlet(alpha, ..., alpha) over the sites, and the class's patients go to the sites in the
    proportions p_c, in every split alike (Yurochkin et al., arXiv 1905.12022; Li et al., arXiv 2102.02079). Patients
    without a sample follow the sizes that result.
    """
    classes = sorted(set(patients["class"]) - {NO_SAMPLE})
    shares = {value: rng.dirichlet(np.full(num_sites, alpha)) for value in classes}
    number = {value: int((patients["class"] == value).sum()) for value in classes}
    sizes = sum((number[value] * shares[value] for value in classes), np.zeros(num_sites))
    shares[NO_SAMPLE] = sizes / sizes.sum() if classes else np.full(num_sites, 1 / num_sites)
    sites = np.full(len(patients), -1)
    for split in SPLITS:
        for value in (*classes, NO_SAMPLE):
            inside = ((patients.split == split) & (patients["class"] == value)).to_numpy()
            dealt = rng.permutation(np.flatnonzero(inside))
            sites[dealt] = deal(len(dealt), shares[value])
    return sites


def deal(number: int, shares: np.ndarray) -> np.ndarray:
    """int [place]: the site of each of `number` patients in a row; each goes to the site furthest behind its share.

    After any number of patients a site has less than one more than its share of them; of equal sites the first is next.
    """
    given, sites = np.zeros(len(shares)), np.empty(number, int)
    for place in range(number):
        sites[place] = site = int(np.argmax(shares * (place + 1) - given))
        given[site] += 1
    return sites


def merge_groups(sizes: Mapping[str, int], num_sites: int | None) -> list[tuple[str, ...]]:
    """The groups of each site, largest site first: a site a group, small groups merged until `num_sites` are left.

    While there are more sites than asked for, the two with the fewest patients become one; of equally large ones, the
    first in the alphabet. Raises ValueError where there are fewer groups than sites.
    """
    if num_sites is not None and num_sites > len(sizes):
        raise ValueError(
            f"--sites {num_sites}: the cohort has {len(sizes)} groups ({', '.join(sorted(sizes))}), and each is at one "
            f"site; use --sites {len(sizes)} or fewer, or another --scheme"
        )
    merged = [(size, (name,)) for name, size in sizes.items()]
    while num_sites is not None and len(merged) > num_sites:
        (first, some), (second, others), *rest = sorted(merged)
        merged = [*rest, (first + second, tuple(sorted((*some, *others))))]
    return [names for _, names in sorted(merged, key=lambda site: (-site[0], site[1]))]


def known_variables(names: list[str]) -> tuple[str, ...]:
    """EHR variables in the vocabulary's order and spelling, whatever the case. Raises ValueError for one unknown."""
    spelled = {name.lower(): name for name in EHR_VARIABLES}
    unknown = [name for name in names if name.strip().lower() not in spelled]
    if unknown:
        raise ValueError(f"expected EHR variables, found {', '.join(unknown)}; choose among {', '.join(EHR_VARIABLES)}")
    chosen = {spelled[name.strip().lower()] for name in names}
    return tuple(name for name in EHR_VARIABLES if name in chosen)
