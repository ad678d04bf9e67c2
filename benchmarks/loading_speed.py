"""How fast samples are read from a prepared cohort, against decoding and cropping radiographs for every sample.

    python benchmarks/loading_speed.py --cohort COHORT --radiographs FILES [--repeats 5]

COHORT was prepared from the radiographs below FILES (MIMIC-CXR-JPG's folder `files`). An epoch is every sample of all
splits, loaded and put together into batches as training does it; no model is run. `decoded` decodes the JPEG of every
frame, cuts the ten regions out of their boxes and resizes them, each time, and must give the batches of the prepared
cohort. `published` goes on to what the published model is given: three equal channels in float32, in [0, 1]. All ways
find their files in memory, as the second and every later epoch does.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, conditions, in_new_process, interleaved, show, write_results
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from client.cohort import open_cohort
from client.dataset import SampleSet
from client.prepare.regions import crop_regions, radiograph_path
from client.records import SiteRecords, SiteSpec, shrink
from dipro_model import Batch, collate
from dipro_model.vocabulary import SPLITS, Task
from federation.memory import tensor_memory
from federation.settings import load_settings

PIXELS = (224, 64)
AIM = 50


WAYS = ("prepared", "decoded", "published")


class DecodingRecords(SiteRecords):
    """The same records, whose crops are made from the JPEG files whenever they are asked for."""

    def __init__(self, cohort: Path, radiographs: Path, *, crop_pixels: int, floats: bool = False) -> None:
        super().__init__(SiteSpec(name="site", cohort=cohort), crop_pixels=crop_pixels)
        self.floats = floats
        opened = open_cohort(cohort, verify_regions=False)
        images = opened.images.merge(opened.stays[["stay_id", "subject_id"]], on="stay_id", how="left")
        keys = zip(images.subject_id, images.study_id, images.dicom_id, strict=True)
        self.files = [radiograph_path(radiographs, *key) for key in keys]
        sides = opened.boxes[["x1", "y1", "x2", "y2"]].to_numpy()
        self.boxes = [[tuple(box) for box in boxes] for boxes in sides.reshape(len(images), -1, 4).tolist()]

    def crops(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        regions = np.stack([self._decode(int(row)) for row in rows])
        crops = shrink(regions, self.crop_pixels).unsqueeze(2)
        return crops.expand(-1, -1, 3, -1, -1).float() / 255 if self.floats else crops

    def _decode(self, row: int) -> np.ndarray:
        with Image.open(self.files[row]) as file:
            return crop_regions(file.convert("L"), self.boxes[row])


def loader(records: SiteRecords, task: Task) -> DataLoader[Batch]:
    """All samples of a task in batches of the published size."""
    samples = ConcatDataset([SampleSet([records], task, split) for split in SPLITS])
    size = load_settings(overrides=[f"task={task}"]).training.samples_per_batch(task)
    return DataLoader(samples, batch_size=size, collate_fn=partial(collate, empty=tensor_memory.empty))


def epoch(cohort: Path, radiographs: Path, task: Task, pixels: int, way: str) -> dict[str, Any]:
    """Least CPU-seconds and wall seconds of five passes over all batches, after one that does not count."""
    records = (
        SiteRecords(SiteSpec(name="site", cohort=cohort), crop_pixels=pixels)
        if way == "prepared"
        else DecodingRecords(cohort, radiographs, crop_pixels=pixels, floats=way == "published")
    )
    batches = loader(records, task)
    frames = sum(int(batch.frame_mask.sum()) for batch in batches)
    costs = []
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in batches:
            pass
        costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpus, walls = zip(*costs, strict=True)
    return {"cpu_s": min(cpus), "wall_s": min(walls), "frames": frames}


def require_equal_batches(cohort: Path, radiographs: Path, pixels: int) -> None:
    """Both ways must give the same, else a comparison of their speed means nothing."""
    prepared = SiteRecords(SiteSpec(name="site", cohort=cohort), crop_pixels=pixels)
    decoded = DecodingRecords(cohort, radiographs, crop_pixels=pixels)
    pairs = zip(loader(prepared, Task.MORTALITY), loader(decoded, Task.MORTALITY), strict=True)
    frames = ((ours.regions[ours.frame_mask], theirs.regions[theirs.frame_mask]) for ours, theirs in pairs)
    if not all(torch.equal(ours, theirs) for ours, theirs in frames):
        raise SystemExit(f"{cohort} was not prepared from the radiographs below {radiographs}: the crops differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--radiographs", type=Path, required=True, help="the folder `files` of MIMIC-CXR-JPG")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "loading_speed.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"conditions": conditions(threads=1), "aim": AIM}
    rows = []
    for pixels in PIXELS:
        require_equal_batches(arguments.cohort, arguments.radiographs, pixels)
        for task in (Task.MORTALITY, Task.DISEASE_PROGRESSION):

            def run(way: str, task: Task = task, pixels: int = pixels) -> dict[str, Any]:
                return in_new_process(epoch, arguments.cohort, arguments.radiographs, task, pixels, way, threads=1)

            measured = {
                way: min(runs, key=lambda run: run["cpu_s"])
                for way, runs in interleaved(WAYS, arguments.repeats, run).items()
            }
            results[f"{task}, {pixels} pixels"] = measured
            rows += [[str(task), pixels, *cells] for cells in _cells(measured)]
    show(
        f"An epoch of loading, aim: {AIM} times less",
        ["task", "pixels", "frames", "way", "CPU ms", "wall ms", "times what is prepared, CPU", "wall"],
        rows,
    )
    write_results(arguments.out, results)


def _cells(measured: dict[str, dict[str, Any]]) -> list[list[object]]:
    prepared = measured["prepared"]
    return [
        [
            run["frames"],
            way,
            *(f"{1000 * run[unit]:.1f}" for unit in ("cpu_s", "wall_s")),
            *(f"{run[unit] / prepared[unit]:.0f}" for unit in ("cpu_s", "wall_s")),
        ]
        for way, run in measured.items()
    ]


if __name__ == "__main__":
    main()
