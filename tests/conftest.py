"""Fixtures that several test folders share."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Shapes in signatures are checked in tests; the hook sees only modules that are imported after it.
install_import_hook("dipro_model", "beartype.beartype")

LONGEST = (
    "deployment/test_kills.py",
    "simulation/test_resume.py",
    "server/test_resume.py",
    "deployment/test_live.py",
    "server/test_masked_rounds.py",
    "simulation/test_flower.py",
    "server/test_run_settings.py",
    "server/test_site_privacy.py",
    "server/test_rounds.py",
    "client/prepare/test_ehr.py",
    "dipro_model/test_golden.py",
)
"""Files that take longest, begun first, so that at the end no worker is left alone with one of them."""

SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Reference data that may not be distributed with the project."""
    if not SHARED.is_dir():
        pytest.skip("reference data are not here: they lie beside the project in `shared` and may not be distributed")
    return SHARED


@pytest.fixture(scope="session")
def demo_linked(shared_folder: Path) -> Path:
    """Real ICU records and real radiographs, MIMIC-shaped, with made-up links between them."""
    return shared_folder / "data" / "mimic_demo_linked"


@pytest.fixture(scope="session")
def published_cohort(demo_linked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real-input fixture prepared as published."""
    from client.prepare.pipeline import prepare

    sources = (demo_linked / name for name in ("mimiciv", "mimic-cxr-jpg", "chest-imagenome"))
    return prepare(*sources, tmp_path_factory.mktemp("real") / "published", profile="published", workers=1).path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
