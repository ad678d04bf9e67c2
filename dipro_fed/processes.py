"""`dipro-fed server` and `dipro-fed site`: start, stop, status of the processes of a kit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipro_fed.options import Config, Out, Overrides, Seed, TaskName, gather_overrides, require_fresh

if TYPE_CHECKING:
    from deployment.server_kit import ServerKit
    from deployment.supervision import ProcessStatus
    from federation.settings import RunSettings

NOT_RUNNING = 3
"""Exit status of `status` where not everything runs, as init scripts have it."""
Kit = Annotated[
    Path, typer.Option("--kit", help="Folder that `dipro-fed provision` made.", file_okay=False, exists=True)
]
Foreground = Annotated[
    bool, typer.Option("--foreground", help="Stay until stopped, for systemd, a container or a look at what happens.")
]
Follow = Annotated[bool, typer.Option("--follow/--detach", help="Show the rounds, or return at once.")]

server = typer.Typer(help="What the coordinator's server does.", no_args_is_help=True)


@server.command("start")
def start_server(kit: Kit = Path(), foreground: Foreground = False) -> None:
    """Start Flower's server and the proxy in front of it, and let in the sites of the kit."""
    from deployment.programs import ports, server_environment, server_programs
    from deployment.registration import write_connection
    from deployment.server_kit import load_server_kit
    from deployment.supervision import Supervision

    found = load_server_kit(kit)
    write_connection(found)
    supervision, programs = Supervision(folder=found.folder), server_programs(found)
    options = {"environment": server_environment(found), "state": found.state, "ports": ports(found)}
    if foreground:
        raise typer.Exit(supervision.run(programs, **options, once_up=lambda: _admit(found.folder)))
    supervision.start(programs, **options)
    _admit(found.folder)
    typer.echo(f"Runs, with the proxy at port {found.facts.port}.")


@server.command("stop")
def stop_server(kit: Kit = Path()) -> None:
    """End the server's processes; a run that was under way goes on later with `server resume`."""
    from deployment.supervision import Supervision

    Supervision(folder=kit.resolve()).stop()


@server.command("status")
def show_server(kit: Kit = Path()) -> None:
    """Show the server's processes and which sites are online; exit status 3 where something does not run."""
    from deployment.registration import node_status
    from deployment.server_kit import load_server_kit
    from deployment.supervision import Supervision

    found = load_server_kit(kit)
    status = Supervision(folder=found.folder).status()
    _show(status)
    if any(each.name == "superlink" and each.state == "RUNNING" for each in status):
        known = node_status(found)
        for site in found.facts.sites:
            typer.echo(f"{site}: {known.get(site, 'not registered: dipro-fed server reload')}")
    _exit(status)


@server.command()
def reload(kit: Kit = Path()) -> None:
    """After sites were added, renewed or revoked and the kit's files copied here: let these in and those no more."""
    from deployment.programs import reload_proxy
    from deployment.server_kit import load_server_kit

    found = load_server_kit(kit)
    reload_proxy(found.folder)
    _admit(found.folder)


@server.command()
def bundle(
    out: Annotated[Path, typer.Option("--out", help="File to write, .fab; an older one is replaced.")],
) -> None:
    """Write the code that runs send to the sites, for them to look at and approve."""
    from deployment.bundles import read_bundle
    from deployment.runs import bundle as make_bundle
    from federation.files import write_whole

    content = make_bundle()
    write_whole(out, content)
    typer.echo(f"{out}: SHA-256 {read_bundle(content).sha256}")


@server.command("run")
def run_server(
    task: TaskName,
    out: Out,
    kit: Kit = Path(),
    config: Config = None,
    override: Overrides = None,
    seed: Seed = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds at most.")] = None,
    follow: Follow = True,
) -> None:
    """Train over the sites that are online; the run's folder holds checkpoints, history and audit log."""
    from deployment.runs import begin
    from deployment.server_kit import load_server_kit
    from federation.settings import load_settings

    found = load_server_kit(kit)
    given = gather_overrides(task=task, seed=seed, federation__rounds=rounds)
    sites = [f"federation.num_sites={len(found.facts.sites)}"]
    settings = load_settings(config, [*sites, *(override or []), *given])
    require_fresh(out)
    number = begin(found, settings, out)
    typer.echo(f"Run {number}, into {out}.")
    if follow:
        _follow(found, number, settings, out)


@server.command("resume")
def resume_server(
    run: Annotated[Path, typer.Argument(help="Folder of a run that did not finish.", exists=True)],
    kit: Kit = Path(),
    follow: Follow = True,
) -> None:
    """Go on with a run from its last complete round, with the settings and the code that it began with."""
    from deployment.runs import resume
    from deployment.server_kit import load_server_kit
    from federation.settings import load_settings

    found = load_server_kit(kit)
    number = resume(found, run)
    typer.echo(f"Run {number} goes on in {run}.")
    if follow:
        _follow(found, number, load_settings(run / "flower" / "settings.json"), run)


def start_site(kit: Kit = Path(), foreground: Foreground = False) -> None:
    """Start this site's node and its way to the server; a faulty kit or policy starts nothing."""
    from client.policy import load_policy
    from deployment.keys import keep_shared_secret
    from deployment.programs import ports, site_environment, site_programs
    from deployment.site_kit import POLICY, SUPEREXEC_SECRET, load_site_kit
    from deployment.supervision import Supervision

    found = load_site_kit(kit)
    load_policy(found.folder / POLICY)
    keep_shared_secret(found.folder / SUPEREXEC_SECRET)
    supervision, programs = Supervision(folder=found.folder), site_programs(found)
    options = {"environment": site_environment(found), "state": found.state, "ports": ports(found)}
    if foreground:
        raise typer.Exit(supervision.run(programs, **options))
    supervision.start(programs, **options)
    typer.echo(f"{found.facts.site} runs; whether the server let it in, `dipro-fed site status` shows.")


def stop_site(
    kit: Kit = Path(),
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds that work under way, and its reply, have to finish.")
    ] = 60,
) -> None:
    """End this site's processes, work under way first."""
    from deployment.supervision import Supervision
    from deployment.work import await_no_work

    supervision = Supervision(folder=kit.resolve())
    if supervision.is_running():
        await_no_work(kit.resolve(), seconds=wait)
    supervision.stop()


def show_site(kit: Kit = Path()) -> None:
    """Show this site's processes and what its node wrote last; exit status 3 where something does not run."""
    from deployment.supervision import Supervision

    supervision = Supervision(folder=kit.resolve())
    status = supervision.status()
    _show(status)
    if status:
        typer.echo(supervision.log_end("node", lines=5))
    _exit(status)


def _follow(kit: "ServerKit", number: int, settings: "RunSettings", folder: Path) -> None:
    """Show the rounds until the run has ended; Ctrl-C leaves it running."""
    from deployment.runs import await_end
    from dipro_fed.display import print_results, round_display
    from simulation.flower import finished_record, tell_new_rounds

    title = f"{settings.task}, {settings.federation.num_sites} sites"
    try:
        with round_display(settings.federation.rounds, title) as on_round:
            await_end(kit, number, folder, tell_new_rounds(folder, on_round))
    except KeyboardInterrupt:
        typer.echo(f"Run {number} goes on without this view; its folder is {folder}.")
        return
    print_results(finished_record(folder))


def _admit(folder: Path) -> None:
    from deployment.registration import await_superlink, register
    from deployment.server_kit import load_server_kit

    kit = load_server_kit(folder)
    await_superlink(kit)
    for line in register(kit):
        typer.echo(line)


def _show(status: "Sequence[ProcessStatus]") -> None:
    from rich.console import Console
    from rich.table import Table

    if not status:
        typer.echo("Nothing runs.")
        return
    table = Table("process", "state", "since", "")
    for each in status:
        since = "" if each.since is None else each.since.isoformat(sep=" ", timespec="seconds")
        table.add_row(each.name, each.state.lower(), since, each.description)
    Console().print(table)


def _exit(status: "Sequence[ProcessStatus]") -> None:
    if not status or any(each.state != "RUNNING" for each in status):
        raise typer.Exit(NOT_RUNNING)
