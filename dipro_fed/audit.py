"""`dipro-fed audit`: whether an audit log is as it was written."""

from pathlib import Path
from typing import Annotated

import typer


def verify(
    logs: Annotated[list[Path], typer.Argument(help="Audit logs (audit.jsonl), or folders that have one.")],
    head: Annotated[
        str | None, typer.Option("--head", help="Hash that this printed before; the single log must still hold it.")
    ] = None,
) -> None:
    """Check that no line of an audit log was changed, removed or added; prints the hash that stands for all of it."""
    from rich.console import Console

    from federation.audit import AUDIT, verify

    if head is not None and len(logs) != 1:
        raise typer.BadParameter(f"--head is of one log, found {len(logs)}")
    console = Console()
    for path in logs:
        log = path / AUDIT if path.is_dir() else path
        trail = verify(log, head=head)
        console.print(f"{log}: whole, {trail.num_entries} lines, {trail.head}", markup=False, soft_wrap=True)
