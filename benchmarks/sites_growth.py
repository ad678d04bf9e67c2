"""How time and memory of a round in one process grow with the number of sites, up to 100, with the small model.

    python benchmarks/sites_growth.py [--sites 5 20 100] [--threads 2]

Twice: with as many training patients together whatever the number of sites, and with as many at each site. Every site
has a cohort of random values made here; ResNet-10 at 32 pixels, width 64, trained. A round is training, the
guards' norms, the mean, scoring of the validation patients and the checkpoints; the first round, in which records are
read and memory is claimed, does not count. Peak memory is of the whole process, imports included.
"""

import argparse
import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measure import RESULTS, conditions, in_new_process, show, write_results
from synthetic_cohort import write_cohort

from client.records import SiteSpec
from federation.settings import load_settings
from simulation.in_process import simulate_in_process

ROUNDS = 3
TOGETHER, EACH = 400, 4
"""Training patients of all sites together, and of each site; the same where there are 100 sites."""


def round_cost(folder: Path, num_sites: int, patients_each: int) -> dict[str, Any]:
    """Wall seconds until the first round has ended, and of a round after it, the mean over rounds."""
    settings = load_settings(
        overrides=[
            "model.backbone_depth=10",
            "model.crop_pixels=32",
            "model.width=64",
            "training.batch_size=8",
            "training.accumulated_batches=1",
            f"federation.rounds={ROUNDS}",
            "federation.minimum_cell=1",
            # Every site numbers its patients from 1.
            "federation.check_duplicates=false",
        ]
    )
    # Flower tells every aggregation.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    marks: list[float] = []
    cohorts = [
        write_cohort(folder / f"site_{number}", num_stays=patients_each, num_images=2, num_hours=48)
        for number in range(num_sites)
    ]
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    start = time.perf_counter()
    simulate_in_process(specs, settings, folder / "run", on_round=lambda lines: marks.append(time.perf_counter()))
    return {"first_round_s": marks[0] - start, "round_s": float(np.diff(marks).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=None, help="folder with room for the cohorts, 1.5 GB")
    parser.add_argument("--out", type=Path, default=RESULTS / "sites_growth.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "conditions": conditions(arguments.threads),
        "rounds": ROUNDS,
        "model": "ResNet-10, 32 px",
    }
    rows = []
    for case in ("patients together", "patients each"):
        results[case] = {}
        for num_sites in arguments.sites:
            each = TOGETHER // num_sites if case == "patients together" else EACH
            with TemporaryDirectory(dir=arguments.scratch) as folder:
                cost = in_new_process(round_cost, Path(folder), num_sites, each, threads=arguments.threads)
            results[case][num_sites] = {"training_patients_each": each, **cost}
            seconds = [cost["first_round_s"], cost["round_s"], cost["round_s"] / num_sites]
            rows.append([case, num_sites, each, *(f"{value:.2f}" for value in seconds), cost["peak_gb"]])
            write_results(arguments.out, results)
    columns = ["fixed", "sites", "training patients a site", "first round, s", "round, s", "s a site", "peak, GB"]
    show("Growth with the number of sites, in one process", columns, rows)


if __name__ == "__main__":
    main()
