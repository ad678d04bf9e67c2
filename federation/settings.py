"""The settings of a run: one frozen tree, read from YAML, the command line or Flower's run config, checked once.

A value "published" stands for what DiPro was published with for the task of the run, so that a file says only what
differs. Flower carries settings as flat scalars; `to_run_config` and `from_run_config` are the two directions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dipro_model import BackboneConfig, DiProConfig, Execution, LossWeights, Parts
from dipro_model.execution import Precision
from dipro_model.vocabulary import Task

_T = TypeVar("_T", bound=BaseModel)
Published = Literal["published"]
Scalar = bool | int | float | str

_PUBLISHED_BATCH_SIZE = {Task.DISEASE_PROGRESSION: 8, Task.MORTALITY: 4, Task.LENGTH_OF_STAY: 4}
_PUBLISHED_BASE_RATE = {Task.DISEASE_PROGRESSION: 5e-6, Task.MORTALITY: 1e-5, Task.LENGTH_OF_STAY: 8e-6}
_PUBLISHED_ACCUMULATION = 4
_SIZES = ("width", "dropout", "num_transformer_layers")
"""Settings of the network that have a published value for each task."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text, because it has no point; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _set(section: BaseModel) -> dict[str, Any]:
    """What of a section is set to something else than `published`."""
    return {name: value for name, value in section.model_dump().items() if value != "published"}


class ModelSettings(_Settings):
    """What of the network may differ from the published one."""

    width: Published | Annotated[int, Field(ge=8, multiple_of=8)] = "published"
    """Model width d, a multiple of the 8 attention heads."""
    dropout: Published | Annotated[float, Field(ge=0, lt=1)] = "published"
    """Dropout probability."""
    num_transformer_layers: Published | Annotated[int, Field(ge=0)] = "published"
    """Local fusion has half as many layers."""
    backbone_depth: Literal[10, 18, 34, 50] = 50
    """Depth of the ResNet."""
    backbone_weights: str = ""
    """Local file with weights for the start, in torchvision's format or a checkpoint of another run; empty: random."""
    freeze_backbone: bool = False
    """Keep the ResNet as it starts: no gradient, batch norm in evaluation mode."""
    crop_pixels: Annotated[int, Field(ge=16, le=224)] = 224
    """Side of a region crop as the network sees it; the cohort's 224 pixels are averaged down to it."""


class PartsSettings(_Settings):
    """What takes part; the published model has all of it, each `false` is an ablation."""

    radiographs: bool = True
    """Look at radiographs; without them the image network never runs."""
    sequence: bool = True
    """Look at all radiographs of the sample; false looks at the last one only, as a pair with itself."""
    ehr: bool = True
    """Read the hourly records."""
    demographics: bool = True
    """Read age, height, weight and the one-hot columns."""
    std_losses: bool = True
    """Spatiotemporal disentanglement: the terms orthogonal and temporal of the objective."""
    pae: bool = True
    """Progression-aware enhancement: the reversed pair and the terms static and dynamic of the objective."""
    local_fusion: bool = True
    """Fuse the regions of a pair with the hours of its interval."""
    global_fusion: bool = True
    """Fuse classes, regions and hours by attention; without it their means are added."""

    @model_validator(mode="after")
    def _something_is_read(self) -> "PartsSettings":
        self.config()
        return self

    def config(self) -> Parts:
        """The parts as the network knows them; whether it is given a sequence is the samples' business."""
        return Parts(**self.model_dump(exclude={"sequence"}))


Factor = Published | Annotated[float, Field(ge=0)]


class LossSettings(_Settings):
    """Factors of the five terms of the objective."""

    task: Factor = "published"
    """Factor of the task's own loss, a_CE."""
    orthogonal: Factor = "published"
    """Factor of the squared cosine between static and dynamic features, a_orth."""
    temporal: Factor = "published"
    """Factor of the change of static features between neighbouring pairs, a_temp."""
    static: Factor = "published"
    """Factor of the change of static features under time reversal, a_static."""
    dynamic: Factor = "published"
    """Factor of the progression loss of single regions, a_dyn."""

    def weights(self, published: LossWeights) -> LossWeights:
        return replace(published, **_set(self))


class TrainingSettings(_Settings):
    """Local optimisation, the same for centralized training and for a site's work in a round."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW as published, or plain SGD without momentum."""
    learning_rate: Published | Annotated[float, Field(gt=0)] = "published"
    """Rate at the start; the published one is base rate x batch size x accumulated batches."""
    static_fusion_rate: Annotated[float, Field(gt=0)] = 1.0
    """Rate of static fusion as a multiple of the others'; above 1, short trainings come to see the demographics."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-7
    """Rate at the end of the cosine, after the last epoch of the run."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the rate moves from epoch to epoch."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay, or SGD's L2 term."""
    batch_size: Published | Annotated[int, Field(ge=1)] = "published"
    """Samples of one batch."""
    accumulated_batches: Annotated[int, Field(ge=1)] = _PUBLISHED_ACCUMULATION
    """Batches whose gradients make one optimizer step."""
    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the training samples of centralized training."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a gain on the validation monitor before centralized training stops."""
    class_weights: Literal["balanced", "published", "none"] = "balanced"
    """Weights of classes and of deaths, from training labels; `published` keeps the published faults."""
    batch_norm: Literal["train", "frozen"] = "train"
    """`frozen` keeps the running statistics and normalises with them while training."""
    precision: Precision = "fp32"
    """Number format of the image network; bf16 halves memory and, where the processor knows it, time."""
    checkpoint_activations: bool = False
    """Compute the image network's activations again on the way back instead of keeping them: less memory, more time."""
    compile: bool = False
    """Let torch.compile fuse the image network; pays on a GPU over many epochs."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read samples ahead; 0 reads in the training process, which is enough without a GPU."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints within an epoch of centralized training, beside the one after every epoch."""

    @model_validator(mode="after")
    def _execution_is_possible(self) -> "TrainingSettings":
        self.execution()
        return self

    def execution(self) -> Execution:
        """How the image network is computed."""
        return Execution(
            precision=self.precision, checkpoint_activations=self.checkpoint_activations, compile=self.compile
        )

    def samples_per_batch(self, task: Task) -> int:
        return _PUBLISHED_BATCH_SIZE[task] if self.batch_size == "published" else self.batch_size

    def start_rate(self, task: Task) -> float:
        if self.learning_rate != "published":
            return self.learning_rate
        return _PUBLISHED_BASE_RATE[task] * self.samples_per_batch(task) * self.accumulated_batches


class FederationSettings(_Settings):
    """The rounds of a federated run."""

    rounds: Annotated[int, Field(ge=1)] = 50
    """Rounds of local training and aggregation."""
    local_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over its own training samples that a site makes in a round."""
    num_sites: Annotated[int, Field(ge=1)] = 2
    """Sites that must be online before the first round."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites asked to train in a round, drawn anew for every round; never fewer than the quorum."""
    quorum: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """Sites whose replies a round needs; `all` means every site that was asked. Without it the run ends."""
    minimum_cell: Annotated[int, Field(ge=1)] = 10
    """Patients that each number a site discloses of its data and scores tells of at least; 1 protects nobody."""
    check_duplicates: bool = True
    """Refuse patients at two sites, by salted hashes of identifiers; false where sites number theirs independently."""
    join_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for the sites to come online."""
    round_seconds: Annotated[float, Field(gt=0)] = 86400.0
    """Longest wait for the replies of one round; the round goes on without late sites if it has its quorum."""

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> "FederationSettings":
        if self.quorum != "all" and self.quorum > self.num_sites:
            raise ValueError(f"federation.quorum: expected at most num_sites={self.num_sites}, found {self.quorum}")
        return self

    @property
    def sites_a_round(self) -> int:
        """How many sites are asked to train in a round."""
        least = 1 if self.quorum == "all" else self.quorum
        return max(least, round(self.fraction * self.num_sites))


Parameter = Literal["default"] | Annotated[float, Field(ge=0)]


class StrategySettings(_Settings):
    """How the server makes the next model of the replies; docs/strategies.md gives formulas and defaults."""

    name: Literal[
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "qfedavg",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "multikrum",
        "bulyan",
    ] = "fedavg"
    """Flower's strategy of this name. A parameter that it does not have must stay `default`."""
    mu: Parameter = "default"
    """FedProx: strength of the pull towards the global model; must be given."""
    server_rate: Parameter = "default"
    """FedAvgM, FedAdam, FedYogi, FedAdagrad: learning rate of the server's step."""
    momentum: Parameter = "default"
    """FedAvgM: share of the last step that the next one keeps."""
    beta_1: Parameter = "default"
    """FedAdam, FedYogi: decay of the first moment."""
    beta_2: Parameter = "default"
    """FedAdam, FedYogi: decay of the second moment."""
    tau: Parameter = "default"
    """FedAdam, FedYogi, FedAdagrad: size below which an entry's update is damped."""
    q: Parameter = "default"
    """QFedAvg: how much more sites of higher loss count."""
    client_rate: Parameter = "default"
    """QFedAvg: the sites' learning rate; must be given."""
    beta: Parameter = "default"
    """FedTrimmedAvg: share of the replies that is cut off at either end."""
    num_malicious: Parameter = "default"
    """Krum, MultiKrum, Bulyan: malicious sites to be borne."""
    num_selected: Parameter = "default"
    """MultiKrum: replies that are averaged; must be given."""
    norm_factor: Annotated[float, Field(ge=0)] = 10.0
    """Updates longer than so many times the round's median are refused; 0 looks at none, and sums replies at once."""

    def parameters(self) -> dict[str, float]:
        """The strategy's parameters that are set."""
        named = self.model_dump(exclude={"name", "norm_factor"})
        return {name: value for name, value in named.items() if value != "default"}


class RunSettings(_Settings):
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

    def config(self) -> DiProConfig:
        """The network and objective of this run, with the published values where nothing else is set."""
        model = self.model
        backbone = BackboneConfig(
            depth=model.backbone_depth, freeze=model.freeze_backbone, crop_pixels=model.crop_pixels
        )
        published = DiProConfig.published(self.task, backbone=backbone)
        sizes = {name: value for name, value in _set(model).items() if name in _SIZES}
        return replace(published, **sizes, loss=self.loss.weights(published.loss), parts=self.parts.config())


class RunFiles(_Settings):
    """Where a Flower app finds and leaves its files; the same keys in every run config, empty where unused."""

    folder: str = ""
    """Folder of the run at the server, for checkpoints, history and run.json."""
    sites: str = ""
    """Simulation only: the JSON file that says which patients each simulated site has."""


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
        else:
            line = f"{key}: {problem['msg'].lower()}, found {problem['input']!r}"
        if line not in lines:
            lines.append(line)
    return f"{source}: " + "; ".join(lines)
