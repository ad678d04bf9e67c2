"""What site-level privacy leaves of a model, by the number of sites and by epsilon.

    python benchmarks/site_privacy.py [--sites 2 10 50] [--epsilons 50 8 1] [--repeats 2] [--threads 1]

First the noise alone, which needs no training: how many times as long it is as the mean update of all sites can be.
Then runs: 200 training patients of a cohort that is made here, dealt to so many sites; a small DiPro without
radiographs; the AUROC of the last round's model on 200 other patients, who are in no way protected. The signal is
plain: without privacy five rounds find it. All sites take part in each round, so that nothing is gained by sampling.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measure import RESULTS, conditions, in_new_process, show, write_results
from synthetic_cohort import write_cohort

from client.predictions import read_predictions
from client.records import SiteSpec
from dipro_model.metrics import score
from dipro_model.vocabulary import SPLITS, Task
from federation.accounting import noise_for
from federation.run_folder import read_run
from federation.settings import load_settings
from simulation.in_process import simulate_in_process

PATIENTS, ROUNDS, DELTA = 200, 5, 1e-5
SMALL = (
    "parts.radiographs=false",
    "model.freeze_backbone=true",
    "model.backbone_depth=10",
    "model.crop_pixels=16",
    "model.width=8",
    "model.num_transformer_layers=1",
    "model.dropout=0.0",
    "training.batch_norm=frozen",
    "training.learning_rate=1e-2",
    "training.schedule=constant",
    "training.weight_decay=0.0",
    "training.batch_size=8",
    "training.accumulated_batches=1",
    f"federation.rounds={ROUNDS}",
    f"federation.score_every={ROUNDS}",
    "federation.local_epochs=2",
    # Every validation patient's score is looked at here; a hospital's stay there.
    "federation.minimum_cell=1",
    "federation.check_duplicates=false",
)
SIZES = {"this benchmark's": 9_854, "DiPro, ResNet-50 frozen": 6_242_070, "DiPro": 29_750_102}
"""Numbers that are trained and noised, by model: running statistics and frozen modules are not among them."""


def auroc_of_run(folder: Path, cohort: Path, num_sites: int, epsilon: float | None) -> dict[str, Any]:
    """The AUROC of the last round's model on all validation patients; with epsilon what was spent, too."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("server.site_privacy").setLevel(logging.ERROR)
    private = [] if epsilon is None else ["site_privacy.enabled=true", f"site_privacy.epsilon={float(epsilon)}"]
    specs = [
        SiteSpec(name=f"site_{number:03d}", cohort=cohort, subjects=_subjects(number, num_sites))
        for number in range(num_sites)
    ]
    simulate_in_process(specs, load_settings(overrides=[*SMALL, *private]), folder)
    last = [folder / "sites" / spec.name / f"round_{ROUNDS:04d}" for spec in specs]
    first, *others = [read_predictions(each, Task.MORTALITY, [each.parent.name]) for each in last]
    together = first.join(others)
    found = score(Task.MORTALITY, together.labels.astype(np.int64), together.probabilities)["auroc"].value
    return {"auroc": found, "spent": read_run(folder).more.get("site_privacy")}


def _subjects(number: int, num_sites: int) -> tuple[int, ...]:
    """A site's part of each split; patients die in turn, so that each site has as many of either."""
    each = PATIENTS // num_sites
    starts = [PATIENTS * place + each * number + 1 for place in range(len(SPLITS))]
    return tuple(subject for start in starts for subject in range(start, start + each))


def noise_table(sites: Sequence[int], epsilons: Sequence[float]) -> list[list[object]]:
    """How many times as long as the mean update of all sites can be the noise of a round is."""
    rows = []
    for epsilon in epsilons:
        noise = noise_for(float(epsilon), DELTA, sampling_rate=1.0, count=ROUNDS)
        for name, size in SIZES.items():
            rows.append([epsilon, f"{noise:.2f}", name, *(f"{noise * math.sqrt(size) / each:,.1f}" for each in sites)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[50, 8, 1])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "site_privacy.json")
    arguments = parser.parse_args()
    start, rows = time.perf_counter(), []
    noise = noise_table(arguments.sites, arguments.epsilons)
    columns = [f"{number} sites" for number in arguments.sites]
    show(
        f"Noise of one of {ROUNDS} rounds over the longest mean update", ["epsilon", "noise", "model", *columns], noise
    )
    results: dict[str, Any] = {"conditions": conditions(arguments.threads), "rounds": ROUNDS, "delta": DELTA}
    results |= {"noise": noise, "runs": []}
    with TemporaryDirectory() as scratch:
        cohort = write_cohort(
            Path(scratch) / "cohort",
            num_stays=PATIENTS,
            num_images=2,
            num_hours=12,
            held_out=PATIENTS,
            signal=1.0,
            black=True,
        )
        for num_sites in arguments.sites:
            row: list[object] = [num_sites]
            for epsilon in (None, *arguments.epsilons):
                found = []
                for repeat in range(1 if epsilon is None else arguments.repeats):
                    folder = Path(scratch) / f"{num_sites} {epsilon} {repeat}"
                    run = in_new_process(auroc_of_run, folder, cohort, num_sites, epsilon, threads=arguments.threads)
                    results["runs"].append({"sites": num_sites, "epsilon": epsilon, **run})
                    found.append(run["auroc"])
                row.append(", ".join(f"{each:.3f}" for each in found))
            rows.append(row)
            results["seconds"] = round(time.perf_counter() - start)
            write_results(arguments.out, results)
    show("AUROC, a value a run", ["sites", "without", *(f"epsilon {each:g}" for each in arguments.epsilons)], rows)


if __name__ == "__main__":
    main()
