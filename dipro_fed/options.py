"""Options and small helpers that several subcommands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.gaps import Gaps
    from dipro_model.vocabulary import Task
    from simulation.partition.schemes import Scheme

Cohorts = Annotated[list[Path], typer.Argument(help="Prepared cohorts, one a site.", metavar="COHORT...")]
TaskName = Annotated[str, typer.Option("--task", help="disease_progression, mortality or length_of_stay.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; must not exist or be empty.")]
NumSites = Annotated[int | None, typer.Option("--sites", help="Split a single cohort into this many sites by patient.")]
PartitionSeed = Annotated[int, typer.Option("--partition-seed", help="Seed of the split into sites.")]
SchemeWord = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        help="How sites differ: iid, log_normal, power_law, dirichlet, care_unit, admission_period, insurance, "
        "race_group, modality_gaps or cohorts; docs/partitions.md says what each imitates.",
    ),
]
Alpha = Annotated[float | None, typer.Option("--alpha", help="Of dirichlet: the smaller, the more sites differ.")]
Sigma = Annotated[float | None, typer.Option("--sigma", help="Of log_normal: sd of the logarithm of a site's size.")]
Exponent = Annotated[
    float | None, typer.Option("--exponent", help="Of power_law: site i has a share of i to the power of minus this.")
]
GapWords = Annotated[
    list[str] | None,
    typer.Option(
        "--gap",
        help="What a site lacks, by its number: 2:variables=Albumin,pH or 3:images=2 or 4:region_labels; may be given "
        "again.",
    ),
]
MinPatients = Annotated[
    int | None, typer.Option("--min-patients", help="Fewest training patients that a site must have.")
]
PartitionPath = Annotated[
    Path | None, typer.Option("--partition", help="Sites as in this manifest, or folder of `dipro-fed partition`.")
]
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


def scheme_of(
    name: str | None,
    *,
    num_sites: int | None,
    alpha: float | None = None,
    sigma: float | None = None,
    exponent: float | None = None,
    gaps: list[str] | None = None,
    min_patients: int | None = None,
) -> "Scheme | None":
    """The scheme that the options describe, None where none is asked for. Raises ValueError for what does not fit."""
    from simulation.partition.schemes import Scheme, SchemeName

    own = {"alpha": alpha, "sigma": sigma, "exponent": exponent, "gaps": gaps, "min_patients": min_patients}
    given = {key: value for key, value in own.items() if value is not None}
    word = None if name is None else name.replace("-", "_").lower()
    if word is None:
        if given:
            option = next(iter(given)).replace("_", "-").replace("gaps", "gap")
            raise ValueError(f"--{option}: expected a --scheme beside it, found none")
        return None
    if word not in list(SchemeName):
        raise ValueError(f"--scheme: expected one of {', '.join(SchemeName)}, found {name!r}")
    for option, scheme in (("alpha", "dirichlet"), ("sigma", "log_normal"), ("exponent", "power_law")):
        if option in given and word != scheme:
            raise ValueError(f"--{option} belongs to --scheme {scheme}, found --scheme {word}; leave it out")
    if gaps is not None:
        given["gaps"] = _gaps(gaps)
    return Scheme(name=SchemeName(word), num_sites=num_sites, **given)


def _gaps(texts: list[str]) -> dict[int, "Gaps"]:
    """What sites lack, by number; several texts of one site add up."""
    from dataclasses import replace

    from client.gaps import NO_GAPS
    from simulation.partition.schemes import known_variables

    gaps: dict[int, Gaps] = {}
    for text in texts:
        site, _, what = text.partition(":")
        key, _, value = what.partition("=")
        if not site.strip().isdecimal():
            raise ValueError(
                f"--gap {text}: expected the number of a site, a colon and what it lacks, as in 3:images=2"
            )
        before = gaps.get(int(site), NO_GAPS)
        if key == "variables" and value:
            after = replace(before, variables=known_variables([*before.variables, *value.split(",")]))
        elif key == "images" and value.isdecimal():
            after = replace(before, max_images=int(value))
        elif key == "region_labels" and not value:
            after = replace(before, no_region_labels=True)
        else:
            raise ValueError(f"--gap {text}: expected variables=NAME,NAME or images=NUMBER or region_labels")
        gaps[int(site)] = after
    return gaps


def require_fresh(folder: Path) -> Path:
    """A folder that a run may fill. Raises ValueError where something is in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or an empty folder, found files in it; choose another --out")
    return folder


def require_fresh_or_unfinished(folder: Path) -> Path:
    """A folder that a run may fill, or that one was interrupted in. Raises ValueError where something else is in it."""
    from federation.run_folder import RUN, read_run

    if (folder / RUN).is_file():
        if read_run(folder).status == "finished":
            raise ValueError(f"{folder}: the run in this folder is finished; choose another --out for a new one")
        return folder
    return require_fresh(folder)


def gather_overrides(**named: object) -> list[str]:
    """KEY=VALUE for the options that were given, `__` in their names standing for a dot."""
    return [f"{key.replace('__', '.')}={value}" for key, value in named.items() if value is not None]
