"""Models from run folders, checkpoints and released files; and what each wrong file is told."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dipro_model import DiPro, DiProConfig
from dipro_model.checkpoint import official_name, unused_official_shapes
from dipro_model.vocabulary import Task
from federation.checkpoint import CheckpointError, save_checkpoint
from federation.run_folder import RunError
from federation.run_writer import RunWriter, new_record
from federation.trained import load_trained
from tests.small_run import small_settings

TASK = Task.LENGTH_OF_STAY


def released(model: DiPro) -> dict[str, Tensor]:
    """The model under the published names, beside the tensors that the published code never uses."""
    unused = unused_official_shapes(model.config)
    names = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    return names | {name: torch.zeros([size or 4 for size in shape]) for name, shape in unused.items()}


@pytest.fixture(scope="module")
def model() -> DiPro:
    torch.manual_seed(3)
    return DiPro(DiProConfig.published(TASK))


@pytest.fixture(scope="module")
def file(model: DiPro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released file with the plain values that trainers leave beside the tensors."""
    path = tmp_path_factory.mktemp("released") / "released.ckpt"
    torch.save({"state_dict": released(model), "epoch": 7, "hyper_parameters": {"lr": 1e-5}}, path)
    return path


def small_checkpoint(path: Path, task: Task = TASK) -> DiPro:
    settings = small_settings(f"task={task}")
    model = DiPro(settings.config())
    save_checkpoint(path, model, step=4, settings=settings.model_dump(mode="json"))
    return model


def assert_same(one: DiPro, other: DiPro) -> None:
    assert one.config == other.config
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def refusal(path: Path, task: Task | None = None) -> str:
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_trained(path, task)
    return str(caught.value)


def test_a_released_file_gives_its_model_and_the_published_settings(model: DiPro, file: Path) -> None:
    found = load_trained(file, TASK)
    assert_same(found.model, model)
    assert (found.name, found.step, found.run, found.path) == ("released", None, None, file)
    assert found.settings.task is TASK
    assert found.settings.config() == model.config
    assert found.settings.model.crop_pixels == 224


def test_a_released_file_of_another_task_or_none_is_refused(file: Path) -> None:
    assert "does not say what it predicts; add --task" in refusal(file)
    message = refusal(file, Task.MORTALITY)
    assert "published checkpoint for mortality" in message
    assert "long_cxr_encoder.feature_adapter.0.weight: expected shape [256, 2048], got [128, 2048]" in message


def test_a_name_that_differs_is_refused(model: DiPro, tmp_path: Path) -> None:
    tensors = {name: torch.zeros(()).expand(each.shape) for name, each in released(model).items()}
    tensors["output_layer.0.0.wait"] = tensors.pop("output_layer.0.0.weight")
    torch.save({"state_dict": tensors}, tmp_path / "renamed.ckpt")
    message = refusal(tmp_path / "renamed.ckpt", TASK)
    assert "missing output_layer.0.0.weight; unexpected output_layer.0.0.wait" in message


def test_a_file_with_objects_says_how_to_keep_its_tensors_and_that_works(model: DiPro, tmp_path: Path) -> None:
    path = tmp_path / "with objects.ckpt"
    torch.save({"state_dict": released(model), "hyper_parameters": argparse.Namespace(lr=1e-5)}, path)
    message = refusal(path, TASK)
    assert "holds argparse.Namespace beside its tensors" in message
    assert "If you trust whoever made the file" in message
    _, *words = shlex.split(message[message.index("python -c") :])
    subprocess.run([sys.executable, *words], check=True, timeout=120)
    assert_same(load_trained(tmp_path / "with objects.weights.pt", TASK).model, model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": torch.zeros(2)}, "under the key `state_dict`; found the keys weights"),
        ({"state_dict": {"a": 1}}, "under the key `state_dict`; found the keys state_dict"),
        ([1, 2], "found list"),
    ],
)
def test_what_torch_saved_but_no_checkpoint_is_named(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert words in refusal(tmp_path / "other.pt", TASK)


@pytest.mark.parametrize("content", [b"", b"hello" * 50, b"PK\x03\x04" + bytes(500)])
def test_what_is_no_file_of_torch_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    assert "damaged, cut off or no checkpoint" in refusal(tmp_path / "other.pt", TASK)


def test_half_a_released_file_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.ckpt").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "damaged, cut off or no checkpoint" in refusal(tmp_path / "half.ckpt", TASK)


def test_a_checkpoint_knows_its_settings_and_task(tmp_path: Path) -> None:
    model = small_checkpoint(tmp_path / "last.pt")
    for task in (None, TASK):
        found = load_trained(tmp_path / "last.pt", task)
        assert_same(found.model, model)
        assert (found.name, found.step, found.settings.model.crop_pixels) == ("last", 4, 16)
    message = refusal(tmp_path / "last.pt", Task.MORTALITY)
    assert "expected a checkpoint for mortality, found one for length_of_stay" in message


def test_a_checkpoint_that_lost_its_end_or_has_other_settings_is_named(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "last.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-10])
    assert "cut off" in refusal(tmp_path / "cut.pt", TASK)
    settings = small_settings(f"task={TASK}")
    strange = {**settings.model_dump(mode="json"), "moonlight": 1}
    save_checkpoint(tmp_path / "strange.pt", DiPro(settings.config()), step=1, settings=strange)
    message = refusal(tmp_path / "strange.pt")
    assert "its settings are not those of this version" in message
    assert "moonlight" in message


def test_a_run_gives_the_model_that_it_chose(tmp_path: Path) -> None:
    settings = small_settings(f"task={TASK}")
    record = new_record(settings, kind="local", name="north", step_unit="epoch", sites=["a"], trained_on=["a"])
    writer = RunWriter(tmp_path / "run", record)
    models = [DiPro(settings.config()) for _ in range(3)]
    for step, (model, monitor) in enumerate(zip(models, (0.4, 0.6, 0.5), strict=True), start=1):
        writer.keep(step, model, [], monitor)
    assert "has not; name a checkpoint file instead, such as" in refusal(tmp_path / "run")
    writer.chosen_model()
    writer.finish({})
    found = load_trained(tmp_path / "run")
    assert_same(found.model, models[1])
    assert (found.name, found.step, found.path.name) == ("north", 2, "best.pt")
    assert found.run is not None
    assert found.run.trained_on == ("a",)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match=r"best\.pt: no such checkpoint"):
        load_trained(tmp_path / "run")


def test_a_path_that_holds_nothing_is_named(tmp_path: Path) -> None:
    assert "no such checkpoint and no such run" in refusal(tmp_path / "missing")
    with pytest.raises(RunError, match=r"found no run\.json in it"):
        load_trained(tmp_path)
