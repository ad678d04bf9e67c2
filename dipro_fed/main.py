"""`dipro-fed`: one subcommand a thing a user does; each module beside this file is one of them."""

import logging
import sys
from typing import Annotated

import typer

from dipro_fed.approve import approve, withdraw
from dipro_fed.audit import verify
from dipro_fed.compare import compare
from dipro_fed.components import components
from dipro_fed.demo import demo
from dipro_fed.doctor import doctor
from dipro_fed.evaluate import evaluate
from dipro_fed.inspect import inspect
from dipro_fed.monitor import monitor, monitor_site, record
from dipro_fed.partition import partition
from dipro_fed.pictures import pictures
from dipro_fed.predict import predict
from dipro_fed.prepare import prepare
from dipro_fed.privacy import privacy
from dipro_fed.processes import server, show_site, start_site, stop_site
from dipro_fed.provision import provision, request
from dipro_fed.settings import settings
from dipro_fed.simulate import simulate
from dipro_fed.stay import stay
from dipro_fed.sweep import sweep
from dipro_fed.synthesize import synthesize
from dipro_fed.train import train

app = typer.Typer(
    name="dipro-fed",
    help="Prepare hospital records, train DiPro on them, centralized or federated, score, look and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    # `run` looks for the option itself: an error may arise before this is called.
    del traceback


app.command()(synthesize)
app.command()(prepare)
app.command()(partition)
app.command()(train)
app.command()(simulate)
app.command()(sweep)
app.command()(evaluate)
app.command()(predict)
app.command()(components)
app.command()(compare)
app.command()(pictures)
app.command()(stay)
app.command()(inspect)
app.command()(record)
app.command()(monitor)
app.command()(settings)
app.command()(demo)
app.command()(provision)
audit = typer.Typer(help="What was written down of runs.", no_args_is_help=True)
audit.command()(verify)
app.add_typer(audit, name="audit")
site = typer.Typer(help="What a hospital does.", no_args_is_help=True)
site.command()(request)
site.command()(approve)
site.command()(withdraw)
site.command()(doctor)
site.command("start")(start_site)
site.command("stop")(stop_site)
site.command("status")(show_site)
site.command("monitor")(monitor_site)
site.command()(privacy)
app.add_typer(site, name="site")
app.add_typer(server, name="server")


def run() -> None:
    """Run the command line; an error meant for people is one paragraph on stderr and exit status 1."""
    _tell_what_takes_long()
    try:
        app()
    except (ValueError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)


def _tell_what_takes_long() -> None:
    """Let the log say on stderr, beside warnings, that features are computed and how far they are."""
    logging.getLogger("client.feature_cache").setLevel(logging.INFO)
    # Unlike a handler of one's own it writes to stderr as it is at the time: above a progress bar, not through it.
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.INFO)
