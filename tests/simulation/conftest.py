"""Fixtures of simulations."""

import pytest

from client.records import SiteSpec
from tests.make_cohort import write_cohort


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[SiteSpec]:
    """Two small cohorts of a test file's own."""
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        SiteSpec(name=name, cohort=write_cohort(folder / name, num_patients=16, seed=seed, first_subject=first))
        for name, seed, first in (("north", 1, 100), ("south", 2, 500))
    ]
