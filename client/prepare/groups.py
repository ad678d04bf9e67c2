"""Step 5, the groups: what hospitals and their patients differ by, as plain words of each stay."""

from collections.abc import Mapping

import pandas as pd

from client.cohort import TABLES
from client.prepare.rejections import Rejections

WHERE = "groups"
"""The stage under which unknown categories are counted."""

UNKNOWN = "unknown"


def stay_groups(stays: pd.DataFrame, race_groups: Mapping[str, str], rejections: Rejections) -> pd.DataFrame:
    """`groups` in the cohort's schema: the categories of each row of `read_stays`, as written in the raw tables.

    Where none is recorded, or the raw tables lack the column, the category is `unknown`; such stays are counted by
    column. It is no fault: `strict` goes on. The race is that group of the profile that demographics have.
    """
    races = pd.Series([race_groups.get(race) for race in stays["race"]], index=stays.index, dtype=object)
    named = stays.assign(race_group=races, sex=stays["gender"])
    columns = [name for name in TABLES["groups"].names if name != "stay_id"]
    for name in columns:
        missing = named.loc[named[name].isna(), "stay_id"]
        examples = [f"stay_id {stay}" for stay in missing.head()]
        rejections.exclude(f"{name} not recorded, so unknown", len(missing), where=WHERE, examples=examples)
    words = named.loc[:, columns].astype(object).where(named.loc[:, columns].notna(), UNKNOWN)
    return words.assign(stay_id=named["stay_id"]).loc[:, TABLES["groups"].names]
