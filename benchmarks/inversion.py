"""A region of a radiograph rebuilt from one update of one patient, with and without patient-level privacy.

    python benchmarks/inversion.py [--epsilons 8 3 1] [--steps 250]

The patient is synthetic. A site makes one plain gradient step on this patient alone; the attacker sees the model
before and after, and is given all of the patient but one region of one radiograph: labels, records, every other region.
That is more than a server knows, so that what it cannot do here it cannot do with less. It looks for the region whose
gradient has the direction of the update (Geiping et al. 2020, arXiv 2003.14053: cosine and total variation, Adam on
signs), from a gray start, without any picture of other patients. A rebuilt region is compared with the true one by the
correlation of their pixels and by the peak signal-to-noise ratio; beside it stands a gray region of the right mean.

With epsilon the step is the site's private one, of which the patient is a part for certain, and the only one of the
run: the least noise that epsilon ever comes with.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
from measure import RESULTS, conditions, show, write_results
from site_training import Train, defences, one_thread, quiet, samples_of, site_training
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.prepare.pipeline import prepare
from dipro_model import Batch, ClassWeights, DiPro, collate, objective
from dipro_model.vocabulary import REGIONS, SPLITS
from federation.initial import initial_model
from federation.settings import RunSettings
from simulation.synthesize.generate import synthesize

PLAIN = (
    "model.backbone_depth=10",
    "model.crop_pixels=32",
    "model.width=16",
    "model.num_transformer_layers=1",
    "model.dropout=0.0",
    "training.batch_norm=frozen",
    "training.class_weights=none",
    "training.optimizer=sgd",
    "training.learning_rate=1.0",
    "training.schedule=constant",
    "training.weight_decay=0.0",
    "training.batch_size=1",
    "training.accumulated_batches=1",
    "federation.rounds=1",
    "federation.local_work=steps",
    "federation.local_steps=1",
    "federation.check_duplicates=false",
)
PRIVATE = ("patient_privacy.sampling_rate=1.0", "patient_privacy.statistics=public")
REGION = REGIONS[0]
_VARIATION = 1e-3
"""Weight of the total variation beside the cosine."""
_RATE = 0.05


def update_of(train: Train, settings: RunSettings, samples: Any) -> list[Tensor]:
    """What the training changed of each parameter, negative: of a plain step of rate 1 the gradient."""
    before, after = initial_model(settings), train(samples)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return [(old - new).detach() for old, new in pairs]


def with_region(batch: Batch, region: Tensor) -> Batch:
    """The patient with this region, [high, wide] in [0, 1], in the first radiograph."""
    crops = batch.regions.clone()
    crops[0, 0, REGIONS.index(REGION), 0] = region
    return replace(batch, regions=crops)


def rebuilt(model: DiPro, batch: Batch, update: list[Tensor], steps: int, *, separable: bool) -> Tensor:
    """[high, wide]: the region that explains the update best; `separable` is the objective of private training."""
    pixels = torch.full(tuple(batch.regions.shape[-2:]), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([pixels], lr=_RATE)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parameters = list(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        asked = with_region(batch, pixels)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            total, _parts = objective(model(asked), asked, model.config, ClassWeights(), separable=separable)
        found = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        (_distance(found, update) + _VARIATION * _variation(pixels)).backward()
        assert pixels.grad is not None
        pixels.grad.sign_()
        optimizer.step()
        rates.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return pixels.detach()


def _distance(found: tuple[Tensor, ...], update: list[Tensor]) -> Tensor:
    """One less the cosine of the two, over all parameters together."""
    inner = torch.stack([(one * other).sum() for one, other in zip(found, update, strict=True)]).sum()
    ours, theirs = (torch.stack([each.square().sum() for each in one]).sum().sqrt() for one in (found, update))
    return 1 - inner / (ours * theirs)


def _variation(pixels: Tensor) -> Tensor:
    return pixels.diff(dim=0).abs().mean() + pixels.diff(dim=1).abs().mean()


def likeness(found: Tensor, true: Tensor) -> dict[str, float]:
    """Correlation of the pixels, and peak signal-to-noise ratio in decibel."""
    pixels = torch.stack([found.flatten(), true.flatten()])
    correlation = float(torch.corrcoef(pixels)[0, 1]) if float(found.std()) > 0 else 0.0
    error = float((found - true).square().mean())
    return {"correlation": round(correlation, 3), "psnr_db": round(-10 * math.log10(error), 1)}


def one_patient(folder: Path) -> Path:
    """A prepared cohort of a few synthetic patients with drawn radiographs."""
    (hospital,) = synthesize(folder / "raw", hospitals=1, patients=8, seed=1)
    raw = hospital.folder
    prepare(raw / "mimiciv", raw / "mimic-cxr-jpg", raw / "chest-imagenome", folder / "cohort", workers=1)
    return folder / "cohort"


def picture(path: Path, shown: dict[str, Tensor]) -> None:
    """The true region and what was rebuilt, side by side."""
    figure, axes = plt.subplots(1, len(shown), figsize=(2 * len(shown), 2.4), layout="constrained")
    for axis, (title, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilons", type=float, nargs="*", default=[8, 3, 1])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, default=RESULTS / "inversion.json")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/inversion.png"))
    arguments = parser.parse_args()
    quiet()
    one_thread()
    results: dict[str, Any] = {"conditions": conditions(1), "region": REGION, "steps": arguments.steps}
    rows, shown = [], {}
    with TemporaryDirectory() as scratch:
        cohort = one_patient(Path(scratch))
        for epsilon, settings in defences(PLAIN, PRIVATE, arguments.epsilons).items():
            samples = samples_of(cohort, settings, SPLITS[0])
            # Of the fewest radiographs: the fewer, the more of the update is the region's.
            place = min(range(len(samples)), key=lambda number: samples[number].regions.shape[0])
            samples = samples_of(cohort, settings, SPLITS[0], [samples.patients[place][1]])
            batch = collate([samples[0]])
            batch = replace(batch, regions=batch.regions.float() / 255)
            true = batch.regions[0, 0, REGIONS.index(REGION), 0].clone()
            start = time.perf_counter()
            update = update_of(site_training(settings), settings, samples)
            separable = settings.patient_privacy.enabled
            found = rebuilt(initial_model(settings).eval(), batch, update, arguments.steps, separable=separable)
            name = "without" if epsilon is None else f"epsilon {epsilon:g}"
            results[name] = likeness(found, true) | {"seconds": round(time.perf_counter() - start)}
            shown = {"true": true, "gray": torch.full_like(true, float(true.mean()))} | shown | {name: found}
            rows.append([name, results[name]["correlation"], results[name]["psnr_db"]])
            write_results(arguments.out, results)
        gray = likeness(shown["gray"], shown["true"])
        results["gray"] = gray
        rows.append(["a gray region", gray["correlation"], gray["psnr_db"]])
    write_results(arguments.out, results)
    shown.pop("gray")
    picture(arguments.picture, shown)
    show("A region rebuilt from one update", ["privacy", "correlation", "PSNR, dB"], rows)


if __name__ == "__main__":
    main()
