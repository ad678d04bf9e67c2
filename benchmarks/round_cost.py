"""What a round over the network costs beside the sites' own work: TLS, proxies, node authentication, real processes.

    python benchmarks/round_cost.py [--rounds 6] [--depth 50] [--pixels 32] [--mbit 4]

Server, proxy and two sites on loopback from their kits, one visit a round, the published model's 31 million parameters
on crops of 32 pixels, some patients a site. A site's process is a new one in each round. The work is the longer of the
sites' own training and scoring, as they report it; beyond it lie: the way to the site (until its process has the
model), the way back, and what the server does between two questions. The first round does not count. Aim: at most 6 s
beyond the work. With `--mbit` every site has a link of its own of so many Mbit/s each way; the aim is then 1.15 times
what the weights' bytes take at that rate, to the site and back.
"""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from measure import RESULTS, conditions, show, write_results

from federation.audit import AUDIT
from federation.run_folder import read_history
from tests.deployment.link import links
from tests.deployment.live import Live

AIM_SECONDS = 6.0
AIM_TIMES = 1.15


def measure(folder: Path, rounds: int, depth: int, pixels: int, mbit: float | None) -> dict[str, Any]:
    live = Live(folder)
    live.settings = {
        "model": {"backbone_depth": depth, "crop_pixels": pixels},
        "federation": {"check_duplicates": False, "minimum_cell": 1, "visits": "one"},
    }
    live.provision()
    with links(live, bits_per_second=mbit * 1e6) if mbit else nullcontext():
        live.start()
        try:
            live.approve()
            live.run(folder / "run", "--rounds", rounds, seconds=24 * 3600)
        finally:
            live.stop()
    server = _events(folder / "run" / AUDIT)
    left = {site: _events(live.kit(site) / "state" / AUDIT) for site in live.sites}
    lines = read_history(folder / "run")
    found = []
    for number in range(2, rounds):
        sent = _times(server, "sent", f"round {number}, train")
        received = _times(server, "received", f"round {number}, train")
        done = [_left(events, number) for events in left.values()]
        following = _times(server, "sent", f"round {number + 1}, train")
        work = {
            site: sum(line.seconds for line in lines if line.site == site and _is_work(line, number))
            for site in live.sites
        }
        last = max(range(len(done)), key=lambda place: done[place])
        found.append(
            {
                "round": min(following) - min(sent),
                "work": max(work.values()),
                "to the site and its start": done[last] - min(sent) - work[live.sites[last]],
                "back": max(received) - done[last],
                "server": min(following) - max(received),
            }
        )
    means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
    means["beyond the work"] = means["round"] - means["work"]
    if mbit is None:
        return means | {"aim": AIM_SECONDS}
    least = (_bytes(server, "sent", rounds) + _bytes(server, "received", rounds)) * 8 / (mbit * 1e6)
    return means | {"bytes over bandwidth": least, "times that": means["beyond the work"] / least, "aim": AIM_TIMES}


def _bytes(events: list[dict[str, Any]], event: str, rounds: int) -> int:
    """The most that a site was sent, or sent, in a round that counts."""
    exchanges = {f"round {number}, train" for number in range(2, rounds)}
    return max(each["bytes"] for each in events if each["event"] == event and each.get("exchange") in exchanges)


def _is_work(line: Any, number: int) -> bool:
    """In one visit a site scores the model of the round before, then trains."""
    return (line.split == "train" and line.step == number) or (line.split == "val" and line.step == number - 1)


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _times(events: list[dict[str, Any]], event: str, exchange: str) -> list[float]:
    return [_time(each) for each in events if each["event"] == event and each.get("exchange") == exchange]


def _left(events: list[dict[str, Any]], number: int) -> float:
    return next(_time(e) for e in events if e["event"] == "left" and (e["asked"], e["round"]) == ("train", number))


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--mbit", type=float, default=None, help="of every site's link, none unless given")
    parser.add_argument("--out", type=Path, default=RESULTS / "round_cost.json")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        found = measure(Path(scratch), arguments.rounds, arguments.depth, arguments.pixels, arguments.mbit)
    asked = {
        "rounds": arguments.rounds,
        "depth": arguments.depth,
        "pixels": arguments.pixels,
        "sites": 2,
        "mbit": arguments.mbit,
    }
    write_results(arguments.out, {"conditions": conditions(1) | asked, "seconds": found})
    show("Seconds of a round over TLS", ("part", "s"), [(name, f"{value:.2f}") for name, value in found.items()])


if __name__ == "__main__":
    main()
