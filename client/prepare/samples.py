"""Which stays are samples of the two tasks on a whole stay, and their labels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from client.cohort import Windows
from client.prepare.rejections import Rejections

WHERE = "samples"
"""The stage under which exclusions are counted."""


@dataclass(frozen=True, kw_only=True)
class SampleRules:
    """Which stays a model predicts mortality and length of stay for, and what it sees of a stay or of a pair.

    Row h of the hourly EHR holds what was charted in [h, h + 1) hours after ICU admission.
    """

    stay_image_hours: float = 48.0
    """A model of a whole stay sees the images taken before this hour."""
    stay_hours: int = 48
    """It sees this many rows of the hourly EHR, from row 0 on."""
    min_images: int = 2
    """A stay is a sample where it has at least this many kept images before `stay_image_hours`."""
    pair_hours_before: float = 1.0
    """A model of a pair sees the rows h of the hourly EHR from the hour of the first image minus this ..."""
    pair_hours_after: float = 0.0
    """... to the hour of the second image plus this. With 0, nothing later than one hour after that image enters."""
    length_of_stay_days: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, float("inf"))
    """Edges of the classes of length of stay: class i holds [edge i, edge i + 1). Other stays have no label."""

    @property
    def windows(self) -> Windows:
        """What a cohort's manifest says about the samples."""
        return Windows(
            stay_hours=self.stay_hours,
            stay_image_hours=self.stay_image_hours,
            pair_hours_before=self.pair_hours_before,
            pair_hours_after=self.pair_hours_after,
        )


def build_samples(
    stays: pd.DataFrame, images: pd.DataFrame, rules: SampleRules, rejections: Rejections
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples of mortality and of length of stay: stay_id, label, split, in the order of stay_id.

    `stays` needs stay_id, los_days, mortality_inhospital and split; `images` are the kept images (stay_id, hours).
    """
    seen = images.loc[images["hours"] < rules.stay_image_hours, "stay_id"].value_counts()
    enough = seen.index[seen >= rules.min_images]
    few = images.loc[~images["stay_id"].isin(enough), "stay_id"].drop_duplicates()
    reason = f"stay with fewer than {rules.min_images} images in {rules.stay_image_hours:g} h"
    rejections.exclude(reason, len(few), where=WHERE, examples=_names(few))
    sampled = stays.loc[stays["stay_id"].isin(enough)].sort_values("stay_id")
    lengths = length_of_stay_classes(sampled["los_days"], rules)
    outside = sampled.loc[lengths < 0, "stay_id"]
    rejections.exclude("stay longer or shorter than every class", len(outside), where=WHERE, examples=_names(outside))
    mortality = sampled["mortality_inhospital"]
    return _samples(sampled, mortality), _samples(sampled.loc[lengths >= 0], lengths.loc[lengths >= 0])


def length_of_stay_classes(los_days: pd.Series, rules: SampleRules) -> pd.Series:
    """The class of each length of stay, -1 where it lies in none."""
    edges = np.asarray(rules.length_of_stay_days)
    classes = np.searchsorted(edges, los_days, side="right") - 1
    return pd.Series(np.where(classes < len(edges) - 1, classes, -1), index=los_days.index)


def _samples(stays: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    frame = pd.DataFrame({"stay_id": stays["stay_id"], "label": labels.astype("int8"), "split": stays["split"]})
    return frame.reset_index(drop=True)


def _names(stay_ids: pd.Series) -> list[str]:
    return [f"stay_id {stay}" for stay in stay_ids.head()]
