"""A site's own z-scores turned into the agreed ones, in memory; the cohort on disk stays as it was prepared."""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from client.cohort import STATISTICS, Cohort, CohortError, open_cohort
from client.records import SiteRecords, StayRecord
from dipro_model.vocabulary import DEMOGRAPHICS, EHR_VARIABLES
from federation.agreement import Agreement, Scale, affine
from federation.site_statistics import MEASURES, AgreementError, Schema

_NEVER_MISSING = "age"
"""The preparation takes no stay without an age; a height or weight that is missing stands as the z-score 0."""


@dataclass(frozen=True, kw_only=True)
class OwnScales:
    """What the z-scores of a cohort were made with."""

    source: str
    """SHA-256 of the cohort's statistics.json."""
    schema: Schema
    ehr: Mapping[str, Scale]
    demographics: Mapping[str, Scale]
    """num_values is not known of these, and 0."""


def own_scales(cohort: Cohort) -> OwnScales:
    """Read them from statistics.json. Raises CohortError naming the numbers that are missing there."""
    ehr, demographics = (_table(cohort, name) for name in ("ehr", "demographics"))
    needed = {f"ehr, {name}, {key}" for name in EHR_VARIABLES for key in ("mean", "sd", "num_values", "fill")}
    needed |= {f"demographics, {key}, {name}" for name in MEASURES for key in ("mean", "sd")}
    found = {f"ehr, {name}, {key}" for name, row in ehr.items() for key in row}
    found |= {f"demographics, {key}, {name}" for key, row in demographics.items() for name in row}
    if missing := sorted(needed - found):
        raise CohortError(
            f"{cohort.path / STATISTICS}: sites that agree on a normalisation need the mean and deviation behind every "
            f"z-score; missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Prepare the cohort "
            "again, or add the numbers (docs/cohort.md)"
        )
    return OwnScales(
        source=cohort.manifest["files"][STATISTICS]["sha256"],
        schema=Schema(
            variables=EHR_VARIABLES,
            columns=DEMOGRAPHICS,
            windows={name: float(hours) for name, hours in asdict(cohort.windows).items()},
            fills={name: float(ehr[name]["fill"]) for name in EHR_VARIABLES},
        ),
        ehr={
            name: Scale(mean=float(row["mean"]), sd=float(row["sd"]), num_values=int(row["num_values"]))
            for name, row in ((name, ehr[name]) for name in EHR_VARIABLES)
        },
        demographics={
            name: Scale(mean=float(demographics["mean"][name]), sd=float(demographics["sd"][name]), num_values=0)
            for name in MEASURES
        },
    )


def _table(cohort: Cohort, name: str) -> dict[str, dict[str, Any]]:
    table = cohort.statistics.get(name, {})
    rows = table.items() if isinstance(table, dict) else ()
    return {key: row for key, row in rows if isinstance(row, dict)}


def agreed_records(records: SiteRecords, agreement: Agreement, *, guest: bool = False) -> SiteRecords:
    """A copy of a site's records with the agreed z-scores, everything else shared with them.

    The given records stay as they are, so that nothing is mapped twice where they are kept between messages. A guest
    took no part in the agreement: a trained model is scored on its patients. Raises AgreementError for an agreement
    that is not this site's or of another schema, CohortError for a cohort without its statistics.
    """
    own = own_scales(open_cohort(records.path, verify_regions=False))
    if guest:
        agreement = replace(agreement, sources={**agreement.sources, records.name: own.source})
    agreed = copy(records)
    agreed.stays = agreed_stays(records.stays, own, agreement, site=records.name)
    return agreed


def check_agreed(site: str, own: OwnScales, agreement: Agreement) -> None:
    """Raises AgreementError where the agreement was not made with this site's present cohort."""
    agreed = agreement.sources.get(site)
    if agreed != own.source or agreement.schema != own.schema:
        found = "another schema" if agreed == own.source else "none" if agreed is None else "another preparation of it"
        raise AgreementError(
            f"{site}: expected an agreement made with the statistics of its present cohort, found one with {found}; "
            "start the run again, so that the sites agree anew"
        )


def agreed_stays(
    stays: Mapping[int, StayRecord], own: OwnScales, agreement: Agreement, *, site: str
) -> dict[int, StayRecord]:
    """The same stays with the agreed z-scores; stays whose own ones are the agreed ones are returned as they are.

    Equal to (value - agreed mean) / agreed sd up to float32, filled hours included, because the fill values are the
    same everywhere. A missing height or weight is the agreed mean, as pooled preparation would have it. Raises
    AgreementError for an agreement that is not this site's.
    """
    check_agreed(site, own, agreement)
    ehr = np.array([affine(own.ehr[name], agreement.ehr.get(name)) for name in EHR_VARIABLES])
    measures = {name: affine(own.demographics[name], agreement.demographics.get(name)) for name in MEASURES}
    if (ehr == (1, 0)).all() and set(measures.values()) == {(1.0, 0.0)}:
        return dict(stays)
    factor, shift = ehr.T
    return {
        number: replace(
            stay,
            ehr=(stay.ehr * factor + shift).astype(np.float32),
            demographics=_agreed_demographics(stay.demographics, measures.items()),
        )
        for number, stay in stays.items()
    }


def _agreed_demographics(row: np.ndarray, measures: Iterable[tuple[str, tuple[float, float]]]) -> np.ndarray:
    agreed = row.copy()
    for name, (factor, shift) in measures:
        place = DEMOGRAPHICS.index(name)
        if row[place] != 0 or name == _NEVER_MISSING:
            agreed[place] = np.float64(row[place]) * factor + shift
    return agreed
