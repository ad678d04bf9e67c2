"""What a training step of the published model costs on a CPU, and what each measure against that cost gives.

    python benchmarks/training_step.py [--cohort COHORT] [--repeats 3] [--threads 2] [--memory-only | --time-only]
        [--without bf16] [--sums-only] [--batch "4 + 2 frames"]

The plain form computes in float32 with weights in torch's own memory order, sends padded frames through the image
network, updates with AdamW one tensor at a time and reads the label table from disk in every step, as the published
code does. Each measure is taken alone and on top of the ones before it. A step is forward, objective, backward and
update, the third in a process of its own; forms take turns, and the least of several repeats counts, because other
work on the machine can only add. CPU-seconds are those of the whole process, all threads together.

Padded frames go through the network in a call of their own: the same work as in one call, but batch statistics, and
with them the losses, stay those of real frames, so that all forms can be compared. Crops are the first ones of COHORT;
without it they are random shapes, which look so much alike that batch norm magnifies the rounding of other forms.
"""

import argparse
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import RESULTS, conditions, in_new_process, interleaved, show, write_results
from synthetic_batch import random_batch
from torch import Tensor

from client.cohort import REGION_FILE
from client.records import shrink
from client.training import make_optimizer
from dipro_model import Batch, ClassWeights, DiPro, Execution, objective
from dipro_model.vocabulary import DISEASES, REGIONS
from federation.memory import keep_freed_memory
from federation.settings import RunSettings, load_settings

COMPILED = "compiled"
MEASURES = {
    "channels last": "weights and images with the channels innermost",
    "real frames": "padded frames are left out",
    "bf16": "the image network under bfloat16 autocast",
    "fused AdamW": "all tensors updated in one pass",
    "labels once": "the label table stays in memory",
    "memory kept": "what one tensor frees serves the next, where the system would zero its pages again",
    COMPILED: "the image network through torch.compile, whose first step takes two minutes more",
}
CHECKPOINTS = "checkpoints"
"""Not a measure against time: activations are computed again instead of kept."""
PADDED, FULL, LONG = (4, 2), (4, 4), (14,)
"""Frames of the stays of a batch."""
TIMED = {"4 + 2 frames": PADDED, "4 + 4 frames": FULL}
TABLE_ROWS = 5000


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to do the step: which measures are on, and on which batch."""

    measures: tuple[str, ...]
    frames: tuple[int, ...]


def forms(frames: tuple[int, ...], without: Collection[str] = (), *, sums_only: bool = False) -> dict[str, Form]:
    """The plain form, each measure alone, each on top of the ones before it; all but `real frames` without padding.

    `sums_only` takes the plain form, all measures together and all but the compiler's alone.
    """
    names = tuple(name for name in MEASURES if name not in without and (name != "real frames" or len(set(frames)) > 1))
    if sums_only:
        sums = {"all": names}
        if COMPILED in names:
            sums = {"all but compiled": tuple(name for name in names if name != COMPILED), **sums}
        return {name: Form(measures=measures, frames=frames) for name, measures in {"plain": (), **sums}.items()}
    alone = {f"{name} alone": Form(measures=(name,), frames=frames) for name in names}
    added = {f"+ {name}": Form(measures=names[: place + 1], frames=frames) for place, name in enumerate(names) if place}
    return {"plain": Form(measures=(), frames=frames), **alone, **added}


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of least CPU-seconds, and those of all."""
    if any("killed" in run for run in runs):
        return {"killed": True}
    return {**min(runs, key=lambda run: run["cpu"]), "cpu_of_all": [run["cpu"] for run in runs]}


def show_times(batch: str, runs: dict[str, dict[str, Any]]) -> None:
    plain = runs["plain"]
    sections = ("labels", "forward", "backward", "update")

    def row(form: str, run: dict[str, Any]) -> list[object]:
        differences = [abs(ours / theirs - 1) for ours, theirs in zip(run["losses"], plain["losses"], strict=True)]
        return [
            form,
            f"{run['cpu']:.1f}",
            f"{plain['cpu'] / run['cpu']:.2f}",
            *(f"{run[name]:.2f}" if name in run else "" for name in sections),
            f"{run['wall']:.1f}",
            peak(run),
            *(f"{difference:.0e}" for difference in differences),
        ]

    show(
        f"A step of two stays, {batch}: CPU-seconds, wall seconds, gigabytes",
        ["form", "CPU", "times less", *sections, "wall", "peak", "loss differs by", "after an update", "after two"],
        [row(form, run) for form, run in runs.items()],
    )


def peak(run: dict[str, Any]) -> str:
    return "does not fit" if "killed" in run else f"{run['peak_gb']:.1f}"


def memory_forms() -> dict[str, Form]:
    """The batches that matter for memory, each with what saves some."""
    everything = tuple(name for name in MEASURES if name != COMPILED)
    float32 = tuple(name for name in everything if name != "bf16")
    ways = {
        "fp32": float32,
        "fp32, checkpoints": _saving(float32),
        "bf16": everything,
        "bf16, checkpoints": _saving(everything),
    }
    batches = {"4 + 2 frames": PADDED, "4 + 4 frames": FULL, "14 frames": LONG}
    return {
        f"{batch}, {way}": Form(measures=measures, frames=frames)
        for batch, frames in batches.items()
        for way, measures in ways.items()
    }


def _saving(measures: tuple[str, ...]) -> tuple[str, ...]:
    """With activations computed again, and without keeping memory, as `client.training.place` does it."""
    return (*(name for name in measures if name != "memory kept"), CHECKPOINTS)


def step_costs(form: Form, pixels: int, table: Path, cohort: Path | None) -> dict[str, Any]:
    """CPU-seconds of the third step by section, its wall seconds, and the losses of all three.

    The first claims memory, the optimizer's too; the second may claim more, around what the first left.
    """
    if "memory kept" in form.measures:
        keep_freed_memory()
    settings = load_settings(overrides=[f"model.crop_pixels={pixels}"])
    torch.manual_seed(settings.seed)
    model = DiPro(settings.config()).train()
    precision = "bf16" if "bf16" in form.measures else "fp32"
    saves, is_compiled = CHECKPOINTS in form.measures, COMPILED in form.measures
    model.backbone.execute(Execution(precision=precision, checkpoint_activations=saves, compile=is_compiled))
    if "channels last" in form.measures:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(model, settings) if "fused AdamW" in form.measures else _plain_adamw(model, settings)
    batch = random_batch(form.frames, pixels=pixels)
    if cohort is not None:
        batch = _with_crops(batch, np.load(cohort / REGION_FILE, mmap_mode="r"), pixels)
    losses, cost = [], {}
    for step in range(3):
        cost = {}
        start = time.perf_counter()
        torch.manual_seed(step)
        if "labels once" not in form.measures:
            with _counted(cost, "labels"):
                _read_labels(table)
        optimizer.zero_grad(set_to_none=True)
        with _counted(cost, "forward"):
            total = _loss(model, batch, everything="real frames" not in form.measures)
        with _counted(cost, "backward"):
            total.backward()
        with _counted(cost, "update"):
            optimizer.step()
        losses.append(float(total.detach()))
        cost["wall"] = time.perf_counter() - start
    cost["cpu"] = sum(cost[section] for section in ("forward", "backward", "update")) + cost.get("labels", 0.0)
    return {**{name: round(value, 3) for name, value in cost.items()}, "losses": losses}


def _with_crops(batch: Batch, stored: np.ndarray, pixels: int) -> Batch:
    """The batch with the first crops of a cohort in its real frames."""
    num_frames = int(batch.frame_mask.sum())
    if len(stored) < num_frames:
        raise SystemExit(f"--cohort: expected {num_frames} radiographs or more, found {len(stored)}")
    regions = batch.regions.clone()
    regions[batch.frame_mask] = shrink(stored[:num_frames], pixels).unsqueeze(2)
    return replace(batch, regions=regions)


def _loss(model: DiPro, batch: Batch, *, everything: bool) -> Tensor:
    total, _ = objective(model(batch), batch, model.config, ClassWeights())
    if everything and not bool(batch.frame_mask.all()):
        padding = model.backbone.features(batch.regions[~batch.frame_mask])
        # Its gradient is zero and still computed.
        total = total + 0.0 * padding.sum()
    return total


def _plain_adamw(model: DiPro, settings: RunSettings) -> torch.optim.Optimizer:
    rate, decay = settings.training.start_rate(settings.task), settings.training.weight_decay
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, foreach=False, fused=False)


@contextmanager
def _counted(cost: dict[str, float], section: str) -> Iterator[None]:
    start = time.process_time()
    yield
    cost[section] = time.process_time() - start


def write_labels(path: Path) -> None:
    """A training table of the published shape: a row a pair, words for the diseases of the pair and of each region."""
    rng = np.random.default_rng(0)
    words = np.array(["worsened", "improved", "no change", ""])
    names = [*DISEASES, *(f"{region}_{disease}" for region in REGIONS for disease in DISEASES)]
    table = pd.DataFrame({name: rng.choice(words, TABLE_ROWS, p=[0.1, 0.1, 0.2, 0.6]) for name in names})
    table.insert(0, "stay_id", np.arange(TABLE_ROWS))
    table.insert(1, "mortality_inhospital", rng.integers(0, 2, TABLE_ROWS))
    table.to_csv(path, index=False)


def _read_labels(path: Path) -> list[pd.Series]:
    """What weights of classes are made from: how often each word stands in each column of the pair, and the deaths."""
    table = pd.read_csv(path)
    return [table[name].value_counts() for name in (*DISEASES, "mortality_inhospital")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=None, help="prepared cohort whose crops are taken")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=224, help="smaller for a trial")
    parser.add_argument("--time-only", action="store_true")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--without", choices=MEASURES, action="append", default=[], help="a measure to leave out")
    parser.add_argument("--batch", choices=TIMED, action="append", help="a batch to time, both unless given")
    parser.add_argument("--sums-only", action="store_true", help="the measures together, not one by one")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_step.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"conditions": conditions(arguments.threads), "pixels": arguments.pixels}
    results["crops"] = "random shapes" if arguments.cohort is None else "real radiographs"
    with TemporaryDirectory() as folder:
        table = Path(folder) / "labels.csv"
        write_labels(table)

        def measured(cases: dict[str, Form], repeats: int) -> dict[str, Any]:
            def run(case: str) -> dict[str, Any]:
                return in_new_process(
                    step_costs, cases[case], arguments.pixels, table, arguments.cohort, threads=arguments.threads
                )

            return {case: least(runs) for case, runs in interleaved(list(cases), repeats, run).items()}

        if not arguments.memory_only:
            for name, frames in TIMED.items():
                if name not in (arguments.batch or TIMED):
                    continue
                cases = forms(frames, arguments.without, sums_only=arguments.sums_only)
                results[name] = measured(cases, arguments.repeats)
                show_times(name, results[name])
        if not arguments.time_only:
            results["memory"] = measured(memory_forms(), 1)
            show(
                "Peak memory",
                ["batch, way", "peak, GB"],
                [[case, peak(run)] for case, run in results["memory"].items()],
            )
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
