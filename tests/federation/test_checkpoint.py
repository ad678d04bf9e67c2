"""Checkpoints come back bit for bit; whatever is wrong with one is named before any of it is interpreted."""

import hashlib
import io
from pathlib import Path

import pytest
import torch

from dipro_model import DiPro
from dipro_model.vocabulary import Task
from federation.checkpoint import CheckpointError, Progress, load_checkpoint, read_checkpoint, save_checkpoint
from federation.initial import initial_model
from tests.small_run import small_settings

SETTINGS = small_settings()


@pytest.fixture(scope="module")
def model() -> DiPro:
    return initial_model(SETTINGS)


@pytest.fixture
def path(tmp_path: Path, model: DiPro) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, model, step=4, settings=SETTINGS.model_dump(mode="json"))
    return path


def _write_sealed(path: Path, content: object, version: int = 2) -> None:
    """A file with a right checksum around any content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path.write_bytes(buffer.getvalue() + f"\ndipro-fed checkpoint {version} sha256 {digest}\n".encode())


def test_a_checkpoint_comes_back(path: Path, model: DiPro) -> None:
    loaded, step = load_checkpoint(path, task=Task.MORTALITY)
    assert step == 4
    assert loaded.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert list(path.parent.iterdir()) == [path]


def test_its_bytes_depend_on_the_content_alone(tmp_path: Path, path: Path, model: DiPro) -> None:
    other = tmp_path / "other.pt"
    placed = initial_model(SETTINGS)
    placed.load_state_dict(model.state_dict())
    placed.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_checkpoint(other, placed, step=4, settings=SETTINGS.model_dump(mode="json"))
    assert other.read_bytes() == path.read_bytes()


def test_any_program_with_torch_can_read_it(path: Path, model: DiPro) -> None:
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert list(weights) == list(model.state_dict())


def test_the_progress_comes_back(path: Path, model: DiPro) -> None:
    assert read_checkpoint(path).progress is None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    generator = torch.Generator().manual_seed(5).get_state()
    progress = Progress(
        best_step=3,
        best_monitor=0.1 + 0.2,
        num_measurements=8,
        within_step=True,
        training={
            "optimizer": optimizer.state_dict(),
            "position": {"random_state": generator, "sums": {"total": 1e-9}},
        },
    )
    save_checkpoint(path, model, step=4, settings=SETTINGS.model_dump(mode="json"), progress=progress)
    found = read_checkpoint(path, settings=SETTINGS).progress
    assert found is not None
    assert (found.best_step, found.best_monitor, found.num_measurements, found.within_step) == (3, 0.1 + 0.2, 8, True)
    assert torch.equal(found.training["position"]["random_state"], generator)
    assert found.training["position"]["sums"] == {"total": 1e-9}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(found.training["optimizer"]["state"][number][name], value)


def test_a_checkpoint_of_something_else_names_both_sides(path: Path, model: DiPro) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint for length_of_stay, found one for mortality"):
        load_checkpoint(path, task=Task.LENGTH_OF_STAY)
    with pytest.raises(
        CheckpointError, match=r"settings differ: model.width: expected 24, found 16; seed: .* 29, .* 23;"
    ):
        read_checkpoint(path, settings=small_settings("model.width=24", "seed=29"))
    with pytest.raises(CheckpointError, match="task: expected length_of_stay, found mortality"):
        read_checkpoint(path, settings=small_settings("task=length_of_stay"))
    wide = initial_model(small_settings("model.width=24"))
    save_checkpoint(path, wide, step=1, settings=SETTINGS.model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="network differ: width: expected 16, found 24;"):
        read_checkpoint(path, settings=SETTINGS)


def test_a_missing_or_short_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such checkpoint"):
        load_checkpoint(path.with_name("absent.pt"))
    whole = path.read_bytes()
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"version 2 with its checksum at the end, found {length:,} bytes"):
            load_checkpoint(path)


def test_a_damaged_byte_is_named_before_anything_is_unpickled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_, **__) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", never)
    whole = path.read_bytes()
    places = [*range(0, len(whole), len(whole) // 12), *range(len(whole) - 103, len(whole), 6)]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            CheckpointError, match=r"damaged: expected content|with its checksum at the end|version 2, found"
        ):
            load_checkpoint(path)


def test_other_versions_are_named(path: Path) -> None:
    _write_sealed(path, {}, version=3)
    with pytest.raises(CheckpointError, match="expected checkpoint version 2, found 3"):
        load_checkpoint(path)
    torch.save({"checkpoint_version": 1, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of version 2 .* found .* of version 1 or"):
        load_checkpoint(path)


def test_sealed_content_that_is_no_checkpoint_is_named_and_no_code_runs(path: Path, model: DiPro) -> None:
    _write_sealed(path, {"model": model})  # a pickled class: loading it would run its code
    with pytest.raises(CheckpointError, match=r"no checkpoint of dipro-fed \(UnpicklingError\)"):
        load_checkpoint(path)
    _write_sealed(path, {"state_dict": {}})
    with pytest.raises(
        CheckpointError, match="expected config, progress, settings, step in the checkpoint, found none"
    ):
        load_checkpoint(path)
    _write_sealed(path, [1])
    with pytest.raises(CheckpointError, match="expected a checkpoint, found list"):
        load_checkpoint(path)
    weights = dict(model.state_dict())
    weights.pop("global_fusion.class_tokens")
    content = {"config": model.config.to_dict(), "settings": {}, "step": 1, "state_dict": weights, "progress": None}
    _write_sealed(path, content)
    with pytest.raises(
        CheckpointError, match=r"1 tensors do not fit the checkpoint's own configuration: .*global_fusion\.class_tokens"
    ):
        load_checkpoint(path)
