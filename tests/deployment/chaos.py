"""Killing processes of a federation that runs, and what is lost by it."""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from client.records import SiteSpec
from deployment.registration import RegistrationError
from deployment.runs import FINISHED, resume, run_status
from deployment.server_kit import ServerKit, load_server_kit
from federation.checkpoint import CheckpointError, read_checkpoint
from federation.run_folder import RUN, read_history, read_run
from federation.settings import load_settings
from simulation.in_process import simulate_in_process
from tests.deployment.live import Live

KINDS = {
    "site's process at work": "deployment.warm_clientapps",
    "site's process that forks it": "deployment.warm_clientapps",
    "node": "deployment.guarded_node",
    "sidecar": "nginx: master process",
    "proxy": "nginx: master process",
    "SuperLink": "flower-superlink",
    "SuperExec": "flower-superexec",
    "server app": "flwr-serverapp",
}
"""Kinds of processes, with words of their command lines."""
_POLL_SECONDS = 0.5


@dataclass
class Report:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    corrupted: int = 0
    """Checkpoints that could not be read after a kill."""
    seconds: float = 0.0
    after_kill: list[float] = field(default_factory=list)
    """Seconds from a kill to the next round that was finished."""


def chaos(live: Live, folder: Path, rounds: int, *, every: float, seed: int, most: int = 10**9) -> Report:
    """Run so many rounds into `folder`, killing a process of a random kind every so many seconds, `most` in all."""
    draw, report, kit = random.Random(seed), Report(), load_server_kit(live.server)
    start = time.monotonic()
    live.run(folder, "--rounds", rounds, "--detach", "--set", f"federation.patience={rounds}")
    number = int(next((folder / "flower").glob("run-id")).read_text())
    next_kill, waiting = time.monotonic() + draw.expovariate(1 / every), []
    finished = 0
    while not _is_finished(folder):
        time.sleep(_POLL_SECONDS)
        done = finished_rounds(folder)
        if done > finished:
            finished = done
            report.after_kill += [time.monotonic() - killed for killed in waiting]
            waiting = []
        if time.monotonic() >= next_kill and report.kills.total() < most:
            kind = draw.choice(list(KINDS))
            if _kill(live, kind, draw):  # else soon another kind
                report.kills[kind] += 1
                waiting.append(time.monotonic())
                report.corrupted += _corrupted(folder)
                next_kill = time.monotonic() + draw.expovariate(1 / every)
        try:
            status, _ = run_status(kit, number)
        except RegistrationError:  # it is starting again
            continue
        if status == FINISHED and not _is_finished(folder):
            number = _resume(kit, folder)
            report.resumed += 1
    report.seconds = time.monotonic() - start
    return report


def _resume(kit: ServerKit, folder: Path) -> int:
    """Try until the server takes it: it may be starting again."""
    while True:
        try:
            return resume(kit, folder)
        except ValueError as error:
            print(f"resume: {error}", flush=True)
            time.sleep(5)


def reference(live: Live, folder: Path, rounds: int) -> dict[str, torch.Tensor]:
    """The last model of the same run in this process."""
    torch.set_num_threads(1)
    rest = [f"federation.patience={rounds}", "task=mortality", f"federation.num_sites={len(live.sites)}"]
    given = [f"federation.rounds={rounds}", *rest]
    settings = load_settings(live.folder / "settings.yaml", given)
    specs = [SiteSpec(name=site, cohort=live.folder / "cohorts" / site) for site in live.sites]
    simulate_in_process(specs, settings, folder)
    return last_weights(folder)


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], each) for name, each in expected.items())


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / "checkpoints" / "last.pt").state_dict)


def _kill(live: Live, kind: str, draw: random.Random) -> bool:
    """Whether there was a process of this kind."""
    found = live.processes(KINDS[kind])
    if kind in ("proxy", "sidecar"):
        own = str(live.server)
        found = [each for each in found if (own in _command_line(each)) is (kind == "proxy")]
    if "site's" in kind:
        found = [each for each in found if (_parent(each) in found) is (kind == "site's process at work")]
    if not found:
        return False
    try:
        os.kill(draw.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _parent(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def _command_line(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _corrupted(folder: Path) -> int:
    count = 0
    for path in (folder / "checkpoints").glob("*.pt"):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            print(error, flush=True)
            count += 1
    return count


def finished_rounds(folder: Path) -> int:
    return (
        max((line.step for line in read_history(folder, is_growing=True)), default=0)
        if (folder / "history.jsonl").is_file()
        else 0
    )


def _is_finished(folder: Path) -> bool:
    return (folder / RUN).is_file() and read_run(folder).status == FINISHED
