"""Training throughput of the published model on a GPU, beside a bare ResNet-50 on the same crops.

    python benchmarks/gpu_step.py [--stays-of-a-batch 8] [--workers 0 2 4 8] [--scratch FOLDER]
    python benchmarks/gpu_step.py --device cpu --smoke    (tries the script out; its figures say nothing)

Mortality, stays of four radiographs without padding, 224 pixels, bfloat16 autocast, channels last, fused AdamW, with
and without torch.compile. The bare loop is the same ResNet-50 with one linear layer behind it: forward, cross entropy,
backward, update. Both read a batch that lies on the GPU; warm-up steps, in which kernels are chosen and compiled, do
not count. Then epochs of training as a run makes them, from a cohort of random crops on disk through pinned memory:
the share of time in which no kernel ran on the GPU is its idle share. Last, throughput and memory against the batch
size. Each measurement is a process of its own.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import RESULTS, conditions, in_new_process, show, write_results
from synthetic_batch import random_batch
from synthetic_cohort import write_cohort
from torch import Tensor, nn
from torch.nn import functional

from client.dataset import SampleSet
from client.records import SiteRecords, SiteSpec
from client.training import class_weights, make_optimizer, place, train_epoch
from dipro_model import ClassWeights, DiPro, objective
from dipro_model.vocabulary import REGIONS, Task
from federation.settings import RunSettings, load_settings

FRAMES = 4
SHARE_AIM, IDLE_AIM = 0.85, 0.05


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a measurement runs on, and how long."""

    device: str
    pixels: int = 224
    depth: int = 50
    warm_up: int = 20
    steps: int = 30
    compile: bool = False

    def settings(self, *overrides: str) -> RunSettings:
        model = (f"model.crop_pixels={self.pixels}", f"model.backbone_depth={self.depth}")
        how = ("training.precision=bf16", f"training.compile={str(self.compile).lower()}")
        return load_settings(overrides=[*model, *how, *overrides])


def bare_resnet(setup: Setup, stays: int) -> dict[str, Any]:
    """Steps of the ResNet alone on the crops of a batch."""
    settings, device = setup.settings(), torch.device(setup.device)
    backbone = place(DiPro(settings.config()), device, settings).backbone
    head = nn.Linear(settings.config().backbone.num_features, 2, device=device)
    parameters = [*backbone.resnet.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True)
    crops = random_batch([FRAMES] * stays, pixels=setup.pixels).regions.flatten(0, 1).to(device)
    labels = torch.arange(len(crops) * len(REGIONS), device=device) % 2

    def loss() -> Tensor:
        return functional.cross_entropy(head(backbone.features(crops).flatten(0, 1)), labels)

    return _timed_steps(setup, stays, optimizer, loss)


def whole_model(setup: Setup, stays: int) -> dict[str, Any]:
    """Steps of DiPro on a batch that lies on the device."""
    settings, device = setup.settings(), torch.device(setup.device)
    model = place(DiPro(settings.config()).train(), device, settings)
    optimizer = make_optimizer(model, settings)
    batch, weights = random_batch([FRAMES] * stays, pixels=setup.pixels).to(device), ClassWeights().to(device)
    return _timed_steps(setup, stays, optimizer, lambda: objective(model(batch), batch, model.config, weights)[0])


def _timed_steps(
    setup: Setup, stays: int, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
) -> dict[str, Any]:
    def steps(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        _wait(setup.device)
        return time.perf_counter() - start

    try:
        steps(setup.warm_up)
        seconds = steps(setup.steps)
    except torch.OutOfMemoryError:
        return {"killed": True}
    crops = setup.steps * stays * FRAMES * len(REGIONS)
    return {"crops_per_second": crops / seconds, "seconds_a_step": seconds / setup.steps, **_memory(setup.device)}


def epoch_from_disk(setup: Setup, cohort: Path, stays: int, workers: int) -> dict[str, Any]:
    """The second epoch of training on a cohort: crops a second and the share of time without a kernel."""
    settings = setup.settings(f"training.batch_size={stays}", f"training.loader_workers={workers}")
    device = torch.device(setup.device)
    site = SiteRecords(SiteSpec(name="site", cohort=cohort), crop_pixels=setup.pixels)
    model = place(DiPro(settings.config()), device, settings)
    samples = SampleSet([site], Task.MORTALITY, "train")
    optimizer, weights = make_optimizer(model, settings), class_weights(samples, settings).to(device)

    def epoch() -> float:
        start = time.perf_counter()
        train_epoch(model, samples, optimizer, settings, weights, epoch=0, num_epochs=1)
        _wait(setup.device)
        return time.perf_counter() - start

    epoch()
    seconds = epoch()
    crops = len(samples) * FRAMES * len(REGIONS)
    return {"crops_per_second": crops / seconds, "idle": _idle_share(setup.device, epoch), **_memory(setup.device)}


def _idle_share(device: str, epoch: Callable[[], float]) -> float | None:
    """1 - (time of all kernels and copies) / (time of the epoch); None where there is no GPU."""
    if device == "cpu":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = epoch()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return 1 - busy / seconds


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _memory(device: str) -> dict[str, float]:
    return {} if device == "cpu" else {"gpu_peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny network")
    parser.add_argument("--stays-of-a-batch", type=int, default=8, help="of the comparison and of the epochs")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--stays", type=int, default=512, help="of the cohort, 2 MB each")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--scratch", type=Path, default=None, help="folder with 1.5 GB free")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_step.json")
    arguments = parser.parse_args()
    setup = Setup(device=arguments.device)
    if arguments.smoke:
        setup = replace(setup, pixels=32, depth=10, warm_up=1, steps=2)
        arguments.stays_of_a_batch, arguments.batch_sizes, arguments.stays, arguments.workers = 2, [1, 2], 6, [0, 1]
    _require_device(arguments)
    results: dict[str, Any] = {"conditions": _conditions(arguments), "smoke": arguments.smoke}
    results["step"] = measure_steps(setup, arguments)
    results["epoch"] = measure_epochs(setup, arguments)
    results["batch"] = measure_batches(setup, arguments)
    write_results(arguments.out, results)


def _require_device(arguments: argparse.Namespace) -> None:
    if arguments.device == "cpu" and not arguments.smoke:
        raise SystemExit("--device cpu is for a trial of the script: add --smoke; training_step.py measures CPUs")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device {arguments.device}: this benchmark needs a CUDA GPU and PyTorch sees none; run it on a machine "
            "with one, or try the script out with --device cpu --smoke"
        )


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.device == "cpu":
        return conditions(arguments.threads)
    properties = torch.cuda.get_device_properties(arguments.device)
    return {
        **conditions(arguments.threads),
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
    }


def measure_steps(setup: Setup, arguments: argparse.Namespace) -> dict[str, Any]:
    """The bare ResNet and DiPro, each as it is and compiled."""
    results, rows = {}, []
    for compiled in (False, True):
        way = "compiled" if compiled else "as it is"
        chosen = replace(setup, compile=compiled)
        bare, whole = (
            in_new_process(step, chosen, arguments.stays_of_a_batch, threads=arguments.threads)
            for step in (bare_resnet, whole_model)
        )
        share = whole["crops_per_second"] / bare["crops_per_second"]
        results[way] = {"bare": bare, "whole": whole, "share": share, "aim": SHARE_AIM}
        rows.append([way, *(f"{each['crops_per_second']:.0f}" for each in (bare, whole)), f"{share:.0%}"])
    show(
        f"Crops a second of a training step, {arguments.stays_of_a_batch} stays, aim: {SHARE_AIM:.0%}",
        ["ResNet", "bare ResNet", "whole model", "share"],
        rows,
    )
    return results


def measure_epochs(setup: Setup, arguments: argparse.Namespace) -> dict[str, Any]:
    """Training from disk with different numbers of loader processes."""
    results, rows = {}, []
    with TemporaryDirectory(dir=arguments.scratch) as scratch:
        cohort = write_cohort(Path(scratch) / "cohort", num_stays=arguments.stays, num_images=FRAMES, num_hours=48)
        for workers in arguments.workers:
            run = in_new_process(
                epoch_from_disk, setup, cohort, arguments.stays_of_a_batch, workers, threads=arguments.threads
            )
            results[str(workers)] = run
            idle = "" if run["idle"] is None else f"{run['idle']:.1%}"
            rows.append([workers, f"{run['crops_per_second']:.0f}", idle])
    show(f"An epoch from disk, aim: idle below {IDLE_AIM:.0%}", ["loader processes", "crops a second", "idle"], rows)
    return results


def measure_batches(setup: Setup, arguments: argparse.Namespace) -> dict[str, Any]:
    """Throughput and memory of DiPro against the number of stays of a batch, until memory does not suffice."""
    results, rows = {}, []
    for stays in arguments.batch_sizes:
        run = in_new_process(whole_model, setup, stays, threads=arguments.threads)
        results[str(stays)] = run
        if "killed" in run:
            rows.append([stays, "does not fit", "", ""])
            break
        peak = run.get("gpu_peak_gb", run["peak_gb"])
        rows.append([stays, f"{run['crops_per_second']:.0f}", f"{peak:.2f}", f"{peak / stays:.2f}"])
    show(
        f"Against the batch size, stays of {FRAMES} radiographs",
        ["stays", "crops a second", "peak, GB", "GB a stay"],
        rows,
    )
    return results


if __name__ == "__main__":
    main()
