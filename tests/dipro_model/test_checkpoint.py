"""Released checkpoints: every name is accepted, and none may be missing, extra or of another shape."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dipro_model import DiPro, DiProConfig, load_official_state_dict
from dipro_model.backbone import state_dict_problems
from dipro_model.checkpoint import official_name, official_shapes

TASKS = ("disease_progression", "mortality", "length_of_stay")


def published_shapes(shared_folder: Path, task: str) -> dict[str, list[int]]:
    return dict(json.loads((shared_folder / "golden" / "official_state_dict_names.json").read_text())[task])


def blank(shape: list[int]) -> Tensor:
    """A tensor of this shape that takes no memory."""
    return torch.zeros(()).expand(shape)


@pytest.fixture(scope="module", params=TASKS)
def official(
    request: pytest.FixtureRequest, shared_folder: Path
) -> tuple[dict[str, tuple[int | None, ...]], dict[str, Tensor]]:
    """What a network expects, and a published state dict that fits it."""
    with torch.device("meta"):
        model = DiPro(DiProConfig.published(request.param))
    return official_shapes(model), {
        name: blank(shape) for name, shape in published_shapes(shared_folder, request.param).items()
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pixels", [64, 224])
def test_every_published_name_is_accepted_and_every_value_lands(shared_folder: Path, task: str, pixels: int) -> None:
    shapes = published_shapes(shared_folder, task)
    shapes["learnable_pad.pad_value"] = [10, 3, pixels, pixels]
    marks = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items(), start=1)}
    model = load_official_state_dict(marks, task)
    assert not model.training
    assert model.config == DiProConfig.published(task)
    landed = {official_name(name): value for name, value in model.state_dict().items()}
    for name, value in landed.items():
        assert (value == marks[name].to(value.dtype)).all(), name
    left_out = {name.rsplit(".", 1)[1] for name in marks if name not in landed}
    assert left_out == {"pad_value", "temperature", "sigma", "pe"} | ({"pos_weight"} if task == "mortality" else set())


@pytest.mark.usefixtures("without_shape_checks")
def test_each_missing_extra_or_misshapen_tensor_is_named(official) -> None:
    expected, weights = official
    assert state_dict_problems(weights, expected) == []
    for name, value in weights.items():
        rest = {other: value for other, value in weights.items() if other != name}
        assert state_dict_problems(rest, expected) == [f"missing {name}"]
        assert state_dict_problems({**weights, f"{name}_": value}, expected) == [f"unexpected {name}_"]
        (problem,) = state_dict_problems({**weights, name: blank([*value.shape, 1])}, expected)
        assert problem.startswith(f"{name}: expected shape [")
        assert problem.endswith(f"got {[*value.shape, 1]}")


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_checkpoint_is_refused_by_name(shared_folder: Path, task: str) -> None:
    weights = {name: blank(shape) for name, shape in published_shapes(shared_folder, task).items()}
    moved = dict(weights)
    moved["output_layer.0.0.wait"] = moved.pop("output_layer.0.0.weight")
    with pytest.raises(ValueError, match=r"missing output_layer\.0\.0\.weight; unexpected output_layer\.0\.0\.wait"):
        load_official_state_dict(moved, task)
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        load_official_state_dict({**weights, "extra.weight": blank([2])}, task)
    other = TASKS[(TASKS.index(task) + 1) % len(TASKS)]
    with pytest.raises(ValueError, match=f"published checkpoint for {other}: .* of this task") as refusal:
        load_official_state_dict(weights, other)
    assert len(str(refusal.value)) < 4000


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task: expected one of"):
        load_official_state_dict({}, "readmission")


def test_a_name_outside_the_network_has_no_published_name() -> None:
    with pytest.raises(KeyError, match=r"optimizer.step"):
        official_name("optimizer.step")
