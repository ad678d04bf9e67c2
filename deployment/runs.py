"""Starting runs at Flower's server, and knowing what became of them."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import ListRunsRequest

from deployment.flower_app import copy_app, tool, write_run_config
from deployment.programs import server_environment
from deployment.registration import RegistrationError, control
from deployment.server_kit import ServerKit
from federation.differences import differences
from federation.run_folder import RUN, RunError, read_run
from federation.settings import RunFiles, RunSettings

HOME, APP, NUMBER, FINISHED = "flower", "app", "run-id", "finished"
_POLL_SECONDS = 1.0


class SubmissionError(ValueError):
    """A run that Flower's server did not take, or lost."""


def bundle() -> bytes:
    """The code that a run sends to its sites, as they approve it: the same bytes whenever the code is the same."""
    with TemporaryDirectory() as scratch:
        return build_fab_from_disk(copy_app(Path(scratch)))


def begin(kit: ServerKit, settings: RunSettings, folder: Path) -> int:
    """Start a new run into a new folder; Flower's number of it."""
    home = folder.resolve() / HOME
    home.mkdir(parents=True)
    copy_app(home)
    return _submit(kit, settings, folder.resolve())


def resume(kit: ServerKit, folder: Path) -> int:
    """Start an interrupted run again, with the settings and the very code that it began with; Flower's number of it.

    Raises RunError where the folder holds no run, a finished one, or code that was changed.
    """
    folder = folder.resolve()
    if not (folder / HOME / APP).is_dir():
        raise RunError(f"{folder}: expected a run that `dipro-fed server run` began, found no {HOME}/{APP} in it")
    if (folder / RUN).is_file() and read_run(folder).status == FINISHED:
        raise RunError(f"{folder}: the run in this folder is finished; there is nothing to go on with")
    settings = RunSettings.model_validate_json((folder / HOME / "settings.json").read_bytes())
    if (folder / RUN).is_file():
        began = read_run(folder).settings
        if different := differences(began, settings.model_dump(mode="json")):
            raise RunError(f"{folder}: its settings were changed since it began: {'; '.join(different)}")
    return _submit(kit, settings, folder)


def run_status(kit: ServerKit, number: int) -> tuple[str, str]:
    """Where a run stands for Flower (pending, starting, running, finished), and how it finished, with the reason."""
    with control(kit) as client:
        found = client.ListRuns(ListRunsRequest(run_id=number)).run_dict
    if number not in found:
        raise SubmissionError(f"Flower's server does not know run {number}; was its database replaced?")
    status = found[number].status
    return status.status, ": ".join(part for part in (status.sub_status, status.details) if part)


def await_end(kit: ServerKit, number: int, folder: Path, look: Callable[[], None]) -> None:
    """Return when a run has ended well; `look` is called now and then.

    A server that does not answer for a while is waited for: it may be starting again. Raises SubmissionError with the
    reason where the run ended otherwise.
    """
    while True:
        look()
        try:
            status, how = run_status(kit, number)
        except RegistrationError:
            status, how = "unknown", ""
        if status == FINISHED:
            break
        time.sleep(_POLL_SECONDS)
    look()
    written = read_run(folder) if (folder / RUN).is_file() else None
    if written is None or written.status != FINISHED:
        reason = None if written is None else written.more.get("error")
        raise SubmissionError(
            f"run {number} ended before it was finished: {reason or how}; when the cause is mended, "
            f"`dipro-fed server resume {folder}` goes on with it. See logs/superexec.log of the server's kit"
        )


def _submit(kit: ServerKit, settings: RunSettings, folder: Path) -> int:
    home = folder / HOME
    (home / "settings.json").write_text(settings.model_dump_json(indent=2))
    files = RunFiles(folder=str(folder), freight=str(kit.freight) if kit.facts.freight else "")
    config = write_run_config(settings, files, home / "run-config.toml")
    command = [tool("flwr"), "run", str(home / APP), kit.facts.project, "--run-config", str(config), "--format", "json"]
    done = subprocess.run(command, env=server_environment(kit), capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {}
    if done.returncode != 0 or not answer.get("success"):
        reason = answer.get("error-message") or (done.stderr or done.stdout).strip()[-500:]
        raise SubmissionError(f"Flower's server did not take the run: {reason}")
    number = int(answer["run-id"])
    (home / NUMBER).write_text(str(number))
    return number
