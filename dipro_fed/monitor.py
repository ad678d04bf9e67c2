"""`dipro-fed record` and `dipro-fed monitor`: runs as they are, in a database and as a page."""

from pathlib import Path
from typing import Annotated

import typer

Folders = Annotated[
    list[Path],
    typer.Argument(metavar="FOLDER...", help="Folders of runs, or folders that hold some; new ones are found."),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="DIPRO_FED_DATABASE",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME; else a SQLite file in the user's state folder.",
        show_envvar=True,
    ),
]


Host = Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback with a password.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="File whose first line the browser is asked for.")
]


def record(
    folders: Folders,
    database: DatabaseUrl = None,
    once: Annotated[bool, typer.Option("--once", help="Deliver what is there and end.")] = False,
) -> None:
    """Deliver the events and measurements of runs into a database, now and as they come."""
    import threading

    from monitor.database import default_url, open_database
    from monitor.recorder import Recorder
    from monitor.recorder import record as keep_recording

    require_folders(folders)
    opened = open_database(database or default_url())
    recorder = Recorder(opened, folders, tell)
    if once:
        typer.echo(f"{opened.name}: {recorder.deliver():,} lines delivered")
        return
    typer.echo(f"Recording into {opened.name}; Ctrl-C ends it")
    try:
        keep_recording(recorder, threading.Event(), tell)
    except KeyboardInterrupt:
        typer.echo("Ended; the next one goes on from here")


def monitor(
    folders: Folders,
    database: DatabaseUrl = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8765,
    password_file: PasswordFile = None,
) -> None:
    """Record runs and show them as a page, live: sites, rounds, metrics, refusals."""
    from monitor.access import read_password, require_login
    from monitor.database import default_url, open_database
    from monitor.serve import serve

    require_folders(folders)
    password = None if password_file is None else read_password(password_file)
    require_login(host, password)
    opened = open_database(database or default_url())
    typer.echo(f"http://{host}:{port} shows what is in {opened.name}; Ctrl-C ends it")
    serve(opened, folders, tell, host=host, port=port, password=password)


def monitor_site(
    kit: Annotated[
        Path, typer.Option("--kit", help="Folder that `dipro-fed provision` made.", file_okay=False, exists=True)
    ] = Path(),
    database: Annotated[
        str | None, typer.Option("--database", help="As of `dipro-fed monitor`; else in the site's state folder.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8766,
    password_file: PasswordFile = None,
) -> None:
    """Show this site's own rounds: what left it, what it refused and why, its metrics beside all sites' together."""
    from functools import partial

    from deployment.site_kit import load_site_kit
    from monitor.access import read_password, require_login
    from monitor.database import open_database
    from monitor.serve import serve
    from monitor.site_files import find_site_runs

    found = load_site_kit(kit)
    password = None if password_file is None else read_password(password_file)
    require_login(host, password)
    opened = open_database(database or f"sqlite:///{found.state / 'monitor.sqlite'}")
    typer.echo(f"http://{host}:{port} shows what {found.state} says of {found.facts.site}; Ctrl-C ends it")
    find = partial(find_site_runs, site=found.facts.site)
    serve(opened, [found.state], tell, host=host, port=port, password=password, find=find)


def require_folders(folders: list[Path]) -> None:
    """Raises ValueError for a path that is no folder."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a run's folder or one that holds some, found none")


def tell(words: str) -> None:
    typer.echo(words, err=True)
