"""Ablations: what a model without one part may not depend on, and what it must equal."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dipro_model import Batch, ClassWeights, DiPro, DiProConfig, Output, Parts, Stay, collate, objective
from dipro_model.vocabulary import REGIONS, Task

SIZES = ((2, 5), (4, 7), (3, 0))
"""Frames and hours of the stays of a batch; one has no hour at all."""


def without(model: DiPro, *parts: str) -> DiPro:
    """The same weights, with these parts switched off."""
    ablated = DiPro(replace(model.config, parts=Parts(**dict.fromkeys(parts, False)))).double()
    ablated.load_state_dict(model.state_dict())
    return ablated.eval()


@pytest.fixture(params=list(Task))
def model(request, make_model: Callable[..., DiPro]) -> DiPro:
    return make_model(request.param)


@pytest.fixture
def batch(model: DiPro, make_stay: Callable[..., Stay]) -> Batch:
    task = model.config.task
    return collate(
        [make_stay(frames=frames, steps=steps, seed=seed, task=task) for seed, (frames, steps) in enumerate(SIZES)]
    )


def run(model: DiPro, batch: Batch) -> Output:
    with torch.no_grad():
        return model(batch)


def test_what_takes_no_part_is_never_read(model: DiPro, batch: Batch) -> None:
    other = {
        "ehr": replace(batch, ehr=batch.ehr + 1.0, ehr_hours=batch.ehr_hours + 0.5),
        "demographics": replace(batch, demographics=batch.demographics - 2.0),
        "radiographs": replace(batch, regions=255 - batch.regions, intervals=batch.intervals + 3.0),
    }
    for part, changed in other.items():
        assert not torch.allclose(run(model, batch).logits, run(model, changed).logits, atol=1e-6), part
        ablated = without(model, part)
        assert torch.equal(run(ablated, batch).logits, run(ablated, changed).logits), part


def test_without_radiographs_no_pixels_are_needed(model: DiPro, batch: Batch) -> None:
    ablated = without(model, "radiographs")
    bare = replace(batch, regions=torch.zeros(*batch.regions.shape[:3], 0))
    output = run(ablated, bare)
    assert torch.equal(output.logits, run(ablated, batch).logits)
    assert not output.region_attention.any()
    ablated.train()
    total, parts = objective(ablated(bare), bare, ablated.config, ClassWeights())
    total.backward()
    assert {name for name, value in parts.items() if value} == {"task"}
    seen = {name.partition(".")[0] for name, value in ablated.named_parameters() if value.grad is not None}
    assert not seen & {"backbone", "disentangle", "local_fusion"}


def test_training_terms_change_no_prediction(model: DiPro, batch: Batch) -> None:
    full = run(model, batch)
    _, full_terms = objective(full, batch, model.config, ClassWeights())
    for part, gone in (("std_losses", {"orthogonal", "temporal"}), ("pae", {"static", "dynamic"})):
        ablated = without(model, part)
        output = run(ablated, batch)
        assert torch.equal(output.logits, full.logits)
        total, terms = objective(output, batch, ablated.config, ClassWeights())
        assert all(terms[name] == 0 for name in gone)
        kept = set(terms) - gone
        assert all(torch.equal(terms[name], full_terms[name]) for name in kept)
        assert total == pytest.approx(sum(getattr(ablated.config.loss, name) * float(terms[name]) for name in kept))


def test_without_enhancement_the_reversed_pair_moves_no_statistics(model: DiPro, batch: Batch) -> None:
    steps = {}
    for name, each in (("full", model), ("without", without(model, "pae"))):
        each.train()
        each(batch)
        steps[name] = int(each.disentangle.static[3].num_batches_tracked)
    assert steps["full"] == 2 * steps["without"]


def test_without_local_fusion_is_a_model_without_its_layers(make_model, make_stay) -> None:
    model = make_model(Task.MORTALITY)
    batch = collate([make_stay(frames=frames, steps=steps) for frames, steps in SIZES])
    bare = DiPro(replace(model.config, num_transformer_layers=0)).double()
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("local_fusion.")}
    bare.load_state_dict(kept)
    assert torch.equal(run(without(model, "local_fusion"), batch).logits, run(bare.eval(), batch).logits)


def test_without_global_fusion_means_are_added(make_model, make_stay) -> None:
    fusion = make_model(Task.DISEASE_PROGRESSION).global_fusion
    draw = torch.Generator().manual_seed(5)
    regions, ehr = torch.randn(2, 6, 16, generator=draw).double(), torch.randn(2, 4, 16, generator=draw).double()
    region_mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    ehr_mask = torch.tensor([[True] * 4, [False] * 4])
    classes, attention = fusion.pool(regions, region_mask, ehr, ehr_mask)
    for stay in range(2):
        mean = torch.stack([regions[stay, i] for i in range(6) if region_mask[stay, i]]).mean(dim=0)
        hours = [ehr[stay, i] for i in range(4) if ehr_mask[stay, i]]
        if hours:
            mean = mean + torch.stack(hours).mean(dim=0)
        torch.testing.assert_close(classes[stay], fusion.region_norm(fusion.class_tokens[0] + mean))
        assert attention[stay].sum(dim=-1).tolist() == pytest.approx([1.0] * 7)
        assert not attention[stay, :, ~region_mask[stay]].any()


def test_padding_stays_padding_in_every_ablation(model: DiPro, make_stay: Callable[..., Stay]) -> None:
    task = model.config.task
    stays = [make_stay(frames=frames, steps=steps, seed=seed, task=task) for seed, (frames, steps) in enumerate(SIZES)]
    for part in Parts.__dataclass_fields__:
        ablated = without(model, part)
        together = run(ablated, collate(stays)).logits
        alone = torch.cat([run(ablated, collate([stay])).logits for stay in stays])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_features_stand_for_crops(make_model, make_stay) -> None:
    model = make_model(Task.MORTALITY)
    batch = collate([make_stay(frames=frames, steps=steps) for frames, steps in SIZES])
    with torch.no_grad():
        features = model.backbone.features(batch.regions.flatten(0, 1)).unflatten(0, batch.regions.shape[:2])
    assert features.shape == (3, 4, len(REGIONS), model.config.backbone.num_features)
    given = run(model, replace(batch, regions=features)).logits
    torch.testing.assert_close(given, run(model, batch).logits, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_model_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of ehr, radiographs and demographics"):
        Parts(ehr=False, radiographs=False, demographics=False)
    with pytest.raises(ValueError, match=r"parts\.pae: expected true or false, got 1"):
        Parts(pae=1)  # pyright: ignore[reportArgumentType]
    config = replace(DiProConfig.published("mortality"), parts=Parts(ehr=False))
    assert DiProConfig.from_dict(config.to_dict()) == config
