"""Each patient's own gradient, shortened to a length, and the sum of them: what DP-SGD adds its noise to.

The loss of a patient is the objective of a batch of that patient's samples alone, so that no other patient enters it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dipro_model import Batch, ClassWeights, DiPro, Stay, collate, objective

logger = logging.getLogger(__name__)

Patient = Sequence[Stay]
"""All training samples of one patient, one or more."""


def clipped_sum(
    model: DiPro,
    patients: Sequence[Patient],
    weights: ClassWeights,
    *,
    clip: float,
    patients_at_once: int | None = None,
) -> dict[str, Tensor]:
    """sum_p g_p min(1, clip / |g_p|) over the patients' gradients g_p, by name of the trained parameters.

    The length is over all trained parameters together, 0-d ones included, so that a patient who is added or taken out
    moves the sum by at most `clip`, up to rounding. A gradient that is not finite counts as zero: stopping for it would
    tell of the patient. With `patients_at_once` so many are computed together (torch.func.vmap), the same up to
    rounding; without, one after the other. Dropout draws for each patient anew. The model's mode is the caller's:
    batch norm must be in evaluation mode.
    """
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    total = {name: torch.zeros_like(each) for name, each in trained.items()}
    parts = _one_by_one(patients) if patients_at_once is None else _alike(patients, patients_at_once)
    broken = 0
    for part in parts:
        gradients = (
            _alone(model, trained, part[0], weights)
            if patients_at_once is None
            else _together(model, trained, part, weights)
        )
        factors = _factors(gradients, clip)
        broken += int((factors == 0).sum())
        for name, each in gradients.items():
            total[name] += torch.einsum("p,p...->...", factors, torch.where(_of_each(factors > 0, each), each, 0.0))
    if broken:
        logger.warning("%d patients' gradients of a step were not finite and counted as zero", broken)
    return total


def _one_by_one(patients: Sequence[Patient]) -> list[Sequence[Patient]]:
    return [[each] for each in patients]


def _alike(patients: Sequence[Patient], at_once: int) -> list[Sequence[Patient]]:
    """Parts of patients with the same number of samples, the shortest stays together."""
    in_order = sorted(patients, key=lambda each: max(stay.regions.shape[0] for stay in each))
    parts: list[Sequence[Patient]] = []
    for size in sorted({len(each) for each in patients}):
        alike = [each for each in in_order if len(each) == size]
        parts += [alike[start : start + at_once] for start in range(0, len(alike), at_once)]
    return parts


def _alone(model: DiPro, trained: Mapping[str, Tensor], patient: Patient, weights: ClassWeights) -> dict[str, Tensor]:
    """The gradient of one patient, with a first axis of 1."""
    batch = collate(patient).to(next(iter(trained.values())).device)
    total, _ = objective(model(batch), batch, model.config, weights, separable=True)
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, materialize_grads=True)
    return {name: each[None] for name, each in zip(trained, found, strict=True)}


def _together(
    model: DiPro, trained: Mapping[str, Tensor], patients: Sequence[Patient], weights: ClassWeights
) -> dict[str, Float[Tensor, "patient *rest"]]:
    """The gradients of patients with the same number of samples each."""
    samples = len(patients[0])
    batch = collate([stay for each in patients for stay in each]).to(next(iter(trained.values())).device)
    values = {
        item.name: value.unflatten(0, (len(patients), samples))
        for item in fields(batch)
        if (value := getattr(batch, item.name)) is not None
    }

    def loss(parameters: dict[str, Tensor], one: dict[str, Tensor]) -> Tensor:
        own: Batch = replace(batch, **one)
        output: Any = functional_call(model, parameters, (own,), {"dense": True})
        total, _ = objective(output, own, model.config, weights, separable=True)
        return total

    constants = {name: each.detach() for name, each in trained.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap: they would run patient by patient
        return vmap(grad(loss), in_dims=(None, 0), randomness="different")(constants, values)


def _factors(gradients: dict[str, Float[Tensor, "patient *rest"]], clip: float) -> Float[Tensor, " patient"]:
    """What each patient's gradient is multiplied by; 0 where it is not finite."""
    squares = [each.reshape(len(each), -1).double().square().sum(dim=1) for each in gradients.values()]
    lengths = torch.stack(squares).sum(dim=0).sqrt()
    factors = (clip / lengths.clamp(min=clip)).to(next(iter(gradients.values())).dtype)
    return torch.where(torch.isfinite(lengths), factors, 0.0)


def _of_each(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
