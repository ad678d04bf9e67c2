"""The network and its objective against numbers of the published code (see `golden/README.md` of the reference data).

No weights are shipped: every tensor of the published network is drawn from a generator seeded by its name.
"""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dipro_model import Batch, ClassWeights, DiPro, Output, load_official_state_dict, objective
from dipro_model.checkpoint import official_name
from dipro_model.disentangle import place

UNPADDED, PADDED = ("dp_a", "mort_a"), ("dp_c", "mort_b")
CASES = UNPADDED + PADDED
PRECISIONS = (torch.float32, torch.float64)
PUBLISHED_LOSSES = {
    "orthogonal": "orthogonal_loss",
    "task": "CE_loss",
    "temporal": "consistency_loss",
    "static": "static_loss",
    "dynamic": "dynamic_loss",
}

# Recommended tolerances of the README, (float32, float64), but for 1e-8 in float64: positions of hours are computed in
# single precision, as in the published checkpoints, and exp, sin and cos round the last digit (6e-8) as the processor
# does. One processor of two that were tried comes within 1e-8 of the reference, the other within 8e-8.
LOGITS_ABS = {torch.float32: 2e-5, torch.float64: 2e-7}
LOSSES_REL = {torch.float32: 2e-5, torch.float64: 2e-7}
GROUPS_REL = {torch.float32: 5e-4, torch.float64: 5e-7}
PARAMETERS_REL = {torch.float32: 1e-4, torch.float64: 1e-6}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One forward pass of a case in evaluation mode, and the backward pass where the case pads nothing."""

    output: Output
    total: float
    parts: dict[str, float]
    gradients: dict[str, float]  # L2 norm by published name, `features` for those of the residual network
    intermediates: dict[str, Tensor]  # by published name


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """The reference data, and what was computed from them."""

    folder: Path
    read: Callable[[str], dict[str, Any]]
    inputs: Callable[[str], dict[str, np.ndarray]]
    model: Callable[[str, torch.dtype], DiPro]
    run: Callable[[str, torch.dtype], Run]


@pytest.fixture(scope="module")
def golden(shared_folder: Path) -> Golden:
    folder = shared_folder / "golden"
    names = json.loads((folder / "official_state_dict_names.json").read_text())

    @cache
    def read(case: str) -> dict[str, Any]:
        return json.loads((folder / f"golden_{case}.json").read_text())

    @cache
    def inputs(case: str) -> dict[str, np.ndarray]:
        return dict(np.load(folder / f"inputs_{case}.npz"))

    @cache
    def model(task: str, dtype: torch.dtype) -> DiPro:
        weights = {name: drawn_tensor(name, shape) for name, shape in names[task]}
        return load_official_state_dict(weights, task).to(dtype)

    @cache
    def run(case: str, dtype: torch.dtype) -> Run:
        network = model(read(case)["task"], dtype)
        batch, weights = case_batch(inputs(case), dtype), case_weights(inputs(case))
        with torch.set_grad_enabled(case in UNPADDED):
            return run_once(network, batch, weights)

    return Golden(folder=folder, read=read, inputs=inputs, model=model, run=run)


def drawn_tensor(name: str, shape: list[int]) -> Tensor:
    """The weight rule of the README. What no result depends on (`pe`, `pos_weight`, scalars) is zero here."""
    leaf = name.rsplit(".", 1)[-1]
    if shape == [] or leaf in ("pe", "pos_weight"):
        return torch.zeros(shape)
    drawn = np.random.default_rng(zlib.crc32(name.encode("ascii"))).standard_normal(shape)
    if len(shape) == 1:
        scales = {"weight": 1 + 0.1 * drawn, "running_var": np.abs(1 + 0.1 * drawn)}
        drawn = scales.get(leaf, 0.02 * drawn)
    elif leaf in ("weight", "in_proj_weight"):
        drawn = drawn / math.sqrt(math.prod(shape[1:]))
    else:
        drawn = 0.3 * drawn
    return torch.from_numpy(drawn.astype(np.float32))


def case_batch(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> Batch:
    """The batch of a case; float32 values are widened."""
    cells = torch.from_numpy(arrays["img_u8"].astype(np.float32) / np.float32(255))
    return Batch(
        regions=cells.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).to(dtype),
        frame_mask=torch.from_numpy(arrays["region_mask"]),
        ehr=torch.from_numpy(arrays["ehr"]).to(dtype),
        ehr_mask=torch.from_numpy(arrays["ehr_mask"]),
        ehr_hours=torch.from_numpy(arrays["ehr_times"]).to(dtype),
        intervals=torch.from_numpy(arrays["interval_times"]).to(dtype),
        demographics=torch.from_numpy(arrays["demographic"]).to(dtype),
        label=torch.from_numpy(arrays["y"]),
        region_progression=torch.from_numpy(arrays["y_aux"]),
    )


def case_weights(arrays: dict[str, np.ndarray]) -> ClassWeights:
    deaths = arrays.get("mortality_pos_weight")
    return ClassWeights(
        progression=torch.from_numpy(arrays["progression_class_weight"]),
        mortality_positive=None if deaths is None else torch.from_numpy(deaths)[0],
    )


def one_stay(batch: Batch, index: int) -> Batch:
    """A stay of a batch by itself, without padding."""
    frames, steps = int(batch.frame_mask[index].sum()), int(batch.ehr_mask[index].sum())
    return Batch(
        regions=batch.regions[index : index + 1, :frames],
        frame_mask=batch.frame_mask[index : index + 1, :frames],
        ehr=batch.ehr[index : index + 1, :steps],
        ehr_mask=batch.ehr_mask[index : index + 1, :steps],
        ehr_hours=batch.ehr_hours[index : index + 1, :steps],
        intervals=batch.intervals[index : index + 1, : frames - 1],
        demographics=batch.demographics[index : index + 1],
        label=batch.label[index : index + 1],
        region_progression=batch.region_progression[index : index + 1, : frames - 1],
    )


def run_once(model: DiPro, batch: Batch, weights: ClassWeights) -> Run:
    captured: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
            captured[name] = result[0] if isinstance(result, tuple) else result

        return hook

    watched = {
        "long_cxr_encoder.resnet": model.backbone.resnet,
        "long_cxr_encoder.feature_adapter": model.backbone.adapter,
        "disentangle": model.disentangle,
        "demographic_encoder": model.static_fusion.demographics,
        "group_embedding": model.static_fusion.groups,
        "long_multi_modal_fuison.ehr_global_encoder[1]": model.global_ehr,
        "long_multi_modal_fuison.ehr_local_encoder.time_encoder": model.local_ehr.time_embedding,
        "long_multi_modal_fuison.ehr_local_encoder": model.local_ehr,
        "long_multi_modal_fuison.ehr_cross_attn": model.global_fusion.region_norm,
        "long_multi_modal_fuison": model.global_fusion,
        "Demographic_norm": model.static_fusion.norm,
    } | {f"long_multi_modal_fuison.region_attn.{i}": layer for i, layer in enumerate(model.local_fusion)}
    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    output = model(batch)
    for handle in handles:
        handle.remove()
    for name, values in captured.items():
        if name.startswith("long_multi_modal_fuison.ehr_local_encoder"):  # of real pairs only, one after another
            captured[name] = place(values, batch.pair_mask)
    total, parts = objective(output, batch, model.config, weights)
    gradients = gradient_norms(model, captured["long_cxr_encoder.resnet"], total) if total.requires_grad else {}
    pairs: Any = captured.pop("disentangle")
    captured["long_cxr_encoder.static_proj[0]"] = pairs.static
    captured["long_cxr_encoder.static_proj[1]"] = pairs.reversed_static
    captured["long_cxr_encoder.dynamic_proj[0]"] = pairs.dynamic
    return Run(
        output=output,
        total=total.item(),
        parts={name: value.item() for name, value in parts.items()},
        gradients=gradients,
        intermediates={name: value.detach() for name, value in captured.items()},
    )


def gradient_norms(model: DiPro, features: Tensor, total: Tensor) -> dict[str, float]:
    # The reference holds gradients of the residual network in float32 only; in float64 they would take long.
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if total.dtype == torch.float32 or not name.startswith("backbone.resnet.")
    }
    *gradients, of_features = torch.autograd.grad(total, [*parameters.values(), features])
    norms = {official_name(name): gradient.norm().item() for name, gradient in zip(parameters, gradients, strict=True)}
    return norms | {"features": of_features.norm().item()}


def precision_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def expected_losses(values: dict[str, float]) -> dict[str, float]:
    return {ours: values[theirs] for ours, theirs in PUBLISHED_LOSSES.items() if theirs in values}


@pytest.mark.parametrize("task", ["disease_progression", "mortality"])
def test_weights_are_drawn_as_the_reference_data_say(golden: Golden, task: str) -> None:
    checks = json.loads((golden.folder / "weights_check.json").read_text())
    names = dict(json.loads((golden.folder / "official_state_dict_names.json").read_text())[task])
    compared = 0
    for name, (total, norm, first) in checks[task].items():
        if names[name] == [] or name.endswith(("pe", "pos_weight")) or "pad_value" in name:
            continue
        values = drawn_tensor(name, names[name]).double()
        assert values.sum().item() == pytest.approx(total, rel=1e-8, abs=1e-8)
        assert values.norm().item() == pytest.approx(norm, rel=1e-8)
        assert values.flatten()[:3].tolist() == pytest.approx(first, rel=1e-8)
        compared += 1
    assert compared > 390


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", CASES)
def test_logits(golden: Golden, case: str, dtype: torch.dtype) -> None:
    alone = golden.read(case).get("each_sample_alone")
    source = alone if case in PADDED else golden.read(case)["variants"]["swap"]
    expected = torch.tensor(source[precision_name(dtype)]["logits"], dtype=dtype)
    found = golden.run(case, dtype).output.logits.detach()
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=LOGITS_ABS[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", UNPADDED)
def test_losses_and_total(golden: Golden, case: str, dtype: torch.dtype) -> None:
    published = golden.read(case)["variants"]["swap"][precision_name(dtype)]["losses"]
    run = golden.run(case, dtype)
    assert run.parts == pytest.approx(expected_losses(published), rel=LOSSES_REL[dtype])
    assert run.total == pytest.approx(published["loss"], rel=LOSSES_REL[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", PADDED)
def test_auxiliary_losses_of_padded_batches_are_means_over_real_pairs(
    golden: Golden, case: str, dtype: torch.dtype
) -> None:
    reference, precision = golden.read(case), precision_name(dtype)
    expected = expected_losses(reference["each_sample_alone"][precision]["valid_pairs_only_swap"])
    expected["dynamic"] = reference["variants"]["swap"][precision]["losses"]["dynamic_loss"]
    found = {name: golden.run(case, dtype).parts[name] for name in expected}
    assert set(found) == {"orthogonal", "temporal", "static", "dynamic"}
    assert found == pytest.approx(expected, rel=LOSSES_REL[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", PADDED)
def test_each_stay_of_a_padded_batch_alone(golden: Golden, case: str, dtype: torch.dtype) -> None:
    alone = golden.read(case)["each_sample_alone"][precision_name(dtype)]
    batch, weights = case_batch(golden.inputs(case), dtype), case_weights(golden.inputs(case))
    model = golden.model(golden.read(case)["task"], dtype)
    for index, published in enumerate(alone["swap"]):
        stay = one_stay(batch, index)
        with torch.no_grad():
            output = model(stay)
            _, parts = objective(output, stay, model.config, weights)
        torch.testing.assert_close(
            output.logits[0], torch.tensor(alone["logits"][index], dtype=dtype), rtol=0, atol=LOGITS_ABS[dtype]
        )
        found = {name: value.item() for name, value in parts.items()}
        assert found == pytest.approx(expected_losses(published), rel=LOSSES_REL[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
def test_mortality_loss_of_a_padded_batch_is_the_mean_of_its_stays(golden: Golden, dtype: torch.dtype) -> None:
    alone = golden.read("mort_b")["each_sample_alone"][precision_name(dtype)]["swap"]
    expected = sum(stay["CE_loss"] for stay in alone) / len(alone)
    assert golden.run("mort_b", dtype).parts["task"] == pytest.approx(expected, rel=LOSSES_REL[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", UNPADDED)
def test_gradient_norm_of_every_group(golden: Golden, case: str, dtype: torch.dtype) -> None:
    published = dict(golden.read(case)["variants"]["swap"][precision_name(dtype)]["grad_l2"])
    gradients = dict(golden.run(case, dtype).gradients)
    of_features = gradients.pop("features")
    assert of_features == pytest.approx(published.pop("d_loss_d_resnet_features"), rel=GROUPS_REL[dtype])
    if "TOTAL" in published:
        assert norm_of(gradients, "") == pytest.approx(published.pop("TOTAL"), rel=GROUPS_REL[dtype])
    assert len(published) >= 17
    for group, norm in published.items():
        assert norm_of(gradients, group) == pytest.approx(norm, rel=GROUPS_REL[dtype]), group


def norm_of(gradients: dict[str, float], group: str) -> float:
    """Norm over a group; zero for the groups that this network leaves out because nothing depends on them."""
    parts = (norm for name, norm in gradients.items() if not group or name == group or name.startswith(f"{group}."))
    return math.sqrt(sum(norm**2 for norm in parts))


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", UNPADDED)
def test_gradient_norm_of_every_parameter_behind_the_image_features(
    golden: Golden, case: str, dtype: torch.dtype
) -> None:
    # The reference gives single parameters in float64 and for the published order of reversed pairs. Parameters of
    # the fusion and the heads see nothing of that order; those of the image features do.
    published = golden.read(case)["variants"]["official"]["float64"]["param_grad_l2"]
    gradients = golden.run(case, dtype).gradients
    compared = [name for name in gradients if not name.startswith(("long_cxr_encoder.", "features"))]
    assert len(compared) > 60
    for name in compared:
        assert gradients[name] == pytest.approx(published[name], rel=PARAMETERS_REL[dtype], abs=1e-12), name


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
@pytest.mark.parametrize("case", UNPADDED)
def test_intermediates(golden: Golden, case: str, dtype: torch.dtype) -> None:
    variants = golden.read(case)["variants"]
    published = dict(variants["official"][precision_name(dtype)]["intermediates"])
    published |= variants["swap"][precision_name(dtype)]["intermediates"]
    close = {"rel": 1e-5, "abs": 5e-5} if dtype == torch.float32 else {"rel": 5e-7, "abs": 5e-7}
    found = golden.run(case, dtype).intermediates
    compared = [name for name in found if name in published]
    assert len(compared) >= 14  # of several local fusion layers the reference holds the last
    for name in compared:
        values = found[name]
        reference, flat = published[name], values.flatten()
        assert flat[:32].tolist() == pytest.approx(reference["head"], **close), name
        if name in ("Demographic_norm", "long_multi_modal_fuison"):
            continue  # only class tokens, the first, are computed there: nothing reads the others
        assert list(values.shape) == reference["shape"], name
        assert flat[-8:].tolist() == pytest.approx(reference["tail"], **close), name
        assert flat.norm().item() == pytest.approx(reference["l2"], **close), name
        order = torch.cos(0.1 * torch.arange(flat.numel(), dtype=torch.float64))
        checksum = ((flat.double() * order).sum() / math.sqrt(flat.numel())).item()
        assert checksum == pytest.approx(reference["proj"], **close), name


@pytest.mark.parametrize("dtype", PRECISIONS, ids=precision_name)
def test_training_mode_uses_and_updates_batch_statistics(golden: Golden, dtype: torch.dtype) -> None:
    """`dp_c` pads no radiographs, so that the published batch statistics, too, are of real ones only."""
    published = golden.read("dp_c")["variants"]["swap"][precision_name(dtype)]["train_mode_dropout0"]
    loaded = golden.model("disease_progression", dtype)
    model = DiPro(replace(loaded.config, dropout=0.0)).to(dtype)
    model.load_state_dict(loaded.state_dict())
    model.train()
    batch = case_batch(golden.inputs("dp_c"), dtype)
    with torch.no_grad():
        _, parts = objective(model(batch), batch, model.config, case_weights(golden.inputs("dp_c")))
    rel = 5e-4 if dtype == torch.float32 else 1e-7
    for name in ("orthogonal", "temporal", "static", "dynamic"):
        assert parts[name].item() == pytest.approx(published["losses"][PUBLISHED_LOSSES[name]], rel=rel), name
    state = {official_name(name): value for name, value in model.state_dict().items()}
    assert len(published["bn_after_one_forward"]) == 5
    for module, statistics in published["bn_after_one_forward"].items():
        mean, var = state[f"{module}.running_mean"], state[f"{module}.running_var"]
        assert mean.norm().item() == pytest.approx(statistics["running_mean_l2"], rel=rel)
        assert var.norm().item() == pytest.approx(statistics["running_var_l2"], rel=rel)
        assert mean[:4].tolist() == pytest.approx(statistics["running_mean_head"], rel=rel, abs=1e-6)
        assert state[f"{module}.num_batches_tracked"].item() == statistics["num_batches_tracked"]


def test_results_do_not_depend_on_the_attention_fast_path(golden: Golden) -> None:
    model, batch = golden.model("disease_progression", torch.float32), case_batch(golden.inputs("dp_c"), torch.float32)
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        logits = []
        for enabled in (True, False):
            torch.backends.mha.set_fastpath_enabled(enabled)
            with torch.no_grad():
                logits.append(model(batch).logits)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=2e-6)
