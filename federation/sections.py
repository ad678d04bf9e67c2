"""The sections of a run's settings: one frozen class each, whose docstrings are docs/settings.md.

A value "published" stands for what DiPro was published with for the task of the run.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dipro_model import Execution, LossWeights, Parts
from dipro_model.execution import Precision
from dipro_model.vocabulary import Task

Published = Literal["published"]

_PUBLISHED_BATCH_SIZE = {Task.DISEASE_PROGRESSION: 8, Task.MORTALITY: 4, Task.LENGTH_OF_STAY: 4}
_PUBLISHED_BASE_RATE = {Task.DISEASE_PROGRESSION: 5e-6, Task.MORTALITY: 1e-5, Task.LENGTH_OF_STAY: 8e-6}
_PUBLISHED_ACCUMULATION = 4
SIZES = ("width", "dropout", "num_transformer_layers")
"""Settings of the network that have a published value for each task."""


class Section(BaseModel):
    # Not `use_attribute_docstrings`: it reads this file again for each class, in every process that trains.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def values_set(section: BaseModel) -> dict[str, Any]:
    """What of a section is set to something else than `published`."""
    return {name: value for name, value in section.model_dump().items() if value != "published"}


class ModelSettings(Section):
    """What of the network may differ from the published one."""

    width: Published | Annotated[int, Field(ge=8, multiple_of=8)] = "published"
    """Model width d, a multiple of the 8 attention heads."""
    dropout: Published | Annotated[float, Field(ge=0, lt=1)] = "published"
    """Dropout probability."""
    num_transformer_layers: Published | Annotated[int, Field(ge=0)] = "published"
    """Local fusion has half as many layers."""
    ehr_bias_std: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Standard deviation of the bias of the hourly embedding at a random start; 0 is PyTorch's own start, as published.
    The layer norm behind the embedding keeps the direction of an hour's values alone: next to a small bias that says in
    which sense they leave their means, next to one of about 1 also how far."""
    backbone_depth: Literal[10, 18, 34, 50] = 50
    """Depth of the ResNet."""
    backbone_channels: Annotated[int, Field(ge=1)] = 64
    """Channels of the ResNet's first stage, 64 as published; the later ones have 2, 4 and 8 times as many."""
    backbone_weights: str = ""
    """Local file with weights for the start, in torchvision's format or a checkpoint of another run; empty: random."""
    start: str = ""
    """Local file with a checkpoint of another run, of any task and the same width: what of it has a name and shape of
    this model's is where training starts."""
    trained: Literal["all", "outcome", "readout"] = "all"
    """`outcome` trains class tokens and heads alone, on what the rest makes of a stay as it starts: few parameters, for
    few patients or much noise. `readout` trains linear heads alone, on the principal components of the class tokens of
    `start`, a file of `dipro-fed components`: fewest parameters."""
    components: Annotated[int, Field(ge=1)] = 32
    """Of `trained=readout`: how many components a head reads, as many as `start` has."""
    freeze_backbone: bool = False
    """Keep the ResNet as it starts: no gradient, batch norm in evaluation mode."""
    crop_pixels: Annotated[int, Field(ge=16, le=224)] = 224
    """Side of a region crop as the network sees it; the cohort's 224 pixels are averaged down to it."""


class PartsSettings(Section):
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


class LossSettings(Section):
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
        return replace(published, **values_set(self))


class TrainingSettings(Section):
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
    batch_norm: Literal["train", "frozen", "received"] = "train"
    """`frozen` keeps the running statistics and normalises with them while training. `received`, in federated training,
    normalises as one batch of all sites would, forward and backward, with what the sites' work of the rounds before
    tells: for sites whose classes differ, with `strategy.recalibrate`."""
    precision: Precision = "fp32"
    """Number format of the image network; bf16 halves memory and, where the processor knows it, time."""
    checkpoint_activations: bool = False
    """Compute the image network's activations again on the way back instead of keeping them, and on a CPU give back
    what is freed: less memory, more time."""
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


class FederationSettings(Section):
    """The rounds of a federated run."""

    rounds: Annotated[int, Field(ge=1)] = 50
    """Rounds of local training and aggregation."""
    local_work: Literal["epochs", "steps", "seconds"] = "epochs"
    """What a site's work in a round is counted in; the three below say how much of it."""
    local_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over its own training samples that a site makes in a round."""
    local_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps of a round, the same for large and small sites; a site goes on through its samples where the
    round before ended, so that each is seen as often as any other."""
    common_batch: bool = False
    """`training.batch_size` is the size of a batch of all sites together: each site's part of it is its share of all
    training samples, one sample at least. The rate stays that of the whole batch."""
    local_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time of a round's work, so that slow sites do less; the step in which it runs out is finished."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Rounds without a gain on the validation monitor before the run stops."""
    kept_rounds: Annotated[int, Field(ge=0)] = 0
    """Models of the last so many rounds that are kept beside the best and the last one."""
    num_sites: Annotated[int, Field(ge=1)] = 2
    """Sites that must be online before the first round."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sites asked to train in a round, drawn anew for every round; never fewer than the quorum."""
    quorum: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """Sites whose replies a round needs; `all` means every site that was asked. Without it the run ends."""
    minimum_cell: Annotated[int, Field(ge=1)] = 10
    """Patients that each number a site discloses of its data and scores tells of at least; 1 protects nobody."""
    visits: Literal["one", "two"] = "two"
    """How often a round comes to a site: twice, to train and then to score the aggregate; or once, to score the last
    round's aggregate and train on it. Over a network a visit costs seconds; only sites that train then score."""
    score_every: Annotated[int, Field(ge=1)] = 1
    """Rounds from one validation of the aggregate to the next, for many short rounds; the last is always validated.
    Only then a round can be the best, or the run stop for want of a gain."""
    check_duplicates: bool = True
    """Refuse patients at two sites, by salted hashes of identifiers; false where sites number theirs independently."""
    join_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for the sites to come online."""
    attempts: Annotated[int, Field(ge=1)] = 3
    """How often a site is asked in a round whose process or link was lost; it is asked again once it is back online."""
    round_seconds: Annotated[float, Field(gt=0)] = 86400.0
    """Longest wait for the replies of one round; the round goes on without late sites if it has its quorum."""

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> "FederationSettings":
        if self.quorum != "all" and self.quorum > self.num_sites:
            raise ValueError(f"federation.quorum: expected at most num_sites={self.num_sites}, found {self.quorum}")
        return self

    def is_scored(self, server_round: int) -> bool:
        """Whether the sites validate the aggregate of a round."""
        return server_round % self.score_every == 0 or server_round == self.rounds

    @property
    def sites_a_round(self) -> int:
        """How many sites are asked to train in a round."""
        least = 1 if self.quorum == "all" else self.quorum
        return max(least, round(self.fraction * self.num_sites))


Parameter = Literal["default"] | Annotated[float, Field(ge=0)]


_LAST_FACTOR = 0.05
"""What the server's step shrinks to."""


class StrategySettings(Section):
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
        "scaffold",
    ] = "fedavg"
    """Flower's strategy of this name, or SCAFFOLD. A parameter that it does not have must stay `default`."""
    mu: Parameter = "default"
    """FedProx: strength of the pull towards the global model; must be given."""
    server_rate: Parameter = "default"
    """FedAvgM, FedAdam, FedYogi, FedAdagrad, SCAFFOLD: learning rate of the server's step."""
    server_schedule: Literal["constant", "cosine"] = "constant"
    """FedAdam, FedYogi, FedAdagrad: whether the server's step shrinks over the rounds, on half a cosine to a twentieth.
    A falling rate at the sites does not make it shorter: these strategies divide that out."""
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

    recalibrate: bool = False
    """Give batch norm the statistics of all sites' samples together, where the mean forgets that sites differ."""
    statistics_momentum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With `recalibrate`: share that a round has in batch norm's statistics, the rest being those before it; below 1
    where a round has few samples, whose statistics are little certain."""

    @model_validator(mode="after")
    def _momentum_has_statistics(self) -> "StrategySettings":
        if self.statistics_momentum != 1 and not self.recalibrate:
            raise ValueError(
                "statistics_momentum is of the statistics that strategy.recalibrate takes; expected recalibrate=true, "
                "found false"
            )
        return self

    def statistics_share(self, server_round: int) -> float:
        """What a round, counted from 1, has of batch norm's statistics.

        The first rounds' mean, not their distance from the initial values, is what a small share begins with.
        """
        return max(self.statistics_momentum, 1 / server_round)

    def server_factor(self, server_round: int, rounds: int) -> float:
        """What the server's step of a round, counted from 1, is multiplied by."""
        if self.server_schedule == "constant":
            return 1.0
        return _LAST_FACTOR + (1 - _LAST_FACTOR) * (1 + math.cos(math.pi * (server_round - 1) / rounds)) / 2

    def parameters(self) -> dict[str, float]:
        """The strategy's parameters that are set."""
        named = self.model_dump(
            exclude={"name", "norm_factor", "recalibrate", "statistics_momentum", "server_schedule"}
        )
        return {name: value for name, value in named.items() if value != "default"}


class CommunicationSettings(Section):
    """How the model travels; docs/communication.md gives formulas and bytes."""

    codec: Literal["fp32", "trained", "bf16", "int8", "topk"] = "fp32"
    """fp32: whole and exact; trained: exact, without what is frozen; others: rounded changes of what is trained."""
    block_size: Annotated[int, Field(ge=1)] = 256
    """int8: entries that share a scale."""
    kept_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """topk: share of the entries that travel in a round."""


class PersonalSettings(Section):
    """A model of each site's own beside the common one; its scores take the common one's place at the site."""

    method: Literal["none", "fedbn", "ditto", "finetune"] = "none"
    """fedbn keeps batch norm at the site, ditto a second model near the common one; finetune trains on at the end."""
    strength: Annotated[float, Field(ge=0)] = 0.1
    """ditto: pull towards the common model, lambda."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """ditto: passes over the own samples in a round; finetune: passes after the last round."""
    rate_factor: Annotated[float, Field(gt=0)] = 1.0
    """ditto, finetune: learning rate as a multiple of the training's."""
