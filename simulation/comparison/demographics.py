"""Sex, age and race group of scored stays: predictions do not hold them, the cohorts that were scored do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from client.cohort import SCHEMA_VERSION, Cohort, CohortError, open_cohort
from client.predictions import Predictions
from simulation.runs import Run
from simulation.sites import site_names

SITES = "sites.json"
"""What a federated run leaves of its sites: their names and cohorts."""

AGES = (("under 50", 0, 50), ("50 to 64", 50, 65), ("65 to 79", 65, 80), ("80 and over", 80, np.inf))
"""Age groups: name, from, below; in years at the stay."""

UNKNOWN = "unknown"
ATTRIBUTES = ("sex", "age", "race group")


@dataclass(frozen=True, kw_only=True, eq=False)
class Demographics:
    """Groups of the scored samples, by attribute; an attribute without a source is left out, and the notes say why."""

    groups: Mapping[str, Shaped[np.ndarray, " sample"]]
    """By attribute, each sample's group as text."""
    notes: tuple[str, ...]


def read_demographics(runs: Sequence[Run], predictions: Predictions, cohorts: Sequence[Path] = ()) -> Demographics:
    """The groups of these samples, from `cohorts` where they are given, else from the cohorts that the runs name.

    A cohort serves the site that has its name, the only one given serves all sites, and any other site is served by the
    one cohort that holds its stays. Raises CohortError where a cohort that was given cannot be read, and where a site
    finds its stays in none of them or in several.
    """
    sites = list(dict.fromkeys(predictions.site.tolist()))
    try:
        opened = _given(cohorts, predictions, sites) if cohorts else _named_by_runs(runs, sites)
        tables = {
            site: _table(cohort, predictions.select(predictions.site == site), site) for site, cohort in opened.items()
        }
    except CohortError as error:
        if cohorts:
            raise
        return Demographics(groups={}, notes=(f"{_MISSING} {error}.",))
    if not tables:
        return Demographics(groups={}, notes=(_MISSING + " " + _GIVE,))
    whole = pd.concat(tables.values()).set_index(["site", "stay_id"])
    keys = pd.MultiIndex.from_arrays([predictions.site, predictions.stay_id])
    rows = whole.loc[keys]
    old = [str(cohort.path) for cohort in opened.values() if not _has_groups(cohort)]
    known = ATTRIBUTES if not old else ("age",)
    notes = (
        f"Sex and race group are missing: {', '.join(dict.fromkeys(old))} has no table of groups (schema version below "
        f"{SCHEMA_VERSION}); prepare it again.",
    )
    return Demographics(groups={name: rows[name].to_numpy() for name in known}, notes=notes if old else ())


_MISSING = "Scores by sex, age and race group are missing:"
_GIVE = "no run says which cohorts it was scored on. Give them with --cohort PATH, once for each cohort."


def _named_by_runs(runs: Sequence[Run], sites: Sequence[str]) -> dict[str, Cohort]:
    """The sites' cohorts as the first run that names them all says; none where no run does."""
    for run in runs:
        path = run.path / SITES
        if path.is_file():
            places = _read_sites(path)
            if set(sites) <= set(places):
                opened = {place: open_cohort(place, verify_regions=False) for place in {places[site] for site in sites}}
                return {site: opened[places[site]] for site in sites}
    return {}


def _read_sites(path: Path) -> dict[str, str]:
    """Cohort by site. Raises CohortError where the file does not say."""
    try:
        return {entry["name"]: str(entry["cohort"]) for entry in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, KeyError):
        raise CohortError(
            f"{path}: expected a list of sites with `name` and `cohort`, found something else; give the cohorts with "
            "--cohort PATH"
        ) from None


def _given(paths: Sequence[Path], predictions: Predictions, sites: Sequence[str]) -> dict[str, Cohort]:
    names = site_names([path.resolve() for path in paths])
    opened = {name: open_cohort(path, verify_regions=False) for name, path in zip(names, paths, strict=True)}
    return {site: _serving(opened, predictions, site) for site in sites}


def _serving(opened: Mapping[str, Cohort], predictions: Predictions, site: str) -> Cohort:
    """The cohort that a site's patients are in."""
    if site in opened:
        return opened[site]
    if len(opened) == 1:
        return next(iter(opened.values()))
    own = predictions.select(predictions.site == site)
    found = {name: cohort for name, cohort in opened.items() if not _num_strange(cohort, own)}
    if len(found) != 1:
        where = f"in {', '.join(found)}" if found else "in none of them"
        raise CohortError(
            f"--cohort: expected the stays of the site {site} in one of {', '.join(opened)}, found them {where}; give "
            "the cohorts that the runs were scored on"
        )
    return next(iter(found.values()))


def _num_strange(cohort: Cohort, own: Predictions) -> int:
    """Stays that were scored and are not the cohort's: another patient or another split counts, too."""
    stays = cohort.stays
    known = set(zip(stays.stay_id, stays.subject_id, stays.split, strict=True))
    scored = set(zip(own.stay_id.tolist(), own.subject_id.tolist(), own.split.tolist(), strict=True))
    return len(scored - known)


def _table(cohort: Cohort, own: Predictions, site: str) -> pd.DataFrame:
    """One row a scored stay: site, stay_id and the attributes."""
    strange = _num_strange(cohort, own)
    if strange:
        raise CohortError(
            f"{cohort.path}: expected the scored stays of the site {site}, found {strange} of {len(set(own.stay_id))} "
            "missing, or with another patient or split; give the cohort that the runs were scored on with --cohort PATH"
        )
    stays = cohort.stays.loc[cohort.stays.stay_id.isin(own.stay_id), ["stay_id", "age"]]
    table = stays.assign(site=site, age=[age_group(age) for age in stays.age])
    if _has_groups(cohort):
        table = table.merge(cohort.groups[["stay_id", "sex", "race_group"]], on="stay_id", validate="one_to_one")
    return table.rename(columns={"race_group": "race group"})


def _has_groups(cohort: Cohort) -> bool:
    return cohort.manifest["schema_version"] >= SCHEMA_VERSION


def age_group(age: float) -> str:
    """The name of the age group; `unknown` for an age that is not recorded."""
    return next((name for name, low, high in AGES if low <= age < high), UNKNOWN)
