"""Patients' own gradients against plain loops: every patient bounded, none entering another's."""

from dataclasses import replace

import pytest
import torch

from client.patient_gradients import _factors, clipped_sum
from dipro_model import ClassWeights, DiPro, Stay, collate, objective
from dipro_model.vocabulary import DISEASES, PROGRESSIONS, Task
from tests.dipro_model.conftest import random_stay, small_model


def _patients(task: Task) -> list[list[Stay]]:
    """Six patients with 1 to 3 samples of different lengths."""
    return [
        [random_stay(frames=2 + (p + s) % 3, steps=3 + p + s, seed=10 * p + s, task=task) for s in range(1 + p % 3)]
        for p in range(6)
    ]


def _weights() -> ClassWeights:
    table = torch.linspace(0.5, 2.0, len(DISEASES) * len(PROGRESSIONS), dtype=torch.float64)
    return ClassWeights(
        progression=table.reshape(len(DISEASES), -1), mortality_positive=torch.tensor(3.0, dtype=torch.float64)
    )


def _by_hand(model: DiPro, patients: list[list[Stay]], clip: float) -> dict[str, torch.Tensor]:
    """Each patient by `backward`, one parameter after the other."""
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    total = {name: torch.zeros(()) for name in names}
    for patient in patients:
        model.zero_grad(set_to_none=True)
        batch = collate(patient)
        objective(model(batch), batch, model.config, _weights(), separable=True)[0].backward()
        found = {name: model.get_parameter(name).grad for name in names}
        length = sum(float((each**2).sum()) for each in found.values() if each is not None) ** 0.5
        for name, each in found.items():
            total[name] = total[name] + (0 if each is None else each * min(1.0, clip / length))
    return total


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("at_once", [None, 1, 4])
def test_both_ways_equal_a_plain_loop(task: Task, at_once: int | None) -> None:
    model, patients = small_model(task), _patients(task)
    clip = 0.5  # below most lengths
    expected = _by_hand(model, patients, clip)
    found = clipped_sum(model, patients, _weights(), clip=clip, patients_at_once=at_once)
    assert found.keys() == expected.keys()
    length = sum(float((each**2).sum()) for each in expected.values()) ** 0.5
    off = sum(float(((found[name] - each) ** 2).sum()) for name, each in expected.items()) ** 0.5
    assert off <= 1e-6 * length


def test_vmap_agrees_in_single_precision() -> None:
    model, patients = small_model(Task.MORTALITY).float(), _patients(Task.MORTALITY)
    patients = [[_single(stay) for stay in patient] for patient in patients]
    weights = ClassWeights(mortality_positive=torch.tensor(3.0))
    one, other = (
        clipped_sum(model, patients, weights, clip=1.0, patients_at_once=at_once) for at_once in (None, len(patients))
    )
    length = sum(float((each.double() ** 2).sum()) for each in one.values()) ** 0.5
    off = sum(float(((other[name] - each).double() ** 2).sum()) for name, each in one.items()) ** 0.5
    assert off <= 1e-6 * length


def _single(stay: Stay) -> Stay:
    changed = {name: getattr(stay, name).float() for name in ("ehr", "ehr_hours", "intervals", "demographics")}
    return replace(stay, **changed)


@pytest.mark.parametrize("at_once", [None, 3])
def test_a_patient_moves_the_sum_by_at_most_the_clip(at_once: int | None) -> None:
    model, patients = small_model(Task.MORTALITY), _patients(Task.MORTALITY)
    for clip in (1e-3, 0.3, 1e3):
        everyone = clipped_sum(model, patients, _weights(), clip=clip, patients_at_once=at_once)
        for gone in range(len(patients)):
            rest = [patient for number, patient in enumerate(patients) if number != gone]
            others = clipped_sum(model, rest, _weights(), clip=clip, patients_at_once=at_once)
            moved = sum(float(((others[name] - each) ** 2).sum()) for name, each in everyone.items()) ** 0.5
            assert 0 < moved <= clip * (1 + 1e-9)


def test_the_length_is_over_all_tensors_and_single_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = {
        "matrix": torch.randn(5, 4, 3, generator=generator),
        "vector": torch.randn(5, 7, generator=generator),
        "number": 100 * torch.randn(5, generator=generator),  # 0-d at each patient
    }
    factors = _factors(gradients, clip=2.0)
    rows = torch.cat([each.reshape(5, -1) for each in gradients.values()], dim=1)
    torch.testing.assert_close(
        (factors[:, None] * rows).norm(dim=1), rows.norm(dim=1).clamp(max=2.0), rtol=1e-6, atol=0
    )
    short = _factors({name: each / 1000 for name, each in gradients.items()}, clip=2.0)
    assert short.tolist() == [1.0] * 5, "short gradients stay as they are"
    assert _factors({"zero": torch.zeros(1, 3)}, clip=2.0).tolist() == [1.0]


def test_a_gradient_that_is_not_finite_counts_as_zero(caplog: pytest.LogCaptureFixture) -> None:
    model, patients = small_model(Task.MORTALITY), _patients(Task.MORTALITY)
    absurd = replace(patients[0][0], ehr=torch.full_like(patients[0][0].ehr, torch.inf))
    for at_once in (None, 4):
        found = clipped_sum(model, [[absurd], *patients[1:]], _weights(), clip=1.0, patients_at_once=at_once)
        expected = clipped_sum(model, patients[1:], _weights(), clip=1.0)
        for name, each in expected.items():
            torch.testing.assert_close(found[name], each, rtol=1e-9, atol=1e-12)
    assert "1 patients' gradients of a step were not finite" in caplog.text
    assert str(absurd.label) not in caplog.text


def test_a_class_weight_counts_for_a_patient_with_one_pair() -> None:
    # A mean weighted by its own single weight would have lost it.
    model = small_model(Task.DISEASE_PROGRESSION)
    patient = [random_stay(frames=2, task=Task.DISEASE_PROGRESSION, seed=3)]
    batch = collate(patient)
    with torch.no_grad():
        output = model(batch)
        plain, weighted = (
            objective(output, batch, model.config, weights, separable=True)[1]["task"]
            for weights in (ClassWeights(), _weights())
        )
        published = objective(output, batch, model.config, _weights())[1]["task"]
    assert not torch.isclose(plain, weighted)
    torch.testing.assert_close(published, plain, rtol=1e-9, atol=0)
