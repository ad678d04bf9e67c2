"""What a run starts from: its seed, and the ResNet of a file."""

import logging
from pathlib import Path

import pytest
import torch

from dipro_model import DiPro
from federation.checkpoint import CheckpointError, save_checkpoint
from federation.initial import initial_model
from federation.selection import model_entries
from federation.settings import SettingsError
from tests.small_run import small_settings

RESNET = "backbone.resnet."


def _split(model: DiPro) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of the ResNet, and all others."""
    tensors = model.state_dict()
    inside = {name: value for name, value in tensors.items() if name.startswith(RESNET)}
    return inside, {name: value for name, value in tensors.items() if name not in inside}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _checkpoint(path: Path, *overrides: str) -> DiPro:
    settings = small_settings(*overrides)
    model = initial_model(settings)
    save_checkpoint(path, model, step=1, settings=settings.model_dump(mode="json"))
    return model


def test_the_seed_decides_the_start() -> None:
    one, again, other = (_split(initial_model(small_settings(f"seed={seed}"))) for seed in (1, 1, 2))
    assert _equal(one[0], again[0])
    assert _equal(one[1], again[1])
    assert not _equal(one[0], other[0])


def test_a_checkpoint_of_another_task_and_width_gives_its_resnet(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    teacher = _checkpoint(path, "task=disease_progression", "model.width=32", "seed=5")
    plain = initial_model(small_settings())
    started = initial_model(small_settings(f"model.backbone_weights={path}"))
    assert _equal(_split(started)[0], _split(teacher)[0])
    assert _equal(_split(started)[1], _split(plain)[1])


def test_torchvision_weights_are_told_from_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    source = initial_model(small_settings("seed=8")).backbone.resnet.state_dict()
    torch.save({**source, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}, path)
    started = initial_model(small_settings(f"model.backbone_weights={path}")).backbone.resnet
    assert _equal(dict(started.state_dict()), dict(source))


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "deep.pt"
    _checkpoint(path, "model.backbone_depth=18")
    with pytest.raises(ValueError, match=r"deep\.pt: these weights do not fit the backbone: .*same depth"):
        initial_model(small_settings(f"model.backbone_weights={path}"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"deep\.pt: damaged"):
        initial_model(small_settings(f"model.backbone_weights={path}"))
    with pytest.raises(ValueError, match=r"none\.pt: expected a file with weights"):
        initial_model(small_settings(f"model.backbone_weights={tmp_path / 'none.pt'}"))


def test_random_weights_are_said_so_where_radiographs_are_read(caplog: pytest.LogCaptureFixture) -> None:
    for part, said in (("parts.radiographs=true", True), ("parts.radiographs=false", False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            initial_model(small_settings(part))
        assert ("starts from random weights" in caplog.text) is said


def test_a_run_of_another_task_gives_all_that_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "best.pt"
    teacher = _checkpoint(path, "task=disease_progression", "seed=5").state_dict()
    plain = initial_model(small_settings()).state_dict()
    with caplog.at_level(logging.INFO):
        started = initial_model(small_settings(f"model.start={path}")).state_dict()
    own = [name for name, value in started.items() if name not in teacher or teacher[name].shape != value.shape]
    assert own, "progression has other class tokens than mortality"
    for name, value in started.items():
        torch.testing.assert_close(value, (plain if name in own else teacher)[name], rtol=0, atol=0)
    assert f"{len(own)} as drawn" in caplog.text


@pytest.mark.parametrize(("setting", "own", "other"), [("width", 16, 32), ("backbone_channels", 8, 4)])
def test_a_start_of_another_size_is_refused(tmp_path: Path, setting: str, own: int, other: int) -> None:
    path = tmp_path / "other.pt"
    _checkpoint(path, f"model.{setting}={other}")
    words = rf"other\.pt: expected a model with model.{setting}={own}, found one with {other}"
    with pytest.raises(ValueError, match=words):
        initial_model(small_settings(f"model.start={path}"))


def test_what_reads_the_outcome_can_be_trained_alone() -> None:
    settings = small_settings("model.trained=outcome", "model.freeze_backbone=true")
    model = initial_model(settings)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("heads.")} | {
        "global_fusion.class_tokens"
    }
    entries = model_entries(model)
    assert entries.trained.size == sum(model.get_parameter(name).numel() for name in trained)
    with pytest.raises(SettingsError, match=r"model.freeze_backbone=true, found false"):
        small_settings("model.trained=outcome")


def test_a_spread_bias_is_all_that_differs_and_a_start_overrides_it(tmp_path: Path) -> None:
    bias = "global_ehr.embedding.0.bias"
    plain, spread = (initial_model(small_settings(f"model.ehr_bias_std={std}")).state_dict() for std in (0.0, 3.0))
    assert [name for name in plain if not torch.equal(plain[name], spread[name])] == [bias]
    assert 1.5 < spread[bias].std() < 6
    _checkpoint(tmp_path / "best.pt", "seed=5")
    started, taught = (
        initial_model(small_settings(f"model.start={tmp_path / 'best.pt'}", f"model.ehr_bias_std={std}")).state_dict()
        for std in (3.0, 0.0)
    )
    assert _equal(started, taught)
