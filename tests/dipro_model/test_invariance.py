"""What a stay's result may not depend on, and inputs that may not break it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dipro_model import Batch, ClassWeights, DiPro, Stay, class_weights_from_counts, collate, objective
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task

TASKS = list(Task)
stay_sizes = st.tuples(st.integers(2, 4), st.integers(0, 7), st.integers(0, 1000))
few_stays = st.lists(stay_sizes, min_size=1, max_size=4)
# No shrinking: examples are small already, and each trial of a failing one costs a forward and backward pass.
few = settings(deadline=None, derandomize=True, max_examples=12, phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module")
def models(make_model: Callable[..., DiPro]) -> dict[Task, DiPro]:
    return {task: make_model(task) for task in TASKS}


def predict(model: DiPro, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = model(batch)
    return output.logits, output.region_attention


def draw(make_stay: Callable[..., Stay], sizes: Sequence[tuple[int, int, int]], task: Task) -> list[Stay]:
    return [make_stay(frames=frames, steps=steps, seed=seed, task=task) for frames, steps, seed in sizes]


def pad_with_rubbish(batch: Batch, *, frames: int, steps: int) -> Batch:
    """Longer by masked frames and hours; every masked float, old or new, is NaN, every masked byte or label random."""
    grown = Batch(
        regions=grow(batch.regions, frames),
        frame_mask=grow(batch.frame_mask, frames),
        ehr=grow(batch.ehr, steps),
        ehr_mask=grow(batch.ehr_mask, steps),
        ehr_hours=grow(batch.ehr_hours, steps),
        intervals=grow(batch.intervals, frames),
        demographics=batch.demographics,
        label=batch.label,
        region_progression=grow(batch.region_progression, frames),
    )
    pairs = grown.pair_mask
    grown.regions[~grown.frame_mask] = 77
    grown.ehr[~grown.ehr_mask] = torch.nan
    grown.ehr_hours[~grown.ehr_mask] = torch.nan
    grown.intervals[~pairs] = torch.nan
    grown.region_progression[~pairs] = 1
    return grown


def grow(values: Tensor, by: int) -> Tensor:
    return torch.cat([values, values.new_zeros(values.shape[0], by, *values.shape[2:])], dim=1)


@few
@given(sizes=few_stays, task=st.sampled_from(TASKS))
def test_a_stay_in_a_batch_gives_what_it_gives_alone(models, make_stay, sizes, task) -> None:
    stays = draw(make_stay, sizes, task)
    logits, attention = predict(models[task], collate(stays))
    for index, stay in enumerate(stays):
        alone, looks = predict(models[task], collate([stay]))
        torch.testing.assert_close(logits[index], alone[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(attention[index, :, : looks.shape[2]], looks[0], rtol=0, atol=1e-10)


@few
@given(sizes=few_stays, task=st.sampled_from(TASKS), order=st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_nothing(models, make_stay, sizes, task, order) -> None:
    stays = draw(make_stay, sizes, task)
    shuffled = list(range(len(stays)))
    order.shuffle(shuffled)
    logits, _ = predict(models[task], collate(stays))
    reordered, _ = predict(models[task], collate([stays[index] for index in shuffled]))
    torch.testing.assert_close(reordered, logits[shuffled], rtol=0, atol=1e-10)


@settings(few, max_examples=6)
@given(
    sizes=few_stays, task=st.sampled_from(TASKS), frames=st.integers(0, 2), steps=st.integers(0, 3), train=st.booleans()
)
def test_padding_changes_nothing_in_results_losses_gradients_or_statistics(
    make_model, make_stay, sizes, task, frames, steps, train
) -> None:
    batch = collate(draw(make_stay, sizes, task))
    found = []
    for given_batch in (batch, pad_with_rubbish(batch, frames=frames, steps=steps)):
        model = without_dropout(make_model(task).train(train))
        output = model(given_batch)
        total, parts = objective(output, given_batch, model.config, ClassWeights())
        total.backward()
        pairs = batch.intervals.shape[1]
        found.append(
            {
                "logits": output.logits,
                "attention": output.region_attention[:, :, :pairs],
                **parts,
                **{f"gradient of {name}": value.grad for name, value in model.named_parameters()},
                **dict(model.named_buffers()),
            }
        )
    for name, value in found[0].items():
        assert value is not None, name
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-10, msg=name)


def without_dropout(model: DiPro) -> DiPro:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def no_hour_in_an_interval(stay: Stay) -> Stay:
    return replace(stay, intervals=stay.intervals + torch.tensor([[1000.0, 1000.0]]))


def no_hour_at_all(stay: Stay) -> Stay:
    return replace(stay, ehr=stay.ehr[:0], ehr_hours=stay.ehr_hours[:0])


def nothing_measured(stay: Stay) -> Stay:
    return replace(stay, ehr=torch.zeros_like(stay.ehr), demographics=torch.zeros_like(stay.demographics))


def no_region_labelled(stay: Stay) -> Stay:
    return replace(stay, region_progression=torch.full_like(stay.region_progression, NOT_MENTIONED))


def a_disease_unlabelled(stay: Stay) -> Stay:
    labels = stay.region_progression.clone()
    labels[:, :, 2] = NOT_MENTIONED
    return replace(stay, region_progression=labels)


def no_disease_labelled(stay: Stay) -> Stay:
    label = torch.full_like(stay.label, NOT_MENTIONED) if stay.label.ndim else stay.label
    return no_region_labelled(replace(stay, label=label))


def black_crops(stay: Stay) -> Stay:
    return replace(stay, regions=torch.zeros_like(stay.regions))


@pytest.mark.parametrize(
    "empty",
    [
        no_hour_in_an_interval,
        no_hour_at_all,
        nothing_measured,
        no_region_labelled,
        a_disease_unlabelled,
        no_disease_labelled,
        black_crops,
    ],
)
@pytest.mark.parametrize("among_others", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_nothing_to_see_gives_no_nan(make_model, make_stay, task, among_others, empty) -> None:
    stay = empty(make_stay(task=task, frames=2, seed=8))
    batch = collate([stay, make_stay(task=task, seed=9)] if among_others else [stay])
    # Counts with a class, and a disease, that no training label names.
    counts = [[4, 0, 2], [0, 0, 0]] + [[1, 2, 3]] * (len(DISEASES) - 2)
    weights = class_weights_from_counts("balanced", progression=counts, mortality=(5, 0))
    model = make_model(task).train()
    output = model(batch)
    total, parts = objective(output, batch, model.config, weights)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(value) for value in parts.values())
    assert torch.isfinite(output.logits).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert model.heads[0][0].weight.grad is not None
