"""Was this patient among those that a site trained on? Two attacks, with and without patient-level privacy.

    python benchmarks/membership.py [--models 20] [--patients 64] [--epsilons 8 3 1]

Each of the models is one site's work on a random half of the patients, whose values and outcomes are random: whatever
a model knows of them it has by heart, which is the hardest case to protect. An attack looks at the final model's answer
for each patient, once for every model as the target:

- loss threshold (Yeom et al. 2018, arXiv 1709.01604): who has a low loss was a member;
- likelihood ratio (LiRA, Carlini et al. 2022, arXiv 2112.03570): the logit of the true outcome under two normal
  distributions, fitted for each patient to the other models that had the patient and to those that had not, with one
  variance for all patients.

The threshold for a target is the one that was best on all others. The advantage, the share of members who are called so
less that of other patients, is the mean over targets, with a 95 % interval from 10,000 resamples of targets.
(epsilon, delta) allows (e^epsilon - 1 + 2 delta) / (e^epsilon + 1) and no more (Humphries et al. 2023).
"""

import argparse
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import RESULTS, conditions, show, write_results
from site_training import Train, defences, one_thread, quiet, samples_of, site_training
from sklearn.metrics import roc_auc_score
from synthetic_cohort import write_cohort

from client.dataset import SampleSet
from dipro_model import collate

DELTA = 1e-5
PLAIN = (
    "parts.radiographs=false",
    "model.freeze_backbone=true",
    "model.backbone_depth=10",
    "model.crop_pixels=16",
    "model.width=16",
    "model.num_transformer_layers=1",
    "model.dropout=0.0",
    "training.batch_norm=frozen",
    "training.class_weights=none",
    "training.learning_rate=1e-2",
    "training.schedule=constant",
    "training.weight_decay=0.0",
    "training.batch_size=32",
    "training.accumulated_batches=1",
    "federation.rounds=1",
    "federation.local_epochs=100",
    "federation.check_duplicates=false",
)
PRIVATE = (
    f"patient_privacy.delta={DELTA}",
    "patient_privacy.sampling_rate=0.5",
    "patient_privacy.gradients=vmap",
    "patient_privacy.patients_at_once=32",
    "patient_privacy.statistics=public",
    "federation.local_epochs=20",
)


def allowed(epsilon: float, delta: float) -> float:
    """The largest advantage of any attack that (epsilon, delta) allows."""
    return (math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1)


def margins(train: Train, members: SampleSet, everybody: SampleSet) -> np.ndarray:
    """float64 [patient]: the logit of the true outcome of every patient, by the model that the members made."""
    model = train(members).eval()
    batch = collate([everybody[number] for number in range(len(everybody))])
    assert batch.label is not None
    with torch.no_grad():
        return (model(batch).logits[:, 0, 0] * (2 * batch.label - 1)).double().numpy()


def likelihood_ratios(margin: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """float64 [model, patient]: how much likelier a target's margin is of a member; its own is not fitted to."""
    scores = np.zeros_like(margin)
    for target in range(len(margin)):
        others = np.arange(len(margin)) != target
        means, variances = [], []
        for kind in (inside[others], ~inside[others]):
            count = kind.sum(axis=0).clip(min=1)
            mean = (margin[others] * kind).sum(axis=0) / count
            means.append(mean)
            variances.append((np.square(margin[others] - mean) * kind).sum() / kind.sum())
        of_member, of_other = (
            -np.square(margin[target] - mean) / (2 * variance) - math.log(variance) / 2
            for mean, variance in zip(means, variances, strict=True)
        )
        scores[target] = of_member - of_other
    return scores


def advantages(scores: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """float64 [model]: of each target, with the threshold that is best on all others."""
    found = []
    for target in range(len(scores)):
        others = np.arange(len(scores)) != target
        threshold = _best_threshold(scores[others].ravel(), inside[others].ravel())
        called = scores[target] >= threshold
        found.append(called[inside[target]].mean() - called[~inside[target]].mean())
    return np.array(found)


def _best_threshold(scores: np.ndarray, inside: np.ndarray) -> float:
    order = np.argsort(-scores)
    gains = np.cumsum(np.where(inside[order], 1 / inside.sum(), -1 / (~inside).sum()))
    # Who has the same score is called together: only the last of them tells what a threshold there gains.
    gains[:-1][np.diff(scores[order]) == 0] = -np.inf
    return float(scores[order][int(np.argmax(gains))])


def summary(scores: np.ndarray, inside: np.ndarray) -> dict[str, Any]:
    """Advantage with its interval, area under the curve, and hits among members where 1 % of the others are called."""
    each = advantages(scores, inside)
    draws = np.random.default_rng(0).choice(each, (10_000, len(each))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    strict = np.quantile(scores[~inside], 0.99)
    return {
        "advantage": round(float(each.mean()), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "auroc": round(float(roc_auc_score(inside.ravel(), scores.ravel())), 3),
        "hits_at_1_percent": round(float((scores[inside] > strict).mean()), 3),
    }


def attack(train: Train, cohort: Path, settings: Any, inside: np.ndarray) -> dict[str, Any]:
    """Both attacks on models that `train` made; `inside` [model, patient] says who was in which."""
    everybody = samples_of(cohort, settings, "train")
    subjects = np.array([subject for _, subject in everybody.patients])
    start = time.perf_counter()
    margin = np.stack(
        [margins(train, samples_of(cohort, settings, "train", subjects[row].tolist()), everybody) for row in inside]
    )
    found = {
        "loss threshold": summary(margin, inside),
        "likelihood ratio": summary(likelihood_ratios(margin, inside), inside),
    }
    right = {"members": float((margin[inside] > 0).mean()), "others": float((margin[~inside] > 0).mean())}
    return {**found, "right_outcomes": right, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8, 3, 1])
    parser.add_argument("--out", type=Path, default=RESULTS / "membership.json")
    arguments = parser.parse_args()
    quiet()
    one_thread()
    # Every patient is in half of the models, but for one where their number is odd.
    order = np.random.default_rng(0).random((arguments.models, arguments.patients)).argsort(axis=0)
    inside = order < arguments.models // 2
    results: dict[str, Any] = {"conditions": conditions(1), "models": arguments.models, "delta": DELTA, "attacks": {}}
    rows = []
    with TemporaryDirectory() as scratch:
        sizes = {"num_stays": arguments.patients, "num_images": 2, "num_hours": 12}
        cohort = write_cohort(Path(scratch) / "cohort", **sizes, black=True)
        for epsilon, settings in defences(PLAIN, PRIVATE, arguments.epsilons).items():
            found = attack(site_training(settings), cohort, settings, inside)
            limit = 1.0 if epsilon is None else allowed(epsilon, DELTA)
            name = "without" if epsilon is None else f"epsilon {epsilon:g}"
            results["attacks"][name] = {**found, "allowed": round(limit, 4)}
            for kind in ("loss threshold", "likelihood ratio"):
                of = found[kind]
                shown = [of["advantage"], "{} to {}".format(*of["interval"]), f"{limit:.3f}", of["auroc"]]
                rows.append([name, kind, *shown, of["hits_at_1_percent"]])
            write_results(arguments.out, results)
    columns = ["privacy", "attack", "advantage", "95 %", "allowed", "AUROC", "hits at 1 %"]
    show("Membership inference", columns, rows)


if __name__ == "__main__":
    main()
