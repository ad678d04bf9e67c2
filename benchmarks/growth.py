"""How the cost of an epoch grows with stays, images of a stay and EHR hours, and what that means at MIMIC's size.

    python benchmarks/growth.py [--repeats 3] [--threads 2] [--scratch FOLDER]

Each axis is measured alone on cohorts of random values made here, for mortality with the published network, in two
ways: the image network trained in the loop (ResNet-10 at 32 pixels, so that what lies behind it is seen as well), and
features of a frozen ResNet-50 from disk. A measurement is a process of its own that opens the cohort and trains two
epochs, of which the second counts; measurements of an axis take turns and the least CPU-seconds count.

What ResNet-50 at 224 pixels costs a radiograph is measured on four stays and multiplied: its cost is that of a crop
times the number of crops, which the first axes show.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measure import RESULTS, conditions, in_new_process, interleaved, show, write_results
from synthetic_cohort import write_cohort

from client.dataset import Inputs, SampleSet
from client.records import SiteRecords, SiteSpec
from client.training import class_weights, make_optimizer, place, train_epoch
from dipro_model import DiPro
from dipro_model.vocabulary import REGIONS, Task
from federation.settings import RunSettings, load_settings

MIMIC_IMAGES, MIMIC_IMAGES_OF_A_STAY = 20_000, 4


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a cohort: training stays, radiographs of each, EHR hours of each."""

    stays: int = 32
    images: int = 2
    hours: int = 48


AXES: Mapping[str, tuple[Size, ...]] = {
    "stays": tuple(Size(stays=stays) for stays in (16, 64, 256)),
    "images": tuple(Size(images=images) for images in (2, 4, 8, 14)),
    "hours": tuple(Size(hours=hours) for hours in (48, 96, 192)),
}
WAYS: Mapping[str, tuple[str, ...]] = {
    "ResNet-10, 32 pixels": ("model.backbone_depth=10", "model.crop_pixels=32"),
    "cached features": ("model.freeze_backbone=true",),
}
RESNET_50 = ("training.precision=bf16",)


def epoch_cost(cohort: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """CPU and wall seconds of opening a cohort and of the second epoch of training on it."""
    settings = load_settings(overrides=list(overrides))
    opening = time.process_time()
    site = SiteRecords(SiteSpec(name="site", cohort=cohort), crop_pixels=settings.model.crop_pixels)
    opening = time.process_time() - opening
    torch.manual_seed(settings.seed)
    model = place(DiPro(settings.config()), torch.device("cpu"), settings)
    samples = SampleSet([site], Task.MORTALITY, "train", _inputs(site, settings))
    optimizer, weights = make_optimizer(model, settings), class_weights(samples, settings)
    cost = {}
    for _ in range(2):
        cost = _cost(lambda: train_epoch(model, samples, optimizer, settings, weights, epoch=0, num_epochs=1))
    return {"open_cpu_s": round(opening, 3), **cost}


def _inputs(site: SiteRecords, settings: RunSettings) -> Inputs:
    """Random features where the image network is frozen: reading them costs what reading true ones does."""
    if not settings.model.freeze_backbone:
        return Inputs()
    shape = (len(site.regions), len(REGIONS), settings.config().backbone.num_features)
    path = site.path / "random_features.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).random(shape, np.float32))
    return Inputs(features={site.name: np.load(path, mmap_mode="r")})


def compute_cost(cohort: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """CPU and wall seconds of the features of all radiographs of a small cohort."""
    settings = load_settings(overrides=[*overrides, "model.freeze_backbone=true"])
    site = SiteRecords(SiteSpec(name="site", cohort=cohort))
    model = place(DiPro(settings.config()), torch.device("cpu"), settings)
    crops = site.crops(np.arange(len(site.regions)))
    with torch.no_grad():
        model.backbone.features(crops[:2])
        cost = _cost(lambda: [model.backbone.features(crops[place : place + 2]) for place in range(0, len(crops), 2)])
    return {**cost, "images": len(crops)}


def _cost(work: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"cpu_s": round(time.process_time() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}


def exponent(runs: Mapping[int, dict[str, Any]], what: str) -> float:
    """e where cost grows as size to the power e, from the two largest sizes, where what is constant counts least."""
    (size, run), (larger, larger_run) = list(runs.items())[-2:]
    return math.log(larger_run[what] / run[what]) / math.log(larger / size)


def measure_axis(axis: str, arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The least cost of each size, by way."""
    cohorts = {}
    for size in AXES[axis]:
        number = getattr(size, axis)
        cohorts[number] = write_cohort(
            scratch / f"{axis}_{number}", num_stays=size.stays, num_images=size.images, num_hours=size.hours
        )

    def run(case: str) -> dict[str, Any]:
        way, _, number = case.rpartition(":")
        return in_new_process(epoch_cost, cohorts[int(number)], WAYS[way], threads=arguments.threads)

    cases = [f"{way}:{number}" for way in WAYS for number in cohorts]
    least = {
        case: min(runs, key=lambda run: run["cpu_s"])
        for case, runs in interleaved(cases, arguments.repeats, run).items()
    }
    return {way: {number: least[f"{way}:{number}"] for number in cohorts} for way in WAYS}


def measure_resnet_50(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    cohort = write_cohort(scratch / "resnet_50", num_stays=4, num_images=2, num_hours=48)
    training = in_new_process(epoch_cost, cohort, RESNET_50, threads=arguments.threads)
    features = in_new_process(compute_cost, cohort, RESNET_50, threads=arguments.threads)
    return {"training": {**training, "images": 8}, "features": features}


def _print_axis(axis: str, ways: dict[str, dict[int, dict[str, Any]]]) -> None:
    rows = []
    for way, runs in ways.items():
        for number, run in runs.items():
            rows.append([way, number, run["cpu_s"], run["wall_s"], run["open_cpu_s"], run["peak_gb"]])
        rows.append([way, "power", f"{exponent(runs, 'cpu_s'):.2f}", f"{exponent(runs, 'wall_s'):.2f}", "", ""])
    show(f"An epoch against {axis}", ["way", axis, "CPU s", "wall s", "opening, CPU s", "peak, GB"], rows)


def at_size_of_mimic(results: dict[str, Any]) -> list[list[object]]:
    """Cost of 20,000 radiographs in stays of four, from cost a radiograph and a stay."""
    training, computing = (results["ResNet-50"][what] for what in ("training", "features"))
    images = replace(AXES["images"][0], images=MIMIC_IMAGES_OF_A_STAY)
    cached = results["images"]["cached features"][images.images]
    rows: list[list[object]] = []
    for what, run, seen in (
        ("epoch, ResNet-50 trained, bf16", training, training["images"]),
        ("features of the frozen ResNet-50, once, bf16", computing, computing["images"]),
        ("epoch, cached features", cached, images.stays * images.images),
    ):
        cpu, wall = (run[unit] / seen * MIMIC_IMAGES for unit in ("cpu_s", "wall_s"))
        rows.append([what, f"{run['cpu_s'] / seen:.4f}", f"{cpu / 3600:.2f}", f"{wall / 3600:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=None, help="folder with 1 GB free (default: the system's)")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"conditions": conditions(arguments.threads)}
    for axis in AXES:
        with TemporaryDirectory(dir=arguments.scratch) as scratch:
            results[axis] = measure_axis(axis, arguments, Path(scratch))
        _print_axis(axis, results[axis])
    with TemporaryDirectory(dir=arguments.scratch) as scratch:
        results["ResNet-50"] = measure_resnet_50(arguments, Path(scratch))
    show(
        f"{MIMIC_IMAGES:,} radiographs, {MIMIC_IMAGES_OF_A_STAY} a stay",
        ["what", "CPU s a radiograph", "CPU hours", "wall hours"],
        at_size_of_mimic(results),
    )
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
