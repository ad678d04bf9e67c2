"""`dipro-fed provision`: certificates, keys and configuration for the server and the sites of a project."""

from pathlib import Path
from typing import Annotated

import typer


def provision(
    project: Annotated[Path, typer.Argument(help="Project file, YAML; docs/deployment.md has an example.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of authority, server and kits; may have them already.")],
    renew: Annotated[
        list[str] | None, typer.Option("--renew", help="A site, `server` or `coordinator` to certify anew.")
    ] = None,
    revoke: Annotated[list[str] | None, typer.Option("--revoke", help="A site or `coordinator` to shut out.")] = None,
) -> None:
    """Make a project's authority and a kit for its server and each site; again, it adds what is new."""
    from rich.console import Console

    from deployment.kits import provision as make_kits
    from deployment.project import load_project

    done = make_kits(load_project(project), out, requests=project.parent, renew=renew or (), revoke=revoke or ())
    console = Console()
    for line in done.lines or ["Nothing to do: everything is good."]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def request(
    name: Annotated[str, typer.Argument(help="The site's name in the project.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the site's keys; they stay there.")],
) -> None:
    """Make a site's keys at the site; send the folder `request` in it, which has no secret, to the coordinator."""
    from rich.console import Console

    from deployment.kits import make_site_request

    make_site_request(name, out)
    Console().print(
        f"Send {out / 'request'} to the coordinator; the keys in {out} stay here.", markup=False, soft_wrap=True
    )
