"""What a simulated site lacks of what its cohort holds, and what its records then are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from client.cohort import STATISTICS, Cohort, CohortError
from dipro_model.vocabulary import EHR_VARIABLES

MIN_IMAGES = 2
"""Every task compares radiographs, so a site with fewer of each stay has no sample."""


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What a site lacks; the default lacks nothing."""

    variables: tuple[str, ...] = ()
    """EHR variables that are never charted here."""
    max_images: int | None = None
    """Radiographs of a stay at most: its first ones, as though the later ones were never taken. None: all."""
    no_region_labels: bool = False
    """True: what a pair's report compares is known of the chest as a whole, but not region by region."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.variables if name not in EHR_VARIABLES]
        if unknown or len(set(self.variables)) < len(self.variables):
            raise ValueError(
                f"expected different EHR variables that a site lacks, found {', '.join(unknown or self.variables)}; "
                f"choose among {', '.join(EHR_VARIABLES)}"
            )
        if self.max_images is not None and self.max_images < MIN_IMAGES:
            raise ValueError(
                f"expected {MIN_IMAGES} or more images of a stay, because every task compares two, found "
                f"{self.max_images}; a site without radiographs cannot train"
            )


NO_GAPS = Gaps()
"""A site that has all that its cohort holds."""


def read_gaps(facts: Mapping[str, Any]) -> Gaps:
    """Gaps as `dataclasses.asdict` and JSON leave them, with a list for a tuple."""
    return Gaps(**{**facts, "variables": tuple(facts["variables"])})


def images_taken(images: pd.DataFrame, gaps: Gaps) -> pd.DataFrame:
    """The rows of a cohort's `images` that a site with these gaps has: the first ones of each stay, in their order."""
    if gaps.max_images is None:
        return images
    place = images.sort_values(["stay_id", "hours"]).groupby("stay_id").cumcount()
    return images.loc[place.reindex(images.index) < gaps.max_images]


def pairs_seen(pairs: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cohort's `pairs` whose later image, and so the earlier one, is among these."""
    return pairs.loc[pairs.second_dicom_id.isin(images.dicom_id)]


def uncharted_values(cohort: Cohort, gaps: Gaps) -> dict[str, np.float32]:
    """What stands in every hour for each variable that the site lacks.

    It is what the preparation writes for a stay in which the variable was never measured: the variable's fill value as
    a z-score of the cohort. Such stays are therefore the same with and without the gap. Raises CohortError where the
    cohort's statistics do not say.
    """
    known = cohort.statistics.get("ehr", {})
    values = {}
    for name in gaps.variables:
        statistic = known.get(name, {})
        if not {"fill", "mean", "sd"} <= statistic.keys():
            raise CohortError(
                f"{cohort.path / STATISTICS}: expected mean, sd and fill of {name}, to fill it in at a site that lacks "
                "it, found none; add them (docs/cohort.md), or let the site lack something else"
            )
        values[name] = np.float32((statistic["fill"] - statistic["mean"]) / statistic["sd"])
    return values
