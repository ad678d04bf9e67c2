"""How long bootstrap intervals take, how high chance puts the calibration error, and how often its intervals hold.

usage: python benchmarks/metric_intervals.py

Prints what docs/metrics.md shows. Intervals of the calibration error are compared in worlds whose true error is known,
from three million draws: the risk is Beta(1, 6) and the model says the risk itself, 1.25 times or twice it (at most 1).
"""

import time

import numpy as np

from dipro_model import weighted
from dipro_model.metrics import bootstrap, metric_names, output_shape, resamples, score
from dipro_model.vocabulary import Task

SIZES, REPEATS, RESAMPLES = (55, 200, 1000), 300, 400


def draw(task: Task, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A thousand samples, every label and probability at random: no score comes twice, which is the slowest case."""
    num_outputs, num_classes = output_shape(task)
    classes = max(2, num_classes)
    probabilities = generator.dirichlet(np.ones(classes), (1000, num_outputs))[:, :, :num_classes]
    shape = (1000, num_outputs) if task is Task.DISEASE_PROGRESSION else (1000,)
    return generator.integers(0, 4 if task is Task.DISEASE_PROGRESSION else classes, shape), probabilities


def print_speed() -> None:
    generator = np.random.default_rng(0)
    print("| task | metrics | 1,000 resamples of 1,000 samples, CPU s |\n|---|---|---|")
    for task in Task:
        labels, probabilities = draw(task, generator)
        start = time.process_time()
        found = bootstrap(task, labels, probabilities, np.arange(1000), metrics=metric_names(task), seed=0)
        print(f"| {task} | {len(found)} | {time.process_time() - start:.1f} |")


def world(factor: float, num_samples: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Who died, and the risk that the model says."""
    risk = generator.beta(1, 6, num_samples)
    return generator.random(num_samples) < risk, np.minimum(1, factor * risk)


def print_calibration() -> None:
    print("\n| model says | samples | true error | mean of the error | percentile holds | basic holds |")
    print("|---|---|---|---|---|---|")
    for factor, words in ((1.0, "the risk"), (1.25, "1.25 x the risk"), (2.0, "2 x the risk")):
        died, said = world(factor, 3_000_000, np.random.default_rng(0))
        gaps = np.bincount(weighted.bin_of(said), said - died, weighted.NUM_BINS)
        true = 0.0 if factor == 1 else float(np.abs(gaps).sum() / len(said))
        for num_samples in SIZES:
            values, held = repeat(factor, num_samples, true)
            shares = " | ".join(f"{100 * share:.0f} %" for share in held)
            print(f"| {words} | {num_samples:,} | {true:.3f} | {values:.3f} | {shares} |")


def repeat(factor: float, num_samples: int, true: float) -> tuple[float, np.ndarray]:
    """Mean error, and how often the 95 % percentile interval and the one of `bootstrap` hold the true one."""
    generator, patients = np.random.default_rng(1), np.arange(num_samples)
    values, held = [], np.zeros(2)
    for seed in range(REPEATS):
        died, said = world(factor, num_samples, generator)
        arguments = (Task.MORTALITY, died.astype(int), said.reshape(-1, 1, 1))
        values.append(score(*arguments)["ece"].value)
        draws = np.concatenate(list(resamples(patients, num_resamples=RESAMPLES, seed=seed)))
        low, high = np.quantile(weighted.expected_calibration_error(died, said, draws), [0.025, 0.975])
        own = bootstrap(*arguments, patients, metrics=["ece"], num_resamples=RESAMPLES, seed=seed)["ece"]
        held += [low <= true <= high, own.low <= true <= own.high]
    return float(np.mean(values)), held / REPEATS


if __name__ == "__main__":
    print_speed()
    print_calibration()
