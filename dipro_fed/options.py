"""Options and small helpers that several subcommands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dipro_model.vocabulary import Task

Cohorts = Annotated[list[Path], typer.Argument(help="Prepared cohorts, one a site.", metavar="COHORT...")]
TaskName = Annotated[str, typer.Option("--task", help="disease_progression, mortality or length_of_stay.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; must not exist or be empty.")]
NumSites = Annotated[int | None, typer.Option("--sites", help="Split a single cohort into this many sites by patient.")]
PartitionSeed = Annotated[int, typer.Option("--partition-seed", help="Seed of the split into sites.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings in YAML; see configs/.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="One setting, KEY=VALUE; may be given again.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run, instead of the settings'.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="A run's folder, a checkpoint of one, or a released checkpoint file.", metavar="CHECKPOINT"),
]
OwnTask = Annotated[
    str | None,
    typer.Option("--task", help="What a released checkpoint predicts: disease_progression, mortality, length_of_stay."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def require_task(name: str | None) -> "Task | None":
    """The task of this name. Raises ValueError for a name that none has."""
    from dipro_model.vocabulary import Task

    if name is not None and name not in list(Task):
        raise ValueError(f"--task: expected one of {', '.join(Task)}, found {name!r}")
    return None if name is None else Task(name)


def require_split(name: str) -> str:
    """The name of a split. Raises ValueError for any other."""
    from dipro_model.vocabulary import SPLITS

    if name not in SPLITS:
        raise ValueError(f"--split: expected one of {', '.join(SPLITS)}, found {name!r}")
    return name


def require_fresh(folder: Path) -> Path:
    """A folder that a run may fill. Raises ValueError where something is in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or an empty folder, found files in it; choose another --out")
    return folder


def gather_overrides(**named: object) -> list[str]:
    """KEY=VALUE for the options that were given, `__` in their names standing for a dot."""
    return [f"{key.replace('__', '.')}={value}" for key, value in named.items() if value is not None]
