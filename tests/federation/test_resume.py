"""What a writer leaves can be gone on with by the same run alone, and comes to the state that its checkpoint knows."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dipro_model import DiPro
from federation.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from federation.files import StorageError
from federation.initial import initial_model
from federation.resume import EarlierRun, find_earlier, require_fresh_or_run
from federation.run_folder import Measurement, RunError, RunRecord, append_history, read_history, read_run
from federation.run_writer import RunWriter, new_record
from federation.settings import RunSettings
from tests.small_run import small_settings

SETTINGS = small_settings()
MEASUREMENT = Measurement(
    step=1, site="pooled", split="val", loss=0.5, parts={}, metrics={}, num_samples=2, seconds=1.0
)


@pytest.fixture(scope="module")
def model() -> DiPro:
    return initial_model(SETTINGS)


def _asked(settings: RunSettings = SETTINGS, **more: object) -> RunRecord:
    facts = {"cohorts": {"north": "c0ffee"}, "machine": {"device": "cpu", "threads": 1}, **more}
    names = {"kind": "centralized", "name": "centralized", "step_unit": "epoch"}
    return new_record(settings, **names, sites=["north"], trained_on=["north"], **facts)


def _two_steps(folder: Path, model: DiPro, monitors: tuple[float | None, float | None] = (0.5, 0.4)) -> RunWriter:
    """A run whose process stops after two steps without a word."""
    writer = RunWriter(folder, _asked())
    for step, monitor in enumerate(monitors, start=1):
        _mark(model, step)
        writer.keep(step, model, [replace(MEASUREMENT, step=step)] * 2, monitor, {"number": step})
    writer.close()  # as the system does
    return writer


def _mark(model: DiPro, value: float) -> None:
    """Mark a model by the step that it stands for."""
    torch.nn.init.constant_(model.global_fusion.class_tokens, value)


def _marked(model: DiPro) -> float:
    return model.global_fusion.class_tokens.detach().flatten()[0].item()


def _earlier(folder: Path) -> EarlierRun:
    earlier = find_earlier(folder, _asked(), SETTINGS)
    assert earlier is not None
    return earlier


def test_a_monitor_of_another_kind_is_compared_anew(tmp_path: Path, model: DiPro) -> None:
    writer = RunWriter(tmp_path / "run", _asked())
    best = []
    for step, monitor in enumerate((0.8, 0.9, 0.3, 0.2, 0.4), start=1):
        if step == 3:
            writer.compare_anew()
        writer.keep(step, model, [replace(MEASUREMENT, step=step)], monitor)
        best.append(writer.record.best_step)
    assert best == [1, 2, 3, 3, 5]
    writer.finish({})


def test_a_run_goes_on_from_its_last_step(tmp_path: Path, model: DiPro) -> None:
    folder = tmp_path / "run"
    assert find_earlier(folder, _asked(), SETTINGS) is None
    _two_steps(folder, model)
    earlier = _earlier(folder)
    assert earlier.checkpoint is not None
    assert earlier.checkpoint.progress is not None
    assert (earlier.checkpoint.step, earlier.checkpoint.progress.training) == (2, {"number": 2})
    writer = RunWriter(folder, _asked(), earlier)
    assert writer.steps_without_gain(2) == 1
    writer.keep(3, model, [replace(MEASUREMENT, step=3)], 0.45)
    assert writer.record.best_step == 1, "0.45 is better than the last one, not than the best one"
    writer.keep(4, model, [replace(MEASUREMENT, step=4)], 0.55)
    writer.finish({})
    record = read_run(folder)
    assert (record.best_step, record.status) == (4, "finished")
    assert record.seconds >= earlier.record.seconds
    assert record.more["interruptions"] == [{"after_step": 2, "changed": []}]
    assert [line.step for line in read_history(folder)] == [1, 1, 2, 2, 3, 4]
    assert _earlier(folder).is_finished


def test_what_the_checkpoint_does_not_know_of_is_cut_from_the_history(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model)
    append_history(tmp_path, [replace(MEASUREMENT, step=3)])
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 3, "site": "poo')
    RunWriter(tmp_path, _asked(), _earlier(tmp_path)).close()
    assert [line.step for line in read_history(tmp_path)] == [1, 1, 2, 2]


def test_a_history_that_lost_lines_is_named(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model)
    lines = (tmp_path / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "history.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(RunError, match=r"history\.jsonl: expected the 4 lines .* found 3; restore"):
        RunWriter(tmp_path, _asked(), _earlier(tmp_path))


def test_the_best_one_is_written_anew_where_it_is_the_last_one(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model, monitors=(0.4, 0.5))
    best = tmp_path / "checkpoints" / "best.pt"
    whole = best.read_bytes()
    for broken in (None, b"damaged"):
        best.unlink() if broken is None else best.write_bytes(broken)
        writer = RunWriter(tmp_path, _asked(), _earlier(tmp_path))
        assert best.read_bytes() == whole
        assert _marked(load_checkpoint(best)[0]) == 2
        writer.close()


def test_a_best_one_that_is_lost_is_named(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model, monitors=(0.5, 0.4))
    best, last = (tmp_path / "checkpoints" / name for name in ("best.pt", "last.pt"))
    whole = best.read_bytes()
    best.write_bytes(last.read_bytes())
    with pytest.raises(CheckpointError, match=r"best\.pt: expected the model of epoch 1, found the one of 2; restore"):
        RunWriter(tmp_path, _asked(), _earlier(tmp_path))
    best.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=r"best\.pt: expected a checkpoint of version"):
        RunWriter(tmp_path, _asked(), _earlier(tmp_path))
    best.write_bytes(whole)
    RunWriter(tmp_path, _asked(), _earlier(tmp_path)).close()


def test_within_a_step_the_best_one_stays(tmp_path: Path, model: DiPro) -> None:
    writer = RunWriter(tmp_path, _asked())
    _mark(model, 1)
    writer.keep(1, model, [MEASUREMENT], 0.5)
    _mark(model, 1.5)
    writer.keep_unfinished(1, model, {"number": 1.5})
    writer.close()
    checkpoint = _earlier(tmp_path).checkpoint
    assert checkpoint is not None
    assert checkpoint.progress is not None
    assert (checkpoint.step, checkpoint.progress.within_step) == (1, True)
    writer = RunWriter(tmp_path, _asked(), _earlier(tmp_path))
    assert _marked(load_checkpoint(tmp_path / "checkpoints" / "best.pt")[0]) == 1
    (tmp_path / "checkpoints" / "best.pt").unlink()
    writer.close()
    with pytest.raises(CheckpointError, match=r"best\.pt: no such checkpoint"):
        RunWriter(tmp_path, _asked(), _earlier(tmp_path))


def test_a_damaged_last_one_is_named_and_nothing_is_started(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model)
    last = tmp_path / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    last.write_bytes(whole[:5000] + b"x" + whole[5001:])
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged: expected content with the SHA-256"):
        _earlier(tmp_path)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"last\.pt: no such checkpoint"):
        _earlier(tmp_path)
    last.write_bytes((tmp_path / "checkpoints" / "best.pt").read_bytes())
    with pytest.raises(CheckpointError, match="expected a checkpoint to go on from, found a model alone"):
        _earlier(tmp_path)


def test_a_checkpoint_of_another_run_in_its_place_is_named(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path / "one", model)
    other = small_settings("seed=29", "training.epochs=7")
    writer = RunWriter(tmp_path / "two", _asked(other))
    writer.keep(1, model, [], None)
    writer.close()
    (tmp_path / "two" / "checkpoints" / "last.pt").replace(tmp_path / "one" / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match=r"seed: expected 23, found 29; training\.epochs: expected 100, found 7;"):
        _earlier(tmp_path / "one")


@pytest.mark.parametrize("status", ["running", "failed", "finished"])
def test_another_run_is_refused_with_every_difference(tmp_path: Path, model: DiPro, status: str) -> None:
    writer = _two_steps(tmp_path, model)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"status": status}))
    other = small_settings("seed=29", "model.width=24", "task=length_of_stay")
    words = (
        r"another run is in this folder: settings\.model\.width: expected 24, found 16; "
        r"settings\.seed: expected 29, found 23; settings\.task: expected length_of_stay, found mortality\. Give"
    )
    with pytest.raises(RunError, match=words):
        find_earlier(tmp_path, _asked(other), other)
    with pytest.raises(RunError, match=r"cohort\.north: expected beef, found c0ffee"):
        find_earlier(tmp_path, _asked(cohorts={"north": "beef"}), SETTINGS)
    other_sites = replace(writer.record, name="mine", sites=("south",), trained_on=("south",))
    with pytest.raises(RunError, match=r"name: expected mine, found centralized; sites: expected \['south'\], found"):
        find_earlier(tmp_path, other_sites, SETTINGS)


def test_other_code_threads_or_devices_warn(tmp_path: Path, model: DiPro, caplog: pytest.LogCaptureFixture) -> None:
    _two_steps(tmp_path, model)
    _earlier(tmp_path)
    assert not caplog.records
    asked = _asked(machine={"device": "cpu", "threads": 2}, code_digest="0123456789abcdef")
    earlier = find_earlier(tmp_path, asked, SETTINGS)
    assert earlier is not None
    assert [change.split(":")[0] for change in earlier.changed] == ["code", "threads"]
    assert "threads: expected 1, found 2" in caplog.text
    assert "will not be bit for bit" in caplog.text
    RunWriter(tmp_path, asked, earlier).close()
    assert read_run(tmp_path).more["interruptions"] == [{"after_step": 2, "changed": list(earlier.changed)}]


def test_only_one_process_trains_in_a_folder(tmp_path: Path, model: DiPro, capfd: pytest.CaptureFixture[str]) -> None:
    _two_steps(tmp_path, model)
    earlier = _earlier(tmp_path)
    writer = RunWriter(tmp_path, _asked(), earlier)
    other = multiprocessing.get_context("fork").Process(target=RunWriter, args=(tmp_path, _asked(), _earlier(tmp_path)))
    other.start()
    other.join(60)
    assert other.exitcode == 1
    assert "StorageError" in (said := capfd.readouterr().err)
    assert "another process is training into this folder" in said
    writer.fail(KeyboardInterrupt())
    with pytest.raises(RunError, match="another process changed the run in it just now"):
        RunWriter(tmp_path, _asked(), earlier)
    with pytest.raises(RunError, match="another process changed the run in it just now"):
        RunWriter(tmp_path, _asked())
    RunWriter(tmp_path, _asked(), _earlier(tmp_path)).close()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    require_fresh_or_run(tmp_path / "new")
    for name in ("run.lock", "run.json.partial"):
        (tmp_path / name).touch()
    require_fresh_or_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RunError, match="expected a new or an empty folder, found files in it that are no run"):
            require_fresh_or_run(folder)


def test_on_a_full_disk_the_reason_of_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails because nothing can be written must not hide that behind a second failure."""
    writer = RunWriter(tmp_path, _asked())
    before = (tmp_path / "run.json").read_bytes()

    def full(*_: object) -> None:
        raise StorageError("no room")

    monkeypatch.setattr("federation.run_folder.write_whole", full)
    writer.fail(StorageError("no room for last.pt"))
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_monitor_that_is_never_defined_leaves_the_last_model(tmp_path: Path, model: DiPro) -> None:
    _two_steps(tmp_path, model, monitors=(None, None))
    writer = RunWriter(tmp_path, _asked(), _earlier(tmp_path))
    assert writer.steps_without_gain(2) == 0
    assert _marked(writer.chosen_model()[0]) == 2
    writer.close()
    progress = read_checkpoint(tmp_path / "checkpoints" / "last.pt").progress
    assert progress is not None
    assert (progress.best_step, progress.best_monitor) == (None, None)
