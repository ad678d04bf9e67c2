"""Batches of random stays of any shape: crops that differ from one another, hourly values, labels."""

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from dipro_model import Batch, Stay, collate
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS, Task


def random_batch(
    frames: Sequence[int], *, pixels: int, task: Task = Task.MORTALITY, hours: int = 48, num_features: int = 0
) -> Batch:
    """One stay for each number of frames; the same numbers give the same batch.

    `num_features` gives features in place of crops.
    """
    generator = torch.Generator().manual_seed(0)
    return collate(
        [_stay(count, place, pixels, task, hours, num_features, generator) for place, count in enumerate(frames)]
    )


def _stay(
    frames: int, place: int, pixels: int, task: Task, hours: int, num_features: int, generator: torch.Generator
) -> Stay:
    pairs = frames - 1
    progression = task is Task.DISEASE_PROGRESSION
    times = torch.linspace(1.0, hours - 1.0, frames)
    return Stay(
        regions=torch.rand(frames, len(REGIONS), num_features, generator=generator)
        if num_features
        else _crops(frames, pixels, generator),
        ehr=torch.randn(hours, len(EHR_VARIABLES), generator=generator),
        ehr_hours=torch.arange(hours, dtype=torch.float32),
        intervals=torch.stack([times[:-1], times[1:]], dim=1),
        demographics=torch.randn(len(DEMOGRAPHICS), generator=generator),
        label=torch.randint(0, 4, (len(DISEASES),), generator=generator) if progression else torch.tensor(place % 2),
        region_progression=torch.randint(
            0, NOT_MENTIONED + 1, (pairs, len(REGIONS), len(DISEASES)), generator=generator
        ),
    )


def _crops(frames: int, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 [frame, region, 1, pixel, pixel]: soft shapes below noise.

    Noise alone would look alike in every crop, and batch norm would then blow up the rounding of bfloat16.
    """
    coarse = torch.rand(frames * len(REGIONS), 1, 5, 5, generator=generator)
    shapes = interpolate(coarse, size=(pixels, pixels), mode="bicubic")
    noise = torch.rand(shapes.shape, generator=generator)
    crops = (200 * shapes + 55 * noise).clamp(0, 255).to(torch.uint8)
    return crops.unflatten(0, (frames, len(REGIONS)))
