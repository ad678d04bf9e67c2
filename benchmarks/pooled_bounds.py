"""How far pooled metrics can be from the union's, for sites of several sizes, grids and minimum cells.

usage: python benchmarks/pooled_bounds.py

Prints what docs/pooled_metrics.md shows: of AUROC, AUPRC and calibration error the bound and how far off the value was.
Death in hospital: log-odds -2.2 + normal(0, 1), 1.3 more for the 15 % who die. Five equal sites, means of five seeds.
"""

import numpy as np

from dipro_model.metrics import score
from dipro_model.vocabulary import Task
from federation.pooled import combine, pooled_metrics, summarise

NUM_SITES = 5
NAMES = ("auroc", "auprc", "ece")


def main() -> None:
    print(f"{'stays a site':>12} {'cell':>4} {'bins':>5} {'kB a site':>9}", *(f"{name:>15}" for name in NAMES))
    for num_stays in (100, 1_000, 10_000):
        for minimum_cell, bins in ((1, 400), (1, 1_000), (1, 4_000), (5, 4_000), (10, 4_000)):
            rows = [_errors(num_stays, minimum_cell, bins, seed) for seed in range(5)]
            means = [np.nanmean([row[k] for row in rows], axis=0) for k in range(len(NAMES) + 1)]
            errors = " ".join(f"{bound:7.4f} {off:7.4f}" for bound, off in means[1:])
            print(f"{num_stays:>12} {minimum_cell:>4} {bins:>5} {means[0][0]:>9.1f} {errors}")


def _errors(num_stays: int, minimum_cell: int, bins: int, seed: int) -> list[tuple[float, float]]:
    """Kilobytes a site, then of each metric the bound of the error and the error."""
    generator = np.random.default_rng(seed)
    sites = [_site(generator, num_stays) for _ in range(NUM_SITES)]
    counts = [summarise(Task.MORTALITY, *site, bins=bins, minimum_cell=minimum_cell) for site in sites]
    kilobytes = np.mean([sum(each.nbytes for each in count.arrays().values()) / 1e3 for count in counts])
    found = pooled_metrics(combine(counts))
    labels, risks = (np.concatenate(parts) for parts in zip(*sites, strict=True))
    expected = score(Task.MORTALITY, labels, risks)
    rows = [(float(kilobytes), 0.0)]
    for name in NAMES:
        metric, value = found[name], expected[name].value
        known = metric.value is not None and metric.error is not None and value is not None
        rows.append((metric.error, abs(metric.value - value)) if known else (np.nan, np.nan))
    return rows


def _site(generator: np.random.Generator, num_stays: int) -> tuple[np.ndarray, np.ndarray]:
    died = generator.random(num_stays) < 0.15
    odds = generator.normal(-2.2 + 1.3 * died)
    return died.astype(np.int64), (1 / (1 + np.exp(-odds))).astype(np.float32).reshape(-1, 1, 1)


if __name__ == "__main__":
    main()
