"""One cohort that the partition's tests split."""

from pathlib import Path

import pytest

from client.cohort import Cohort, open_cohort
from tests.make_cohort import write_cohort


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 patients: 24 train, 12 validate, 12 test, half of each died, in three care units."""
    return write_cohort(tmp_path_factory.mktemp("partition") / "whole", num_patients=48, num_images=3, seed=5)


@pytest.fixture(scope="session")
def cohort(folder: Path) -> Cohort:
    return open_cohort(folder)
