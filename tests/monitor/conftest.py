"""A real run and an empty database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.database import Database, open_database
from tests.make_cohort import write_two_cohorts
from tests.small_run import federate, small_settings


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of two sites."""
    folder = tmp_path_factory.mktemp("real")
    settings = small_settings("federation.rounds=2", "federation.num_sites=2")
    federate(folder / "run", write_two_cohorts(folder / "cohorts"), settings)
    return folder / "run"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = open_database(f"sqlite:///{tmp_path / 'monitor.sqlite'}")
    yield found
    found.close()
