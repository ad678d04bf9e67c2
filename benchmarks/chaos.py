"""A federation of real processes from which one after the other is killed, and what is lost by it.

    python benchmarks/chaos.py [--rounds 100] [--every 20] [--seed 0]

Server, proxy and two sites on loopback from their kits, a small model, cohorts of random values. At random times, on
average every so many seconds, a process of a random kind gets SIGKILL: a site's process at work, a node, a sidecar, the
proxy, SuperLink, a SuperExec, the run's server app. What ends is started again by its supervisor; a run that ended goes
on with `server resume`. After each kill the checkpoints are read, seals and all. The reference is the same run in one
process, which nobody kills: the last model must be the same to the last bit.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# One thread everywhere, so that sums are made in one order.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from measure import RESULTS, conditions, show, write_results

from federation.audit import AUDIT
from tests.deployment.chaos import chaos, equal, finished_rounds, last_weights, reference
from tests.deployment.live import Live


def measure(folder: Path, rounds: int, every: float, seed: int) -> dict[str, Any]:
    live = Live(folder)
    live.provision()
    expected = reference(live, folder / "reference", rounds)
    live.start()
    try:
        live.approve()
        report = chaos(live, folder / "run", rounds, every=every, seed=seed)
    finally:
        live.stop()
    audit = (folder / "run" / AUDIT).read_text().splitlines()
    sent, received = (sum(f'"event": "{event}"' in line for line in audit) for event in ("sent", "received"))
    return {
        "rounds": finished_rounds(folder / "run"),
        "kills": dict(report.kills),
        "resumed": report.resumed,
        "replies_lost": sent - received,
        "corrupted_checkpoints": report.corrupted,
        "minutes": report.seconds / 60,
        "median_s_from_kill_to_next_round": float(np.median(report.after_kill)) if report.after_kill else None,
        "longest_s_from_kill_to_next_round": max(report.after_kill, default=None),
        "equal_to_reference": equal(last_weights(folder / "run"), expected),
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
    if not found["equal_to_reference"] or found["corrupted_checkpoints"] or found["rounds"] != arguments.rounds:
        raise SystemExit("the run was harmed")


if __name__ == "__main__":
    main()
