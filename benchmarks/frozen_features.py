"""How much faster an epoch is with the features of a frozen ResNet from disk than with the ResNet in the loop.

    python benchmarks/frozen_features.py [--stays 24] [--images 4] [--threads 2] [--repeats 3]

The cohort is random and made here; the task is mortality with the published settings, ResNet-50 at 224 pixels in
float32. Both ways train the same model on the same samples. With features: the computation of the cache, once, and
epochs that read it; the second epoch of a process counts. With crops: one epoch of a process, after one batch. Each
process is one repeat, the ways take turns, and the one of least CPU-seconds counts. An epoch of `dipro-fed train` is a
pass of training and one of scoring the validation part, a seventh as large: the last row.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import RESULTS, conditions, in_new_process, interleaved, show, write_results
from synthetic_cohort import write_cohort

from client.dataset import SampleSet
from client.features import inputs_of
from client.records import SiteRecords, SiteSpec
from client.training import class_weights, make_optimizer, place, predict, train_epoch
from dipro_model import DiPro
from dipro_model.vocabulary import Task
from federation.settings import RunSettings, load_settings

AIM = 100

TRAINING_TO_VALIDATION = 7
"""Of the cohort's parts, 70, 10 and 20 % of the patients."""


def settings_of(pixels: int, depth: int) -> RunSettings:
    return load_settings(
        overrides=["model.freeze_backbone=true", f"model.crop_pixels={pixels}", f"model.backbone_depth={depth}"]
    )


def frozen_epoch(cohort: Path, way: str, pixels: int, depth: int) -> dict[str, Any]:
    """Cost of an epoch of training and one of scoring, and what the first use of the features cost."""
    settings = settings_of(pixels, depth)
    site = SiteRecords(SiteSpec(name="site", cohort=cohort), crop_pixels=pixels)
    torch.manual_seed(settings.seed)
    model = place(DiPro(settings.config()), torch.device("cpu"), settings)
    prepared = _cost(lambda: inputs_of([site], model, settings))
    inputs = inputs_of([site], model, settings)
    samples = SampleSet([site], Task.MORTALITY, "train", inputs if way == "features" else replace(inputs, features={}))
    optimizer, weights = make_optimizer(model, settings), class_weights(samples, settings)
    losses = []

    def train() -> None:
        losses.append(train_epoch(model, samples, optimizer, settings, weights, epoch=0, num_epochs=1)["total"])

    if way == "features":
        train()
    else:
        _one_batch(samples, model)
    train_cost = _cost(train)
    score_cost = _cost(lambda: predict(model, samples, settings, weights))
    frames = sum(len(samples[index].regions) for index in range(len(samples)))
    return {"train": train_cost, "score": score_cost, "inputs": prepared, "frames": frames, "first_loss": losses[0]}


def _one_batch(samples: SampleSet, model: DiPro) -> None:
    """What PyTorch prepares on its first use of a layer is no part of an epoch."""
    with torch.no_grad():
        model.backbone(samples[0].regions)


def _cost(work: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stays", type=int, default=24)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--scratch", type=Path, default=None, help="folder with room for the cohort")
    parser.add_argument("--out", type=Path, default=RESULTS / "frozen_features.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "conditions": conditions(arguments.threads),
        "stays": arguments.stays,
        "images": arguments.images,
        "pixels": arguments.pixels,
        "depth": arguments.depth,
        "aim": AIM,
    }
    with TemporaryDirectory(dir=arguments.scratch) as scratch:
        cohort = write_cohort(
            Path(scratch) / "cohort", num_stays=arguments.stays, num_images=arguments.images, num_hours=48
        )

        def run(way: str) -> dict[str, Any]:
            return in_new_process(
                frozen_epoch, cohort, way, arguments.pixels, arguments.depth, threads=arguments.threads
            )

        # The first process computes the features; it is no repeat.
        results["computed once"] = run("features")["inputs"]
        for way, runs in interleaved(["features", "crops"], arguments.repeats, run).items():
            results[way] = min(runs, key=lambda run: run["train"]["cpu_s"])
    write_results(arguments.out, results)
    _print(results)


def _print(results: dict[str, Any]) -> None:
    crops, features = results["crops"], results["features"]
    rows = []
    for what in ("train", "score", "train and validate"):
        costs = [_cost_of(each, what) for each in (crops, features)]
        cpu, wall = (costs[0][unit] / costs[1][unit] for unit in ("cpu_s", "wall_s"))
        rows.append([what, *(f"{each['cpu_s']:.2f}" for each in costs), f"{cpu:.0f}", f"{wall:.0f}"])
    show(
        f"An epoch of {results['stays']} stays with {results['images']} radiographs, ResNet-{results['depth']} at "
        f"{results['pixels']} pixels, aim: {AIM} times less",
        ["pass", "crops, CPU s", "features, CPU s", "times less", "wall: times less"],
        rows,
    )
    difference = abs(crops["first_loss"] / features["first_loss"] - 1)
    print(f"\nMean loss of the first epoch with features and with crops: {difference:.0e} apart.")
    print(f"Peak: {crops['peak_gb']} GB with crops, {features['peak_gb']} GB with features.")


def _cost_of(way: dict[str, Any], what: str) -> dict[str, float]:
    if what in way:
        return way[what]
    return {unit: way["train"][unit] + way["score"][unit] / TRAINING_TO_VALIDATION for unit in way["train"]}


if __name__ == "__main__":
    main()
