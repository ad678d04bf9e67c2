"""What each site of a partition has, counted, and what it lacks to take part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from client.cohort import Cohort
from client.gaps import NO_GAPS, Gaps
from dipro_model.vocabulary import EHR_VARIABLES, SPLITS, TASK_CLASSES, Task
from simulation.partition.manifest import PartitionSite, SplitCounts
from simulation.partition.patients import COUNTED, charted_by_stay, read_patients


@dataclass(frozen=True, kw_only=True)
class Part:
    """The patients of one site, before anything is counted."""

    name: str
    subjects: np.ndarray
    """int64 [patient], patients with radiographs."""
    groups: tuple[str, ...] = ()
    gaps: Gaps = NO_GAPS


class Counter:
    """Counts parts of one cohort for one task; the cohort's tables are read once."""

    def __init__(self, cohort: Cohort, task: Task, name: str) -> None:
        self.cohort, self.task, self.name = cohort, task, name
        self._tables: dict[Gaps, pd.DataFrame] = {}

    def patients(self, gaps: Gaps = NO_GAPS) -> pd.DataFrame:
        """`read_patients` of the cohort."""
        if gaps not in self._tables:
            self._tables[gaps] = read_patients(self.cohort, self.task, gaps)
        return self._tables[gaps]

    @cached_property
    def charted(self) -> pd.DataFrame:
        return charted_by_stay(self.cohort)

    def count(self, parts: Sequence[Part]) -> pd.DataFrame:
        """Rows (place of the site, split), all of them; columns patients, those of COUNTED, and the labels."""
        seen = [self.patients(part.gaps).loc[part.subjects].assign(site=place) for place, part in enumerate(parts)]
        rows = pd.concat(seen).drop(columns="class").assign(patients=1)
        every = pd.MultiIndex.from_product([range(len(parts)), SPLITS], names=["site", "split"])
        return pd.DataFrame(rows.groupby(["site", "split"]).sum()).reindex(every, fill_value=0)

    def site(self, part: Part, counts: pd.DataFrame, *, whole_cohort: bool = False) -> PartitionSite:
        """One part as the manifest has it; `counts` are its rows of `count`, by split."""
        split = self.patients().loc[part.subjects, "split"]
        return PartitionSite(
            name=part.name,
            cohort=self.name,
            whole_cohort=whole_cohort,
            groups=part.groups,
            gaps=part.gaps,
            patients={name: tuple(sorted(split.index[split == name].tolist())) for name in SPLITS},
            counts={name: self._split_counts(counts.T.to_dict()[name]) for name in SPLITS},
            charted=self._charted(part),
        )

    def _split_counts(self, row: Mapping[str, int]) -> SplitCounts:
        labels = {word: int(row[f"label_{value}"]) for value, word in enumerate(TASK_CLASSES[self.task])}
        return SplitCounts(patients=int(row["patients"]), labels=labels, **{name: int(row[name]) for name in COUNTED})

    def _charted(self, part: Part) -> Mapping[str, float]:
        stays = self.charted.loc[self.charted.subject_id.isin(part.subjects), list(EHR_VARIABLES)]
        shares = stays.mean() if len(stays) else stays.sum()
        return {name: 0.0 if name in part.gaps.variables else round(float(shares[name]), 4) for name in EHR_VARIABLES}


def shortcomings(counts: pd.DataFrame, names: Sequence[str], task: Task, min_patients: int) -> list[str]:
    """What keeps sites of `Counter.count` from taking part, in words, sites without patients first."""
    labels = [column for column in counts.columns if str(column).startswith("label_")]
    found = []
    for place, name in enumerate(names):
        own = counts.loc[place]
        if not own["patients"].sum():
            found.append(f"{name} has no patient")
            continue
        empty = [split for split in SPLITS if own.loc[split, "samples"] == 0]
        if empty:
            found.append(f"{name} has no sample for {task} in {' and '.join(empty)}")
        if "train" not in empty and (own.loc["train", labels] > 0).sum() < 2:
            found.append(f"{name} has one class only among its training samples")
        if "train" not in empty and own.loc["train", "patients"] < min_patients:
            found.append(f"{name} has fewer than {min_patients} training patients")
    return sorted(found, key=lambda words: not words.endswith("has no patient"))
