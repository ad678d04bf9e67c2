"""The project as Flower's app: the code that travels to every site, and the settings that go with a run."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

from federation.settings import RunFiles, RunSettings, to_run_config

NO_NETWORK = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Variables that keep Flower from calling its makers."""


def project_folder() -> Path:
    """The folder whose pyproject.toml describes the Flower app. Raises ValueError where only packages are installed."""
    folder = Path(__file__).parents[1]
    path = folder / "pyproject.toml"
    if not path.is_file() or "flwr" not in tomllib.loads(path.read_text()).get("tool", {}):
        raise ValueError(
            f"{folder}: expected the project's pyproject.toml, which `flwr run` bundles the app from; "
            "work from a clone of the project, installed with `make install`"
        )
    return folder


def copy_app(home: Path) -> Path:
    """The code of the app as it is now, and nothing else: what changes in the project meanwhile does not reach the run.

    Server and clients both start from it, and Flower need not search the project's folder, its data and environment
    for files to bundle.
    """
    project, app = project_folder(), home / "app"
    patterns = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    for path in [project / "pyproject.toml", *(path for pattern in patterns for path in project.glob(pattern))]:
        copy = app / path.relative_to(project)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return app


def write_run_config(settings: RunSettings, files: RunFiles, path: Path) -> Path:
    """The settings of a run as `flwr run --run-config` reads them."""
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in to_run_config(settings, files).items()]
    path.write_text("\n".join(lines) + "\n")  # JSON's strings, numbers, true and false are TOML's as well
    return path


def tool(name: str) -> str:
    """A command of this Python environment, whatever PATH says. Raises ValueError where it is not installed."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ValueError(f"{path}: expected Flower's command, found none; install dipro-fed with its dependencies")
    return str(path)
