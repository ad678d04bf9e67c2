"""How much of the known ceiling simple models reach on synthetic hospitals, by what they see.

usage: python benchmarks/synthetic_learnability.py SYNTHETIC COHORT...

SYNTHETIC is the folder that `dipro-fed synthesize` wrote, the cohorts are its hospitals, prepared. The features are
the mean gray value of each region at 32 x 32 pixels (last image before 48 h, and its change since the first) and the
mean of each EHR variable over 48 h with its change from the first to the second day. Logistic regression; ten random
splits by patient; each value of a hospital is standardised there, on its training stays.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from client.cohort import Cohort, open_cohort
from dipro_model.vocabulary import EHR_VARIABLES
from simulation.synthesize.oracles import EVIDENCE, ceilings_of_folders

SIZES, REPEATS = (150, 300, 600), 10


def image_features(cohort: Cohort) -> pd.DataFrame:
    """Region means of the last image before 48 h, and their change since the first; one row a stay."""
    small = cohort.regions[:, :, 3::7, 3::7]
    means = pd.DataFrame(small.mean(axis=(2, 3)))
    means[(means == 0.0)] = np.nan  # an absent region
    means.index = pd.MultiIndex.from_frame(cohort.images[["stay_id", "hours"]])
    early = means[means.index.get_level_values("hours") < 48.0].sort_index()
    filled = early.groupby(level="stay_id").ffill().groupby(level="stay_id").bfill()
    first, last = filled.groupby(level="stay_id").head(1), filled.groupby(level="stay_id").tail(1)
    first, last = first.droplevel("hours"), last.droplevel("hours")
    return last.add_prefix("last ").join((last - first).add_prefix("change "))


def ehr_features(cohort: Cohort) -> pd.DataFrame:
    """Mean of each variable over hours 0 to 48 and its change between the days, and age; one row a stay."""
    hourly = cohort.ehr_hourly[cohort.ehr_hourly.hour < 48]
    names = list(EHR_VARIABLES)
    first, second = (hourly[day].groupby("stay_id")[names].mean() for day in (hourly.hour < 24, hourly.hour >= 24))
    age = cohort.demographics.set_index("stay_id")[["age"]]
    return ((first + second) / 2.0).add_prefix("mean ").join((second - first).add_prefix("trend ")).join(age)


def table_of(cohort: Cohort, hospital: int) -> pd.DataFrame:
    labels = cohort.samples_mortality.set_index("stay_id")[["label"]]
    table = labels.join(image_features(cohort)).join(ehr_features(cohort))
    return table.assign(hospital=hospital).fillna(0.0)


def score(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> float:
    def scaled(table: pd.DataFrame) -> np.ndarray:
        parts = []
        for hospital, rows in table.groupby("hospital"):
            known = train.loc[train.hospital == hospital, columns]
            parts.append((rows[columns] - known.mean()) / (known.std() + 1e-6))
        return pd.concat(parts).loc[table.index].to_numpy()

    model = LogisticRegression(C=0.03, max_iter=2000).fit(scaled(train), train.label)
    return float(roc_auc_score(test.label, model.decision_function(scaled(test))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("cohorts", type=Path, nargs="+")
    arguments = parser.parse_args()
    table = pd.concat([table_of(open_cohort(path), index) for index, path in enumerate(arguments.cohorts)])
    images = [name for name in table if name.startswith(("last ", "change "))]
    ehr = [name for name in table if name.startswith(("mean ", "trend "))] + ["age"]
    last = [name for name in images if name.startswith("last ")]
    sees = {"images": images, "last_image": last, "ehr": ehr}
    sees |= {"last_image_and_ehr": last + ehr, "images_and_ehr": images + ehr}
    folders = sorted(arguments.synthetic.glob("hospital_*"))
    print(f"{len(table)} stays, {int(table.label.sum())} deaths; AUROC of logistic regression / ceiling")
    for size in (size for size in SIZES if size < len(table) - 100):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in EVIDENCE}
        for repeat in range(REPEATS):
            order = np.random.default_rng(repeat).permutation(len(table))
            train, test = table.iloc[order[:size]], table.iloc[order[size:]]
            best = ceilings_of_folders(folders, set(test.index))
            for name, columns in sees.items():
                found[name].append((score(train, test, columns), float(best[name] or np.nan)))
        figures = {name: np.mean(values, axis=0) for name, values in found.items()}
        print(f"{size} stays to learn from: ", end="")
        print(", ".join(f"{name.replace('_', ' ')} {a:.3f} / {b:.3f}" for name, (a, b) in figures.items()))


if __name__ == "__main__":
    main()
