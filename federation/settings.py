"""The settings of a run: one frozen tree, read from YAML, the command line or Flower's run config, checked once.

A value "published" stands for what DiPro was published with for the task of the run, so that a file says only what
differs. Flower carries settings as flat scalars; `to_run_config` and `from_run_config` are the two directions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dipro_model import BackboneConfig, DiProConfig
from dipro_model.vocabulary import Task
from federation.patient_privacy import PatientPrivacySettings, require_guarantee
from federation.sections import (
    SIZES,
    CommunicationSettings,
    FederationSettings,
    LossSettings,
    ModelSettings,
    PartsSettings,
    PersonalSettings,
    Section,
    StrategySettings,
    TrainingSettings,
    values_set,
)
from federation.secure_settings import SecureAggregationSettings, check_secure
from federation.site_privacy import SitePrivacySettings, require_site_guarantee

_T = TypeVar("_T", bound=BaseModel)
Scalar = bool | int | float | str


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text, because it has no point; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


class RunSettings(Section):
    """Everything that a run's result depends on, beside the cohorts."""

    task: Annotated[Task, Field(strict=False)] = Task.MORTALITY
    """disease_progression, mortality or length_of_stay."""
    seed: Annotated[int, Field(ge=0)] = 23
    """All randomness of the run is derived from it."""
    model: ModelSettings = ModelSettings()
    parts: PartsSettings = PartsSettings()
    loss: LossSettings = LossSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    strategy: StrategySettings = StrategySettings()
    communication: CommunicationSettings = CommunicationSettings()
    personal: PersonalSettings = PersonalSettings()
    patient_privacy: PatientPrivacySettings = PatientPrivacySettings()
    site_privacy: SitePrivacySettings = SitePrivacySettings()
    secure_aggregation: SecureAggregationSettings = SecureAggregationSettings()

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunSettings":
        check_secure(self.secure_aggregation, self.federation, self.strategy, self.communication)
        if self.strategy.name == "scaffold" and self.training.optimizer != "sgd":
            raise ValueError(
                "strategy.name=scaffold corrects plain gradient steps; expected training.optimizer=sgd, found "
                f"{self.training.optimizer}"
            )
        if self.strategy.name == "scaffold" and self.training.static_fusion_rate != 1:
            raise ValueError(
                "strategy.name=scaffold takes one learning rate for all parameters; expected "
                f"training.static_fusion_rate=1, found {self.training.static_fusion_rate:g}"
            )
        if self.strategy.name == "scaffold" and self.training.batch_norm == "received":
            raise ValueError(
                "strategy.name=scaffold corrects every gradient of a site's work, training.batch_norm=received those "
                "of batch norm; expected one of them: choose another strategy, or batch_norm=train"
            )
        if self.personal.method == "fedbn" and not self.parts.radiographs:
            raise ValueError(
                "personal.method=fedbn keeps batch norm at the sites, but without radiographs (parts.radiographs) "
                "none is used; choose ditto or finetune"
            )
        if self.model.trained != "all" and not self.model.freeze_backbone:
            raise ValueError(
                f"model.trained={self.model.trained} leaves the ResNet as it starts; expected "
                "model.freeze_backbone=true, found false"
            )
        if self.model.trained == "readout" and not self.model.start:
            raise ValueError(
                "model.trained=readout reads components that are not trained; expected model.start, a file of "
                "`dipro-fed components`, found none"
            )
        require_guarantee(self)
        require_site_guarantee(self)
        return self

    def config(self) -> DiProConfig:
        """The network and objective of this run, with the published values where nothing else is set."""
        model = self.model
        backbone = BackboneConfig(
            depth=model.backbone_depth,
            channels=model.backbone_channels,
            freeze=model.freeze_backbone,
            crop_pixels=model.crop_pixels,
        )
        published = DiProConfig.published(self.task, backbone=backbone)
        sizes = {name: value for name, value in values_set(model).items() if name in SIZES}
        return replace(
            published,
            **sizes,
            trained=model.trained,
            num_components=model.components,
            loss=self.loss.weights(published.loss),
            parts=self.parts.config(),
        )


class RunFiles(Section):
    """Where a Flower app finds and leaves its files; the same keys in every run config, empty where unused."""

    folder: str = ""
    """Folder of the run at the server, for checkpoints, history and run.json."""
    sites: str = ""
    """Simulation only: the JSON file that says which patients each simulated site has."""
    freight: str = ""
    """Over the network only: folder at the server of what travels beside messages."""


class SettingsError(ValueError):
    """Settings that cannot be used; names each key, what was expected and what came."""


def load_settings(path: Path | str | None = None, overrides: Sequence[str] = ()) -> RunSettings:
    """Settings from a YAML file (or the defaults) with `key.name=value` overrides, later ones winning.

    Raises SettingsError for an unknown key, a wrong type, or text that is no YAML.
    """
    tree: dict[str, Any] = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise SettingsError(f"expected KEY=VALUE such as training.epochs=5, found {override!r}")
        _put(tree, key.strip(), _scalar(text))
    return _validated(RunSettings, tree, str(path) if path is not None else "settings")


def to_run_config(settings: RunSettings, files: RunFiles) -> dict[str, Scalar]:
    """Flat scalars "section.key", the form of Flower's run config."""
    flat: dict[str, Scalar] = {}
    for key, value in {**settings.model_dump(mode="json"), "files": files.model_dump()}.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def from_run_config(run_config: Mapping[str, Scalar]) -> tuple[RunSettings, RunFiles]:
    """The settings and file locations in Flower's run config; any other key is an error."""
    tree: dict[str, Any] = {}
    for key, value in run_config.items():
        _put(tree, key, value)
    files = tree.pop("files", {})
    return _validated(RunSettings, tree, "run config"), _validated(RunFiles, files, "run config, files")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file; see configs/ for examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected YAML, found text that does not parse: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected sections such as `training:`, found a {type(tree).__name__}")
    return tree


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{key}: `{parent}` is a value, not a section")
    tree[leaf] = value


def _validated(model: type[_T], tree: dict[str, Any], source: str) -> _T:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error, source)) from None


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        # A union reports one problem for each of its members behind the field's own name.
        key = ".".join(str(part) for part in problem["loc"][:2])
        if problem["type"] == "extra_forbidden":
            line = f"{key}: unknown setting; the settings are listed in docs/settings.md"
        elif problem["type"] == "value_error":  # settings that do not fit each other: the text names them
            line = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
        else:
            line = f"{key}: {problem['msg'].lower()}, found {problem['input']!r}"
        if line not in lines:
            lines.append(line)
    return f"{source}: " + "; ".join(lines)
