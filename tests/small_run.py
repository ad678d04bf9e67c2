"""A run that a test can afford: the small backbone, small crops, one thread."""

from collections.abc import Callable
from pathlib import Path

import torch

from client.app import app
from federation.checkpoint import load_checkpoint
from federation.settings import RunFiles, RunSettings, load_settings, to_run_config
from server.app import coordinate
from simulation.in_process import InProcessGrid

SMALL = (
    "model.backbone_depth=10",
    "model.backbone_channels=8",
    "model.crop_pixels=16",
    "model.width=16",
    "training.learning_rate=1e-3",
    "training.accumulated_batches=2",
    "federation.minimum_cell=1",
    # Cohorts written by hand number their patients alike.
    "federation.check_duplicates=false",
)


def small_settings(*overrides: str) -> RunSettings:
    return load_settings(overrides=[*SMALL, *overrides])


def federate(
    folder: Path,
    cohorts: list[Path],
    settings: RunSettings,
    after_round: Callable[[], None] = lambda: None,
    **grid_options,
) -> dict[str, torch.Tensor]:
    """Run the whole federation in this process; the floating tensors of its last model."""
    nodes = [{"site": cohort.name, "cohort": str(cohort), "folder": str(folder / cohort.name)} for cohort in cohorts]
    grid = InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(folder))), nodes, **grid_options)
    coordinate(grid, settings, folder, after_round)
    return last_weights(folder)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_checkpoint(folder / "checkpoints" / "last.pt")
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
