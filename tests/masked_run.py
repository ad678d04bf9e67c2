"""A federation whose updates are masked, in this process: sites with long-term keys, and what the server receives."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message

from client.app import app
from federation.messages import RawArray
from federation.settings import RunFiles, RunSettings, to_run_config
from server.app import coordinate
from simulation.identities import make_identities
from simulation.in_process import InProcessGrid
from tests.small_run import last_weights, small_settings

MASKED = ("secure_aggregation.enabled=true", "strategy.norm_factor=0")


def masked_settings(*overrides: str) -> RunSettings:
    return small_settings(*MASKED, *overrides)


def masked_federate(
    folder: Path, cohorts: list[Path], settings: RunSettings, **grid_options
) -> dict[str, torch.Tensor]:
    """As `federate`, with a signing key for every site; the floating tensors of the last model."""
    grid = masked_grid(folder, cohorts, settings, **grid_options)
    coordinate(grid, settings, folder)
    return last_weights(folder)


def masked_grid(folder: Path, cohorts: list[Path], settings: RunSettings, **grid_options) -> InProcessGrid:
    keys = {cohort.name: folder.parent / "keys" / cohort.name for cohort in cohorts}
    make_identities(folder.parent / "authority", keys)
    nodes = [
        {
            "site": cohort.name,
            "cohort": str(cohort),
            "folder": str(folder / cohort.name),
            "identity": str(keys[cohort.name]),
        }
        for cohort in cohorts
    ]
    return InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(folder))), nodes, **grid_options)


def arrays_of(message: Message) -> Mapping[str, np.ndarray]:
    """The arrays that a message carries, by record and name."""
    return {
        f"{key}/{name}": array.numpy()
        for key, record in message.content.array_records.items()
        for name, array in record.items()
        if isinstance(array, RawArray) or array.dtype
    }


Tamper = Callable[[Message], Message | None]
