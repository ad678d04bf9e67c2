"""How often the verdict on non-inferiority is wrong where the true difference is known.

usage: python benchmarks/verdict_errors.py

Prints what docs/comparison.md shows. Deaths are 15 % of the patients; a model's score is normal with sd 1, higher by a
shift for those who die, so that its true AUROC is Phi(shift / sqrt 2). The reference has 0.85, the other model less by
the true loss; the scores of the two are correlated within survivors and within deaths, as those of two trainings are.
"""

from statistics import NormalDist

import numpy as np

from client.predictions import Predictions
from dipro_model.vocabulary import REGIONS, Task
from simulation.comparison.draws import draw, estimate, minus

MARGIN, SHARE, REFERENCE = 0.01, 0.15, 0.85
REPEATS, RESAMPLES = 400, 400
SETTINGS = ((600, 0.95), (600, 0.99), (2000, 0.95))
"""Patients, correlation of the scores."""
LOSSES = (0.0, 0.005, 0.01, 0.02)


def main() -> None:
    """Print a row a setting and true loss: shares of the repeats with each verdict."""
    normal = NormalDist()
    print("| patients | correlation | true loss | non-inferior | not shown | inferior |\n|---|---|---|---|---|---|")
    for num_patients, correlation in SETTINGS:
        for loss in LOSSES:
            shifts = [2**0.5 * normal.inv_cdf(area) for area in (REFERENCE, REFERENCE - loss)]
            generator, counts = np.random.default_rng(0), {"low": 0, "high": 0}
            for _ in range(REPEATS):
                died = generator.random(num_patients) < SHARE
                common, *own = generator.normal(size=(3, num_patients))
                scores = [
                    correlation**0.5 * common + (1 - correlation) ** 0.5 * each + shift * died
                    for each, shift in zip(own, shifts, strict=True)
                ]
                scored = {
                    name: _predictions(died, each) for name, each in zip(("reference", "other"), scores, strict=True)
                }
                drawn = draw(scored, ["auroc"], num_resamples=RESAMPLES, seed=0)
                found = estimate(minus(drawn["other", "auroc"], drawn["reference", "auroc"]), level=0.95)
                if found.low is None or found.high is None:
                    raise SystemExit("expected an interval in every repeat, found none; draw more patients")
                counts["low"] += found.low > -MARGIN
                counts["high"] += found.high < -MARGIN
            shares = [100 * counts["low"] / REPEATS, 100 * counts["high"] / REPEATS]
            words = [f"{share:.1f} %" for share in (shares[0], 100 - sum(shares), shares[1])]
            print(f"| {num_patients} | {correlation} | {loss} | {' | '.join(words)} |", flush=True)


def _predictions(died: np.ndarray, scores: np.ndarray) -> Predictions:
    """One stay a patient, the score as a logit."""
    who = np.arange(len(died))
    return Predictions(
        task=Task.MORTALITY,
        site=np.full(len(died), "a", dtype=object),
        subject_id=who,
        stay_id=who,
        sample_id=who.astype(str).astype(object),
        split=np.full(len(died), "test", dtype=object),
        labels=died.astype(np.int8),
        probabilities=(1 / (1 + np.exp(-scores)))[:, None, None].astype(np.float32),
        attention=np.zeros((len(died), 1, len(REGIONS)), dtype=np.float32),
    )


if __name__ == "__main__":
    main()
