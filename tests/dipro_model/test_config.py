"""The published settings, their plain form, and what is refused."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from dipro_model import BackboneConfig, DiProConfig, LossWeights
from dipro_model.vocabulary import Task

# Task: outputs, classes, width, layers, then the factors task, temporal, orthogonal, static, dynamic.
PUBLISHED = {
    "disease_progression": (7, 3, 256, 2, 2.0, 0.0, 1.0, 0.5, 2.0),
    "mortality": (1, 1, 256, 4, 6.0, 1.0, 0.1, 0.5, 0.1),
    "length_of_stay": (1, 4, 128, 2, 10.0, 0.1, 0.001, 0.5, 0.1),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_settings(task: str) -> None:
    config = DiProConfig.published(task)
    loss = config.loss
    found = (config.num_outputs, config.num_classes, config.width, config.num_transformer_layers)
    assert (*found, loss.task, loss.temporal, loss.orthogonal, loss.static, loss.dynamic) == PUBLISHED[task]
    assert (config.dropout, config.num_groups, config.num_heads, config.num_fusion_layers) == (0.1, 8, 8, 1)
    assert config.backbone == BackboneConfig(depth=50, channels=64, crop_pixels=224, freeze=False)
    assert config.task is Task(task)


@pytest.mark.parametrize("task", PUBLISHED)
def test_plain_values_survive_json(task: str) -> None:
    config = replace(
        DiProConfig.published(task),
        width=64,
        backbone=BackboneConfig(depth=18, channels=16, crop_pixels=96, freeze=True),
    )
    assert DiProConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_values_of_versions_that_had_one_number_of_channels_are_read() -> None:
    values = DiProConfig.published("mortality").to_dict()
    del values["backbone"]["channels"]
    assert DiProConfig.from_dict(values).backbone.channels == 64


@pytest.mark.parametrize(("layers", "local"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)])
def test_local_layers_are_half_of_the_transformer_layers(layers: int, local: int) -> None:
    assert replace(DiProConfig.published("mortality"), num_transformer_layers=layers).num_local_layers == local


def edited(path: str, value: Any) -> dict[str, Any]:
    """Plain values of a configuration with one of them set."""
    values = DiProConfig.published("mortality").to_dict()
    *sections, name = path.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task", "readmission", "task: expected one of"),
        ("width", 100, "width: expected an even multiple of num_heads=8, got 100"),
        ("width", 64.0, "width: expected a whole number of at least 2, got 64.0"),
        ("width", True, "width: expected a whole number"),
        ("num_heads", 0, "num_heads: expected a whole number of at least 1"),
        ("num_fusion_layers", 0, "num_fusion_layers"),
        ("num_transformer_layers", -1, "num_transformer_layers"),
        ("num_groups", "8", "num_groups"),
        ("dropout", 1.0, "dropout: expected a probability below 1"),
        ("dropout", float("nan"), "dropout: expected a finite number"),
        ("loss.task", -1.0, "loss.task: expected a finite number of at least 0"),
        ("loss.task", "6", "loss.task: expected a finite number"),
        ("loss.temporl", 1.0, r"loss settings: unknown \['temporl'\]"),
        ("loss", 3, "loss settings: expected a dictionary"),
        ("backbone.depth", 101, "backbone.depth: expected one of"),
        ("backbone.channels", 0, "backbone.channels: expected a whole number of at least 1"),
        ("backbone.crop_pixels", 0, "backbone.crop_pixels"),
        ("backbone.freeze", 1, "backbone.freeze: expected true or false"),
        ("learning_rate", 0.1, r"model settings: unknown \['learning_rate'\]"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_settings_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiProConfig.from_dict(edited(path, value))


def test_a_missing_setting_is_named() -> None:
    values = DiProConfig.published("mortality").to_dict()
    del values["width"]
    with pytest.raises(ValueError, match=r"missing \['width'\]"):
        DiProConfig.from_dict(values)


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DiProConfig.published("mortality").width = 8
    with pytest.raises(TypeError):
        LossWeights(1.0, 1.0, 1.0, 1.0, 1.0)
