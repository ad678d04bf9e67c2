"""`dipro-fed site approve`: look at the code that a server sends before it may run."""

from pathlib import Path
from typing import Annotated

import typer

Kit = Annotated[Path, typer.Option("--kit", help="The site's kit.", file_okay=False, exists=True)]


def approve(
    bundle: Annotated[Path, typer.Argument(help="Code bundle, a .fab file that `flwr build` made.")],
    kit: Kit = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
) -> None:
    """Show what is in a bundle and how it differs from the last approved one; on yes it may run at this site."""
    from rich.console import Console
    from rich.table import Table

    from deployment.bundles import Approvals, difference, read_bundle

    console, approvals, content = Console(), Approvals(kit=kit), bundle.read_bytes()
    found, last = read_bundle(content), approvals.last()
    table = Table(title=f"{bundle.name}, SHA-256 {found.sha256}", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, text in sorted(found.files.items()):
        table.add_row(name, f"{len(text):,}")
    console.print(table)
    if found.sha256 in approvals.hashes():
        console.print("Approved before.")
        return
    lines = list(difference(last, found))
    console.print(f"Difference to {'nothing' if last is None else last.sha256}: {len(lines)} lines", soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if yes or typer.confirm("May this code run here, on this site's patients?"):
        approvals.approve(content)
        console.print(f"Approved: {found.sha256}", soft_wrap=True)
    else:
        console.print("Not approved.")
        raise typer.Exit(1)


def withdraw(
    sha256: Annotated[str, typer.Argument(help="SHA-256 of the bundle.")],
    kit: Kit = Path(),
) -> None:
    """Let a bundle that was approved run no longer."""
    from deployment.bundles import Approvals

    Approvals(kit=kit).withdraw(sha256)
