"""Settings: every door refuses what it does not know, and all doors give the same tree."""

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

from dipro_model import DiProConfig
from dipro_model.vocabulary import Task
from federation.settings import RunFiles, RunSettings, SettingsError, from_run_config, load_settings, to_run_config


def test_the_defaults_are_the_published_ones() -> None:
    expected = {
        Task.DISEASE_PROGRESSION: (8, 5e-6 * 8 * 4),
        Task.MORTALITY: (4, 1.6e-4),
        Task.LENGTH_OF_STAY: (4, 8e-6 * 4 * 4),
    }
    for task, (batch_size, rate) in expected.items():
        settings = load_settings(overrides=[f"task={task}"])
        assert settings.config() == DiProConfig.published(task)
        assert settings.training.samples_per_batch(task) == batch_size
        assert settings.training.start_rate(task) == pytest.approx(rate, rel=1e-12)
        assert (settings.training.epochs, settings.training.patience, settings.training.final_learning_rate) == (
            100,
            10,
            1e-7,
        )


def test_a_file_and_overrides_make_one_tree(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: length_of_stay\nmodel:\n  width: 64\ntraining:\n  learning_rate: 1e-4\n  epochs: 7\n")
    settings = load_settings(path, ["training.epochs=3", "model.backbone_depth=10"])
    assert (settings.task, settings.training.epochs, settings.training.learning_rate) == (Task.LENGTH_OF_STAY, 3, 1e-4)
    config = settings.config()
    assert (config.width, config.backbone.depth, config.dropout) == (64, 10, 0.1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", "training.epoch: unknown setting"),
        ("training.epochs=three", "training.epochs: .*found 'three'"),
        ("training.epochs=0", "training.epochs: .*greater than or equal to 1.*found 0"),
        ("training.epochs=2.5", "training.epochs: .*found 2.5"),
        ("training.schedule=linear", "training.schedule: .*'cosine' or 'constant'.*found 'linear'"),
        ("model.freeze_backbone=1", "model.freeze_backbone: .*found 1"),
        ("task=death", "task: .*found 'death'"),
        ("seed=true", "seed: .*found True"),
        ("model.width=20", "model.width: .*multiple of 8.*found 20"),
        ("seed", "KEY=VALUE"),
        ("seed.more=1", "seed: "),
    ],
)
def test_a_wrong_setting_is_named(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(overrides=[override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: [1, 2", "expected YAML"),
        ("- task", "expected sections"),
        ("training: 3", "training: .*found 3"),
        ("trainings:\n  epochs: 3", "trainings: unknown setting"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words) as error:
        load_settings(path)
    assert str(path) in str(error.value)
    with pytest.raises(SettingsError, match="no such settings file"):
        load_settings(tmp_path / "absent.yaml")


def test_flower_carries_the_same_settings() -> None:
    settings = load_settings(overrides=["model.width=64", "training.learning_rate=1e-3", "task=disease_progression"])
    files = RunFiles(folder="run", sites="sites.json")
    flat = to_run_config(settings, files)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert from_run_config(flat) == (settings, files)
    with pytest.raises(SettingsError, match=r"training\.epochs"):
        from_run_config({**flat, "training.epochs": "many"})
    with pytest.raises(SettingsError, match=r"surprise: unknown setting"):
        from_run_config({**flat, "surprise": 1})


def test_the_bundle_declares_these_defaults() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = flatten_dict(pyproject["tool"]["flwr"]["app"]["config"])
    assert declared == to_run_config(RunSettings(), RunFiles())


def test_every_example_is_valid() -> None:
    examples = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert examples
    for path in examples:
        load_settings(path)


def test_scaffold_and_received_batch_norm_are_not_for_one_run() -> None:
    plain = ("training.optimizer=sgd", "training.batch_norm=received")
    with pytest.raises(SettingsError, match=r"expected one of them: choose another strategy, or batch_norm=train"):
        load_settings(overrides=["strategy.name=scaffold", *plain])
    load_settings(overrides=["strategy.name=fedadam", *plain])
