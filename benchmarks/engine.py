"""What a round in one process costs beside the sites' own work, and how it grows with the number of sites.

    python benchmarks/engine.py [--sites 2 5 20] [--depth 50] [--pixels 32] [--threads 2]

Every site has a small cohort of random values made here. The work is the time within local training and scoring, as
the sites do it; what is left of a round is the engine: messages, weights to and from one flat array, checks, the mean,
the checkpoint, the history. The first round, in which cohorts are opened and memory is claimed, does not count. Aim,
for the full 31 million parameters: a round of 20 sites at most 1.1 times its local training and 0.2 s a site more.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from measure import RESULTS, conditions, in_new_process, show, write_results
from synthetic_cohort import write_cohort

import client.local_work
import client.site
from client.records import SiteSpec
from federation.settings import load_settings
from simulation.in_process import simulate_in_process

AIM_FACTOR, AIM_SECONDS = 1.1, 0.2
ROUNDS = 3


def round_costs(folder: Path, num_sites: int, depth: int, pixels: int) -> dict[str, Any]:
    """Wall seconds of a round after the first, those of them in training and in scoring, all as means over rounds."""
    cohorts = [write_cohort(folder / f"site_{n}", num_stays=4, num_images=2, num_hours=48) for n in range(num_sites)]
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    spent = {"train_epoch": 0.0, "predict": 0.0}
    for module, name in ((client.local_work, "train_epoch"), (client.site, "predict")):
        _count(module, name, spent)
    marks: list[tuple[float, dict[str, float]]] = []
    settings = load_settings(
        overrides=[
            f"model.backbone_depth={depth}",
            f"model.crop_pixels={pixels}",
            f"federation.rounds={ROUNDS}",
            # Every site has four patients, and numbers them from 1.
            "federation.minimum_cell=1",
            "federation.check_duplicates=false",
        ]
    )
    simulate_in_process(
        specs, settings, folder / "run", on_round=lambda lines: marks.append((time.perf_counter(), dict(spent)))
    )
    (start, before), (end, after) = marks[0], marks[-1]
    between = len(marks) - 1
    parts = {name: (after[name] - before[name]) / between for name in spent}
    return {"round_s": (end - start) / between, "train_s": parts["train_epoch"], "score_s": parts["predict"]}


def _count(module: ModuleType, name: str, spent: dict[str, float]) -> None:
    """Add the time within a function of the site's to what is spent."""
    function = getattr(module, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    setattr(module, name, counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 5, 20])
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=None, help="folder with room for the cohorts")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"conditions": conditions(arguments.threads), "depth": arguments.depth, "sites": {}}
    rows = []
    for num_sites in arguments.sites:
        with TemporaryDirectory(dir=arguments.scratch) as folder:
            cost = in_new_process(
                round_costs, Path(folder), num_sites, arguments.depth, arguments.pixels, threads=arguments.threads
            )
        work = cost["train_s"] + cost["score_s"]
        aim = AIM_FACTOR * work + AIM_SECONDS * num_sites
        results["sites"][num_sites] = cost
        beside = (cost["round_s"] - work) / num_sites
        cells = [cost["round_s"], cost["train_s"], cost["score_s"], beside, aim]
        rows.append([num_sites, *(f"{cell:.2f}" for cell in cells), cost["peak_gb"]])
    columns = ["sites", "round, s", "training, s", "scoring, s", "beside work, s a site", "aim, s", "peak, GB"]
    show("A round in one process", columns, rows)
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
