"""`dipro-fed record`, `monitor` and `site monitor`: runs as they are, in a database and as a page."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.processes import Kit

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
WebhookUrl = Annotated[
    str | None,
    typer.Option(
        "--webhook",
        envvar="DIPRO_FED_WEBHOOK",
        help="URL that each alarm is posted to as JSON.",
        show_envvar=True,
    ),
]
AlarmCommand = Annotated[
    str | None,
    typer.Option("--alarm-command", help="Program and words, run for each alarm with its JSON as standard input."),
]
AlarmLimits = Annotated[
    Path | None, typer.Option("--alarms", help="YAML file of limits, and of rules that are switched off.")
]
TensorBoardFolder = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder in which TensorBoard finds the measurements.")
]
MlflowUri = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="DIPRO_FED_MLFLOW",
        help="MLflow server, or sqlite:///FILE, that gets the measurements.",
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
    webhook: WebhookUrl = None,
    alarm_command: AlarmCommand = None,
    alarms: AlarmLimits = None,
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    once: Annotated[bool, typer.Option("--once", help="Deliver what is there and end.")] = False,
) -> None:
    """Deliver the events and measurements of runs into a database, now and as they come."""
    import threading

    from monitor.courier import Courier, start_couriers
    from monitor.database import default_url, open_database
    from monitor.hooks import make_hooks
    from monitor.limits import load_limits
    from monitor.loggers import Logger, start_loggers
    from monitor.recorder import Recorder
    from monitor.recorder import record as keep_recording
    from monitor.sinks import make_sinks

    require_folders(folders)
    limits, hooks = load_limits(alarms), make_hooks(webhook, alarm_command)
    sinks = make_sinks(tensorboard, mlflow)
    opened = open_database(database or default_url())
    loggers = [Logger(opened, folders, sink) for sink in sinks]
    recorder = Recorder(opened, folders, tell, limits=limits)
    if once:
        typer.echo(f"{opened.name}: {recorder.deliver():,} lines delivered")
        for hook in hooks:
            typer.echo(f"{hook.name}: {Courier(opened, hook, limits, tell).deliver()} alarms sent")
        for sink, logger in zip(sinks, loggers, strict=True):
            typer.echo(f"{sink.name}: {logger.deliver():,} numbers handed on")
        return
    typer.echo(f"Recording into {opened.name}; Ctrl-C ends it")
    stop = threading.Event()
    start_couriers(opened, hooks, limits, stop, tell)
    start_loggers(loggers, stop, tell)
    try:
        keep_recording(recorder, stop, tell)
    except KeyboardInterrupt:
        typer.echo("Ended; the next one goes on from here")


def monitor(
    folders: Folders,
    database: DatabaseUrl = None,
    webhook: WebhookUrl = None,
    alarm_command: AlarmCommand = None,
    alarms: AlarmLimits = None,
    tensorboard: TensorBoardFolder = None,
    mlflow: MlflowUri = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8765,
    password_file: PasswordFile = None,
) -> None:
    """Record runs and show them as a page, live: sites, rounds, metrics, refusals."""
    from monitor.access import read_password, require_login
    from monitor.database import default_url, open_database
    from monitor.hooks import make_hooks
    from monitor.limits import load_limits
    from monitor.serve import Outward, serve
    from monitor.sinks import make_sinks

    require_folders(folders)
    limits, hooks, sinks = load_limits(alarms), make_hooks(webhook, alarm_command), make_sinks(tensorboard, mlflow)
    password = None if password_file is None else read_password(password_file)
    require_login(host, password)
    opened = open_database(database or default_url())
    typer.echo(f"http://{host}:{port} shows what is in {opened.name}; Ctrl-C ends it")
    outward = Outward(hooks=hooks, sinks=sinks, limits=limits)
    serve(opened, folders, tell, host=host, port=port, password=password, outward=outward)


def monitor_site(
    kit: Kit = Path(),
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
