"""A federation of real processes from which one after the other is killed, and what is lost by it.

    python benchmarks/chaos.py [--rounds 100] [--every 20] [--seed 0]

Server, proxy and two sites on loopback from their kits, a small model, cohorts of random values. At random times, on
average every so many seconds, a process of a random kind gets SIGKILL: a site's process at work, a node, a sidecar, the
proxy, SuperLink, SuperExec, the run's server app. What ends is started again by its supervisor; a run that ended goes
on with `server resume`. After each kill the checkpoints are read, seals and all. The reference is the same run in one
process, which nobody kills: the last model must be the same to the last bit.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# One thread everywhere, so that sums are made in one order.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from measure import RESULTS, conditions, show, write_results

from client.records import SiteSpec
from deployment.registration import RegistrationError
from deployment.runs import FINISHED, resume, run_status
from deployment.server_kit import load_server_kit
from federation.audit import AUDIT
from federation.checkpoint import CheckpointError, read_checkpoint
from federation.run_folder import RUN, read_history, read_run
from federation.settings import load_settings
from simulation.in_process import simulate_in_process
from tests.deployment.live import Live

KINDS = {
    "site's process at work": "flwr-clientapp",
    "node": "flower-supernode",
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


def chaos(live: Live, folder: Path, rounds: int, kinds: Sequence[str], every: float, seed: int) -> Report:
    """Run so many rounds into `folder`, killing a process of one of these kinds now and then."""
    draw, report, kit = random.Random(seed), Report(), load_server_kit(live.server)
    start = time.monotonic()
    live.run(folder, "--rounds", rounds, "--detach")
    number = int(next((folder / "flower").glob("run-id")).read_text())
    next_kill, waiting = time.monotonic() + draw.expovariate(1 / every), []
    finished = 0
    while not _is_finished(folder):
        time.sleep(_POLL_SECONDS)
        done = _finished_rounds(folder)
        if done > finished:
            finished = done
            report.after_kill += [time.monotonic() - killed for killed in waiting]
            waiting = []
        if time.monotonic() >= next_kill:
            kind = draw.choice(list(kinds))
            if _kill(live, kind, draw):
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


def _resume(kit, folder: Path) -> int:
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
    given = [f"federation.rounds={rounds}", "task=mortality", f"federation.num_sites={len(live.sites)}"]
    settings = load_settings(live.folder / "settings.yaml", given)
    specs = [SiteSpec(name=site, cohort=live.folder / "cohorts" / site) for site in live.sites]
    simulate_in_process(specs, settings, folder)
    return _last(folder)


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], each) for name, each in expected.items())


def _last(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder / "checkpoints" / "last.pt").state_dict)


def _kill(live: Live, kind: str, draw: random.Random) -> bool:
    """Whether there was a process of this kind."""
    found = live.processes(KINDS[kind])
    if kind in ("proxy", "sidecar"):
        own = str(live.server)
        found = [each for each in found if (own in _command_line(each)) is (kind == "proxy")]
    if not found:
        return False
    try:
        os.kill(draw.choice(found), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


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


def _finished_rounds(folder: Path) -> int:
    return max((line.step for line in read_history(folder)), default=0) if (folder / "history.jsonl").is_file() else 0


def _is_finished(folder: Path) -> bool:
    return (folder / RUN).is_file() and read_run(folder).status == FINISHED


def measure(folder: Path, rounds: int, every: float, seed: int) -> dict[str, Any]:
    live = Live(folder)
    live.provision()
    expected = reference(live, folder / "reference", rounds)
    live.start()
    try:
        live.approve()
        report = chaos(live, folder / "run", rounds, list(KINDS), every, seed)
    finally:
        live.stop()
    audit = (folder / "run" / AUDIT).read_text().splitlines()
    sent, received = (sum(f'"event": "{event}"' in line for line in audit) for event in ("sent", "received"))
    return {
        "rounds": _finished_rounds(folder / "run"),
        "kills": dict(report.kills),
        "resumed": report.resumed,
        "replies_lost": sent - received,
        "corrupted_checkpoints": report.corrupted,
        "minutes": report.seconds / 60,
        "median_s_from_kill_to_next_round": float(np.median(report.after_kill)) if report.after_kill else None,
        "longest_s_from_kill_to_next_round": max(report.after_kill, default=None),
        "equal_to_reference": equal(_last(folder / "run"), expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--every", type=float, default=20.0, help="mean seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        found = measure(Path(scratch), arguments.rounds, arguments.every, arguments.seed)
    asked = {"every_s": arguments.every, "seed": arguments.seed}
    write_results(arguments.out, {"conditions": conditions(1) | asked, "found": found})
    show("A federation under kills", ("what", "found"), list(found.items()))
    if not found["equal_to_reference"] or found["corrupted_checkpoints"]:
        raise SystemExit("the run was harmed")


if __name__ == "__main__":
    main()
