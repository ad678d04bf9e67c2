"""A federated run on Flower's simulation engine: a SuperLink of its own, `flwr run`, and what the sites left behind.

Every run gets its own SuperLink on a free loopback port and its own Flower home inside the run's folder, so that runs
beside each other share nothing, and the SuperLink ends with the run.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from client.predictions import predictions_path
from client.records import SiteSpec
from client.site import CHOSEN
from deployment.flower_app import NO_NETWORK, copy_app, tool, write_run_config
from federation.messages import MessageError
from federation.run_folder import HISTORY, RUN, Measurement, RunRecord, read_history, read_run
from federation.secure.identity import IDENTITY
from federation.settings import RunFiles, RunSettings, SettingsError
from simulation.identities import make_identities

CONNECTION = "simulation"
_START_SECONDS = 60
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one simulated site may use; as many sites run at a time as fit."""

    num_cpus: int = 1
    """CPU cores, also the number of threads of the site's process."""
    num_gpus: float = 0.0
    """Share of a GPU; it limits how many sites run at a time, not the memory that one takes."""


OnRound = Callable[[list[Measurement]], None]
"""Told the new lines of the history as the rounds pass."""


def simulate(
    specs: Sequence[SiteSpec],
    settings: RunSettings,
    folder: Path,
    *,
    resources: Resources | None = None,
    on_round: OnRound = lambda measurements: None,
) -> RunRecord:
    """Run the federation of these sites, or go on with it, and leave a run folder as centralized training does.

    Raises MessageError with the server's own words where the run failed; the logs stay in `folder`/flower.
    """
    settings = for_sites(settings, specs)
    folder, home = folder.resolve(), folder.resolve() / "flower"
    home.mkdir(parents=True, exist_ok=True)
    write_sites(specs, folder)
    write_identities(specs, settings, folder)
    app = copy_app(home)
    with _superlink(home, app) as address:
        _write_connection(home, address)
        files = RunFiles(folder=str(folder), sites=str(folder / "sites.json"))
        run_config = write_run_config(settings, files, home / "run-config.toml")
        _run(home, app, run_config, len(specs), resources or Resources(), folder, on_round)
    record = finished_record(folder)
    collect(specs, folder)
    return record


def for_sites(settings: RunSettings, specs: Sequence[SiteSpec]) -> RunSettings:
    """The settings of a federation of so many sites. Raises SettingsError for a quorum that they cannot meet."""
    if settings.federation.num_sites == len(specs):
        return settings
    if settings.federation.quorum != "all" and settings.federation.quorum > len(specs):
        raise SettingsError(
            f"federation.quorum: expected at most {len(specs)}, the number of sites, found {settings.federation.quorum}"
        )
    federation = settings.federation.model_copy(update={"num_sites": len(specs)})
    return settings.model_copy(update={"federation": federation})


def write_sites(specs: Sequence[SiteSpec], folder: Path) -> None:
    """The list that tells a simulated node which site it is."""
    sites = [
        {
            "name": spec.name,
            "cohort": str(spec.cohort.resolve()),
            "subjects": spec.subjects,
            "gaps": asdict(spec.gaps),
            "folder": str(_site_folder(folder, spec)),
        }
        for spec in specs
    ]
    (folder / "sites.json").write_text(json.dumps(sites))


def write_identities(specs: Sequence[SiteSpec], settings: RunSettings, folder: Path) -> None:
    """Keys that the sites sign with, where the settings ask for secure aggregation."""
    if settings.secure_aggregation.enabled:
        make_identities(folder / "authority", {spec.name: _site_folder(folder, spec) / IDENTITY for spec in specs})


def _site_folder(folder: Path, spec: SiteSpec) -> Path:
    return folder / "sites" / spec.name


def _write_connection(home: Path, address: str) -> None:
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n'
    )
    (home / "config.toml").write_text(text)


@contextmanager
def _superlink(home: Path, app: Path) -> Iterator[str]:
    """A SuperLink in simulation mode on a free port of loopback, ended with the block; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    log = home / "superlink.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [tool("flower-superlink"), *command, "--host", "127.0.0.1", "--port", str(port)],
            env=_environment(home),
            cwd=app,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_healthy(process, port, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (URLError, OSError):
            time.sleep(_POLL_SECONDS)
    raise MessageError(f"Flower's SuperLink did not start within {_START_SECONDS} s; its log is {log}")


def _run(
    home: Path, app: Path, run_config: Path, num_sites: int, resources: Resources, folder: Path, on_round: OnRound
) -> None:
    """`flwr run` and its stream of logs, until the run has ended."""
    federation = (
        f"num-supernodes={num_sites} client-resources-num-cpus={resources.num_cpus} "
        f"client-resources-num-gpus={resources.num_gpus}"
    )
    command = [tool("flwr"), "run", str(app), CONNECTION, "--stream", "--run-config", str(run_config)]
    log, tell = home / "run.log", tell_new_rounds(folder, on_round)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--federation-config", federation],
            env=_environment(home),
            cwd=app,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                tell()
        finally:
            process.kill()
            process.wait()
    tell()
    if not (folder / RUN).is_file():
        raise MessageError(f"the federated run ended before its first round: {_last_error(log)}; the log is {log}")


def tell_new_rounds(folder: Path, on_round: OnRound) -> Callable[[], None]:
    """A function that tells the lines of the history that are new since it was last called."""
    seen = 0

    def tell() -> None:
        nonlocal seen
        if not (folder / HISTORY).is_file():
            return
        lines = read_history(folder, is_growing=True)
        if len(lines) > seen:
            on_round(lines[seen:])
        seen = len(lines)

    return tell


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    return lines[-1] if lines else "it left no message"


def finished_record(folder: Path) -> RunRecord:
    """The record of a run that ended well. Raises MessageError with the server's own words otherwise."""
    record = read_run(folder)
    if record.status != "finished":
        reason = record.more.get("error", f"its status is still {record.status!r}")
        raise MessageError(f"the federated run failed: {reason}; the logs are in {folder / 'flower'}")
    return record


def collect(specs: Sequence[SiteSpec], folder: Path) -> None:
    """What only a simulation may do: bring the sites' predictions of the chosen model together."""
    for spec in specs:
        source = predictions_path(_site_folder(folder, spec) / CHOSEN, spec.name)
        target = predictions_path(folder, spec.name)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        **NO_NETWORK,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
