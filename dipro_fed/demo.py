"""`dipro-fed demo`: synthetic hospitals to a federated-versus-centralized report, in minutes on two cores.

It runs the other subcommands one after the other and prints each as one would type it.
"""

import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

MARK = ".dipro-fed-demo"
"""Says that a folder was made by a demo and may be replaced by the next one."""

HOSPITALS, PATIENTS, SEED = 3, 100, 1


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo; one of an earlier demo is replaced.")],
) -> None:
    """Synthetic hospitals, prepared, trained centralized, alone and federated, and compared."""
    from deployment.flower_app import project_folder

    start = time.monotonic()
    _fresh(out)
    config = project_folder() / "configs" / "demo.yaml"
    hospitals = [out / "raw" / f"hospital_{number}" for number in range(1, HOSPITALS + 1)]
    cohorts = [out / "cohorts" / folder.name for folder in hospitals]
    common = [*map(str, cohorts), "--task", "mortality", "--config", str(config)]
    _run("synthesize", "--out", out / "raw", "--hospitals", HOSPITALS, "--patients", PATIENTS, "--seed", SEED)
    for folder, cohort in zip(hospitals, cohorts, strict=True):
        sources = ("--mimic-iv", folder / "mimiciv", "--mimic-cxr", folder / "mimic-cxr-jpg")
        _run("prepare", *sources, "--chest-imagenome", folder / "chest-imagenome", "--out", cohort)
    runs = [out / "runs" / "centralized"]
    _run("train", *common, "--out", runs[0])
    for cohort in cohorts:
        runs.append(out / "runs" / f"{cohort.name}-alone")
        _run("train", *common, "--only", cohort.name, "--out", runs[-1])
    runs.append(out / "runs" / "federated")
    _run("simulate", *common, "--out", runs[-1])
    _run("compare", *runs, "--out", out / "report")
    _print_ceiling(hospitals, cohorts)
    typer.echo(f"Everything took {time.monotonic() - start:.0f} s.")


def _run(command: str, *words: object) -> None:
    """One subcommand, printed and run in this process; its errors are raised as they are."""
    from dipro_fed.main import app

    arguments = [command, *map(str, words)]
    typer.secho(f"\n$ dipro-fed {shlex.join(arguments)}", bold=True)
    app(arguments, standalone_mode=False)


def _fresh(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise ValueError(f"{out}: expected a new or empty folder, or one of an earlier demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _print_ceiling(hospitals: list[Path], cohorts: list[Path]) -> None:
    """The best AUROC that any model could reach on the test patients: a synthetic world knows the true risk."""
    from client.cohort import open_cohort
    from simulation.synthesize.oracles import ceilings_of_folders

    samples = [open_cohort(cohort, verify_regions=False).samples_mortality for cohort in cohorts]
    tested = {int(stay) for table in samples for stay in table.stay_id[table.split == "test"]}
    best = ceilings_of_folders(hospitals, tested)
    figures = ", ".join(
        f"{best[evidence]:.3f} from {words}"
        for evidence, words in (
            ("images_and_ehr", "images and EHR"),
            ("images", "images alone"),
            ("ehr", "EHR alone"),
        )
        if best[evidence] is not None
    )
    typer.echo(f"Best AUROC that any model could reach on these {len(tested)} test stays: {figures}.")
