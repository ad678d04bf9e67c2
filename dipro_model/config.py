"""Everything that determines a DiPro network and its objective, with the published settings of each task."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dipro_model.vocabulary import DISEASES, PROGRESSIONS, TASK_CLASSES, Task

BACKBONE_DEPTHS: tuple[int, ...] = (10, 18, 34, 50)
"""Depths of residual networks that the backbone can have."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The image network that turns one region crop into one feature vector."""

    depth: int = 50
    """Number of weighted layers of the residual network: 10, 18, 34 (basic blocks) or 50 (bottlenecks)."""

    channels: int = 64
    """Channels of the residual network's first stage; the later three have 2, 4 and 8 times as many."""

    crop_pixels: int = 224
    """Side of a region crop in pixels, to which a data set resamples; the network itself takes any size."""

    freeze: bool = False
    """Whether the residual network keeps its weights and batch statistics; the adapter behind it is trained."""

    def __post_init__(self) -> None:
        _require_int("backbone.depth", self.depth, least=1)
        if self.depth not in BACKBONE_DEPTHS:
            raise ValueError(f"backbone.depth: expected one of {BACKBONE_DEPTHS}, got {self.depth}")
        _require_int("backbone.channels", self.channels, least=1)
        _require_int("backbone.crop_pixels", self.crop_pixels, least=1)
        _require_bool("backbone.freeze", self.freeze)

    @property
    def num_features(self) -> int:
        """Length of the pooled feature vector; of 64 channels 2048 behind bottlenecks, 512 behind basic blocks."""
        return (32 if self.depth == 50 else 8) * self.channels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneConfig":
        """Read back what `to_dict` wrote. Raises ValueError naming an unknown or missing setting."""
        if isinstance(values, Mapping):
            values = {"channels": 64, **values}  # files of versions that knew nothing else do not say it
        _require_fields("backbone", cls, values)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factors of the objective's five terms (no unit, at least 0)."""

    task: float
    """Factor of the task's own loss, a_CE."""

    orthogonal: float
    """Factor of the squared cosine between static and dynamic features, a_orth."""

    temporal: float
    """Factor of the change of static features between neighbouring pairs, a_temp."""

    static: float
    """Factor of the change of static features under time reversal, a_static."""

    dynamic: float
    """Factor of the progression loss of single regions, a_dyn."""

    def __post_init__(self) -> None:
        for item in fields(self):
            _require_number(f"loss.{item.name}", getattr(self, item.name), least=0.0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LossWeights":
        """Read back what `to_dict` wrote. Raises ValueError naming an unknown or missing setting."""
        _require_fields("loss", cls, values)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which parts of DiPro take part; the published model has all, a model without one is an ablation of it.

    Whatever takes part, the network has the same parameters, so that the random start is the same as well.
    """

    std_losses: bool = True
    """Spatiotemporal disentanglement: the terms `orthogonal` and `temporal` of the objective."""

    pae: bool = True
    """Progression-aware enhancement: the pair in reversed order, the terms `static` and `dynamic` of the objective."""

    local_fusion: bool = True
    """Regions of a pair look at themselves and at the hours of their interval."""

    global_fusion: bool = True
    """Class tokens, regions and hours look at one another; without it a class token adds the mean region and hour."""

    ehr: bool = True
    """Hourly records; without them every stay is one without a recorded hour."""

    radiographs: bool = True
    """Radiographs; without them the image network never runs."""

    demographics: bool = True
    """Age, height, weight and the one-hot columns."""

    def __post_init__(self) -> None:
        for item in fields(self):
            _require_bool(f"parts.{item.name}", getattr(self, item.name))
        if not (self.ehr or self.radiographs or self.demographics):
            raise ValueError(
                "parts: expected at least one of ehr, radiographs and demographics, got a model of nothing"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Parts":
        """Read back what `to_dict` wrote. Raises ValueError naming an unknown or missing setting."""
        _require_fields("parts", cls, values)
        return cls(**values)


Trained = Literal["all", "outcome", "readout"]


@dataclass(frozen=True, kw_only=True)
class DiProConfig:
    """Sizes of a DiPro network and weights of its objective; nothing about how it is optimised."""

    task: Task
    """What the network predicts."""

    width: int
    """Length d of every token; an even multiple of `num_heads`."""

    num_transformer_layers: int
    """Twice the number of local fusion layers (an odd number counts as the next smaller even one)."""

    loss: LossWeights
    """Factors of the objective's terms."""

    dropout: float = 0.1
    """Probability with which an activation is dropped in training, in [0, 1)."""

    num_fusion_layers: int = 1
    """Number of encoder layers over class, region and EHR tokens."""

    num_groups: int = 8
    """Number of learned groups that static features and demographics are expressed in."""

    num_heads: int = 8
    """Number of heads of every attention."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The image network."""

    parts: Parts = field(default_factory=Parts)
    """Which parts of the model take part."""

    trained: Trained = "all"
    """What learns: everything; `outcome`, class tokens and heads alone, the rest staying as it starts; or `readout`,
    linear heads alone, in place of the published ones, on components of the class tokens, which stay as they start."""

    num_components: int = 32
    """Of `readout`: principal components of a class token that a head reads."""

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise ValueError(f"task: expected one of {[str(task) for task in Task]}, got {self.task!r}")
        _require_int("width", self.width, least=2)
        _require_int("num_transformer_layers", self.num_transformer_layers, least=0)
        _require_int("num_fusion_layers", self.num_fusion_layers, least=1)
        _require_int("num_groups", self.num_groups, least=1)
        _require_int("num_heads", self.num_heads, least=1)
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(f"width: expected an even multiple of num_heads={self.num_heads}, got {self.width}")
        _require_int("num_components", self.num_components, least=1)
        if self.trained == "readout" and self.num_components > self.width:
            raise ValueError(
                f"num_components: expected at most the width, {self.width}, for trained=readout, got "
                f"{self.num_components}"
            )
        _require_number("dropout", self.dropout, least=0.0)
        if self.dropout >= 1.0:
            raise ValueError(f"dropout: expected a probability below 1, got {self.dropout}")
        if self.trained not in get_args(Trained):
            raise ValueError(f"trained: expected one of {list(get_args(Trained))}, got {self.trained!r}")
        for name, kind in (("loss", LossWeights), ("backbone", BackboneConfig), ("parts", Parts)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: expected {kind.__name__}, which from_dict reads from plain values")

    @classmethod
    def published(cls, task: Task | str, *, backbone: BackboneConfig | None = None) -> "DiProConfig":
        """The sizes and loss weights of the published experiments (Liu et al., arXiv 2510.11112)."""
        task = _read_task(task)
        width, num_transformer_layers, loss = _PUBLISHED[task]
        return cls(
            task=task,
            width=width,
            num_transformer_layers=num_transformer_layers,
            loss=loss,
            backbone=backbone or BackboneConfig(),
        )

    @property
    def num_outputs(self) -> int:
        """Number K of things predicted: one a disease for progression, else one."""
        return len(DISEASES) if self.task is Task.DISEASE_PROGRESSION else 1

    @property
    def num_classes(self) -> int:
        """Number C of logits of each output: a single one (of death) for mortality, else one a class."""
        if self.task is Task.DISEASE_PROGRESSION:
            return len(PROGRESSIONS)
        return 1 if self.task is Task.MORTALITY else len(TASK_CLASSES[self.task])

    @property
    def num_local_layers(self) -> int:
        """Number of layers that fuse a pair's regions with the EHR of its interval."""
        return self.num_transformer_layers // 2

    def has_term(self, name: str) -> bool:
        """Whether a term of the objective counts, because the part of the model that it shapes takes part."""
        if name == "task":
            return True
        shaped = self.parts.std_losses if name in ("orthogonal", "temporal") else self.parts.pae
        return shaped and self.parts.radiographs

    def to_dict(self) -> dict[str, Any]:
        """Plain values (text, numbers, nested dictionaries) that JSON can hold and `from_dict` reads."""
        return {**asdict(self), "task": str(self.task)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiProConfig":
        """Read back what `to_dict` wrote. Raises ValueError naming an unknown or missing setting."""
        if isinstance(values, Mapping):
            # Files of versions that knew nothing else do not say these.
            values = {"trained": "all", "num_components": 32, **values}
        _require_fields("model", cls, values)
        return cls(
            **{
                **values,
                "task": _read_task(values["task"]),
                "loss": LossWeights.from_dict(values["loss"]),
                "backbone": BackboneConfig.from_dict(values["backbone"]),
                "parts": Parts.from_dict(values["parts"]),
            }
        )


def _read_task(value: object) -> Task:
    known = [str(task) for task in Task]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"task: expected one of {known}, got {value!r}")
    return Task(value)


def _require_fields(section: str, cls: type, values: Mapping[str, Any]) -> None:
    expected = {item.name for item in fields(cls)}
    if not isinstance(values, Mapping):
        raise ValueError(f"{section} settings: expected a dictionary with {sorted(expected)}, got {values!r}")
    unknown, missing = sorted(set(values) - expected, key=str), sorted(expected - set(values))
    if unknown or missing:
        raise ValueError(f"{section} settings: unknown {unknown}, missing {missing}; expected {sorted(expected)}")


def _require_int(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")


def _require_number(name: str, value: object, *, least: float) -> None:
    # The comparison also turns away NaN, which is below and above nothing.
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise ValueError(f"{name}: expected a finite number of at least {least}, got {value!r}")


# Width, num_transformer_layers and loss weights of each task.
_PUBLISHED: dict[Task, tuple[int, int, LossWeights]] = {
    Task.DISEASE_PROGRESSION: (
        256,
        2,
        LossWeights(task=2.0, orthogonal=1.0, temporal=0.0, static=0.5, dynamic=2.0),
    ),
    Task.MORTALITY: (
        256,
        4,
        LossWeights(task=6.0, orthogonal=0.1, temporal=1.0, static=0.5, dynamic=0.1),
    ),
    Task.LENGTH_OF_STAY: (
        128,
        2,
        LossWeights(task=10.0, orthogonal=0.001, temporal=0.1, static=0.5, dynamic=0.1),
    ),
}
