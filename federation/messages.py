"""What server and sites say to each other, as Flower messages; the only file that knows the records' keys.

Three exchanges: `join` (who are you, how many samples, what your training part is like), `train` (weights out, weights
and counts back) and `evaluate` (weights out, metrics back). A site's reply carries counts, sums, losses and metrics,
never a patient's value.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from dipro_model.vocabulary import SPLITS
from federation.results import SplitResult
from federation.score_counts import ScoreCounts
from federation.site_statistics import SiteStatistics

JOIN, TRAIN, EVALUATE = "query", "train", "evaluate"
"""Flower's message types that the three exchanges travel as."""

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
WEIGHT_KEY = "num-examples"
"""Key of a reply's number of training samples, which Flower's FedAvg weighs with."""

_FLAT, _CONTROL, _COUNTS = "weights", "control", "counts"
_PRIVATE_STEPS = "private-steps"
_SCORED = "scored "
"""Before the keys of an evaluation that travels with a reply to `train`."""
_RUN_NAME = re.compile(r"[A-Za-z0-9]{0,64}")
RAW_TYPES = {"float32": "<f4", "uint8": "|u1"}
WHOLE = -1
"""In place of a base version: the weights are the whole model."""
RAW = "raw, little-endian"
"""Name, in an array's `stype`, of plain bytes."""


class MessageError(ValueError):
    """A message that does not say what it must; names the sender's fault."""


@contextmanager
def _complete(what: str) -> Iterator[None]:
    """Whatever a malformed record lacks becomes a MessageError."""
    try:
        yield
    except MessageError:
        raise
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise MessageError(f"expected {what}, found a message of another form ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What the server asks a site to do. `weights` is empty in `join`."""

    server_round: int
    code_digest: str
    layout_digest: str
    weights: np.ndarray
    """float32 [number], the whole model; or uint8, a payload against the version `base`; empty where the site holds
    this version already, as in a second instruction with it."""
    version: int = 0
    """Counts the models that the server has published in this run."""
    base: int = WHOLE
    """Version that `weights` are changes of, `version` itself where nothing changed; WHOLE where they need none."""
    control: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """What the server keeps beside the model, float32 [number]: SCAFFOLD's control variate, or what batch norm of all
    sites' batch needs (`server.rounds.control_size`); empty otherwise."""
    run: str = ""
    """Name of the run, by which a site keeps what it must remember from round to round."""
    best_round: int = 0
    """Round with the best model so far, 0 before there is one; of it a site keeps its personal model."""
    splits: tuple[str, ...] = ()
    """Splits to evaluate; in `train` of the model that the round begins with, before the work."""
    final: bool = False
    """Whether this evaluates the model that the run ends with."""
    salt: bytes = b""
    """In `join`: what the site hashes its patients' identifiers with; empty where the server does not compare them."""
    agreement: str = ""
    """The `Agreement` as JSON, what the site's values and class weights are to mean; empty in `join`."""
    total_samples: int = 0
    """Training samples of all sites together; 0 in `join`."""
    together: str = ""
    """What all sites' validation patients together say of the last round that was scored, a line of the history, for
    people at the site to read; empty before there is one."""

    def record(self) -> RecordDict:
        config = ConfigRecord(
            {
                "round": self.server_round,
                "version": self.version,
                "base": self.base,
                "run": self.run,
                "best-round": self.best_round,
                "code-digest": self.code_digest,
                "layout-digest": self.layout_digest,
                "splits": list(self.splits),
                "final": self.final,
                "salt": self.salt,
                "agreement": self.agreement,
                "total-samples": self.total_samples,
                "together": self.together,
            }
        )
        return RecordDict({ARRAYS: _pack(self.weights, self.control), CONFIG: config})

    @classmethod
    def parse(cls, message: Message) -> "Instruction":
        config = message.content.config_records[CONFIG]
        weights, control = _unpack(message.content.array_records[ARRAYS])
        return cls(
            server_round=cast(int, config["round"]),
            version=cast(int, config["version"]),
            base=cast(int, config["base"]),
            run=_run_name(config["run"]),
            best_round=cast(int, config["best-round"]),
            code_digest=cast(str, config["code-digest"]),
            layout_digest=cast(str, config["layout-digest"]),
            weights=weights,
            control=control,
            splits=tuple(cast(list[str], config["splits"])),
            final=cast(bool, config["final"]),
            salt=cast(bytes, config["salt"]),
            agreement=cast(str, config["agreement"]),
            total_samples=cast(int, config["total-samples"]),
            together=cast(str, config["together"]),
        )


@dataclass(frozen=True, kw_only=True)
class JoinReply:
    """Who a site is, its number of samples by split, and what it discloses of them."""

    site: str
    num_samples: Mapping[str, int]
    statistics: SiteStatistics
    """Of its training part."""
    clock: float
    """What its clock said when it answered, seconds since 1970 in UTC."""
    seconds: float
    """From when it read the question to its answer."""
    patients: tuple[str, ...] = ()
    """Salted hashes of its patients' identifiers, as `federation.duplicates` makes them."""
    runs_on: tuple[str, ...] = ()
    """Versions of what it runs on, and the device that trains, for people to read."""

    def record(self) -> RecordDict:
        config = {
            "site": self.site,
            "statistics": self.statistics.to_json(),
            "patients": list(self.patients),
            "runs-on": list(self.runs_on),
        }
        numbers = {**self.num_samples, "clock": self.clock, "seconds": self.seconds}
        return RecordDict({METRICS: MetricRecord(numbers), CONFIG: ConfigRecord(config)})

    @classmethod
    @_complete("a reply to join")
    def parse(cls, message: Message) -> "JoinReply":
        config = message.content.config_records[CONFIG]
        numbers = _metrics(message)
        clock, seconds = (_finite(numbers.pop(name), name) for name in ("clock", "seconds"))
        statistics = SiteStatistics.from_json(cast(str, config["statistics"]))
        if statistics.site != config["site"]:
            raise MessageError(f"its statistics are signed {statistics.site!r}, its reply {config['site']!r}")
        return cls(
            site=_site(message),
            num_samples={split: int(count) for split, count in numbers.items()},
            statistics=statistics,
            clock=clock,
            seconds=seconds,
            patients=tuple(cast(list[str], config["patients"])),
            runs_on=tuple(cast(list[str], config["runs-on"])),
        )


@dataclass(frozen=True, kw_only=True)
class TrainReply:
    """A site's weights after its local work, with what it trained on."""

    site: str
    num_samples: int
    weights: np.ndarray
    """float32 [number], or uint8, a payload of the run's codec against the version that it was sent."""
    losses: Mapping[str, float]
    """Mean training loss of the last local epoch (`total`) and its parts."""
    seconds: float
    """Time of the local work."""
    server_round: int
    """Round that it answers."""
    code_digest: str
    """Digest of the code that the site ran."""
    layout_digest: str
    """Digest of the names and shapes that its weights mean."""
    agreement_digest: str
    """Digest of the agreement that its values and class weights followed."""
    control_change: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """The site's change of `Instruction.control`, float32 [number]; empty where that is."""
    scored: "EvaluateReply | None" = None
    """Of the model that the round began with, where the instruction asked for splits."""
    private_steps: int = 0
    """With `patient_privacy`, steps of this run that the site's ledger holds, those of this round among them."""

    def result(self) -> SplitResult:
        """What this says of the training split."""
        return SplitResult(num_samples=self.num_samples, losses=self.losses, metrics={})

    def record(self) -> RecordDict:
        metrics = {WEIGHT_KEY: self.num_samples, "seconds": self.seconds}
        metrics |= {_PRIVATE_STEPS: self.private_steps} if self.private_steps else {}
        metrics |= {f"loss/{name}": value for name, value in self.losses.items()}
        config = {
            "site": self.site,
            "round": self.server_round,
            "code-digest": self.code_digest,
            "layout-digest": self.layout_digest,
            "agreement-digest": self.agreement_digest,
        }
        arrays = _pack(self.weights, self.control_change)
        scored = {} if self.scored is None else self.scored.records(_SCORED)
        return RecordDict({ARRAYS: arrays, METRICS: MetricRecord(metrics), CONFIG: ConfigRecord(config), **scored})

    @classmethod
    @_complete("a reply to train")
    def parse(cls, message: Message) -> "TrainReply":
        metrics, config = _metrics(message), message.content.config_records[CONFIG]
        weights, change = _unpack(message.content.array_records[ARRAYS])
        return cls(
            site=_site(message),
            num_samples=int(metrics[WEIGHT_KEY]),
            weights=weights,
            control_change=change,
            losses={key.removeprefix("loss/"): value for key, value in metrics.items() if key.startswith("loss/")},
            seconds=metrics["seconds"],
            server_round=cast(int, config["round"]),
            code_digest=cast(str, config["code-digest"]),
            layout_digest=cast(str, config["layout-digest"]),
            agreement_digest=cast(str, config["agreement-digest"]),
            private_steps=int(metrics.get(_PRIVATE_STEPS, 0)),
            scored=EvaluateReply.read(message, _SCORED) if _SCORED + CONFIG in message.content else None,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateReply:
    """A site's results of the global model by split."""

    site: str
    splits: Mapping[str, SplitResult]
    seconds: float
    counts: Mapping[str, ScoreCounts] = field(default_factory=dict)
    """By split, what the pooled metrics are made from; only of the splits that choose the model."""

    def record(self) -> RecordDict:
        return RecordDict(self.records())

    def records(self, prefix: str = "") -> dict[str, ArrayRecord | MetricRecord | ConfigRecord]:
        """The records of a message, under keys that begin with `prefix`."""
        values: dict[str, int | float] = {WEIGHT_KEY: sum(split.num_samples for split in self.splits.values())}
        values["seconds"] = self.seconds
        undefined: list[str] = []
        for split, result in self.splits.items():
            values[f"{split}|samples"] = result.num_samples
            values |= {f"{split}|loss|{name}": value for name, value in result.losses.items()}
            for name, value in result.metrics.items():
                if value is None:  # a MetricRecord holds numbers only
                    undefined.append(f"{split}|metric|{name}")
                else:
                    values[f"{split}|metric|{name}"] = value
        config = ConfigRecord({"site": self.site, "undefined": undefined, "counted": list(self.counts)})
        counts = {
            f"{prefix}{_COUNTS}/{split}": ArrayRecord({name: Array(values) for name, values in each.arrays().items()})
            for split, each in self.counts.items()
        }
        return {prefix + METRICS: MetricRecord(dict(values)), prefix + CONFIG: config, **counts}

    @classmethod
    def parse(cls, message: Message) -> "EvaluateReply":
        return cls.read(message)

    @classmethod
    @_complete("a reply to evaluate")
    def read(cls, message: Message, prefix: str = "") -> "EvaluateReply":
        """From the records under keys that begin with `prefix`. Raises MessageError."""
        values: dict[str, float | None] = dict(_metrics(message, prefix))
        config, arrays = message.content.config_records[prefix + CONFIG], message.content.array_records
        values |= dict.fromkeys(cast(list[str], config["undefined"]))
        counts = {
            split: {name: array.numpy() for name, array in arrays[f"{prefix}{_COUNTS}/{split}"].items()}
            for split in cast(list[str], config["counted"])
        }
        present = {key.split("|")[0] for key in values if "|" in key}
        splits = [split for split in SPLITS if split in present]
        return cls(
            site=_site(message, prefix),
            splits={split: _split_result(split, values) for split in splits},
            seconds=cast(float, values["seconds"]),
            counts={split: ScoreCounts.from_arrays(each) for split, each in counts.items()},
        )


def _split_result(split: str, values: Mapping[str, float | None]) -> SplitResult:
    def under(kind: str) -> dict[str, float | None]:
        start = f"{split}|{kind}|"
        return {key.removeprefix(start): value for key, value in sorted(values.items()) if key.startswith(start)}

    return SplitResult(
        num_samples=int(cast(float, values[f"{split}|samples"])),
        losses=cast(dict[str, float], under("loss")),
        metrics=under("metric"),
    )


def described(content: RecordDict) -> dict[str, object]:
    """What a message holds, for an audit log: arrays by type, shape and bytes, the names of numbers and texts."""
    arrays = {
        name: {"type": array.dtype, "shape": list(array.shape), "bytes": _array_bytes(array)}
        for record in content.array_records.values()
        for name, array in record.items()
    }
    numbers = sorted(name for record in content.metric_records.values() for name in record)
    texts = {
        name: len(str(value).encode()) for record in content.config_records.values() for name, value in record.items()
    }
    return {"arrays": arrays, "numbers": numbers, "text_bytes": texts, "bytes": num_bytes(content)}


def num_bytes(content: RecordDict) -> int:
    """Bytes of what a message says: arrays, numbers and texts, without Flower's frame around them."""
    arrays = sum(_array_bytes(array) for record in content.array_records.values() for array in record.values())
    numbers = sum(8 * len(record) for record in content.metric_records.values())
    texts = sum(len(str(value)) for record in content.config_records.values() for value in record.values())
    return arrays + numbers + texts


def _pack(weights: np.ndarray, control: np.ndarray) -> ArrayRecord:
    named = {_FLAT: weights, _CONTROL: control} if control.size else {_FLAT: weights}
    return raw_record(named)


class RawArray(Array):
    """A numpy array that becomes bytes when a message leaves the process, and never where it does not.

    Raw bytes: Flower's own form of a numpy array is copied twice more on either side.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.dtype, self.shape, self.stype = str(values.dtype), values.shape, RAW
        self.values = values.astype(RAW_TYPES[self.dtype], copy=False).view()
        self.values.flags.writeable = False

    def numpy(self) -> np.ndarray:
        """A copy, as Flower's own arrays give: some strategies write into it."""
        return self.values.copy()

    @property
    def data(self) -> bytes:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values.tobytes()

    def deflate(self) -> bytes:
        """As Flower's own array is written: its server's database takes no other kind of object."""
        plain = Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=b"")
        plain.__dict__["_chunks"] = self.slice_array()
        return plain.deflate()


def raw_record(named: Mapping[str, np.ndarray]) -> ArrayRecord:
    """A record of arrays that nobody may change from now on."""
    record = ArrayRecord()
    for name, values in named.items():
        record[name] = RawArray(values)  # given all at once, they are made bytes of
    return record


def _array_bytes(array: Array) -> int:
    return array.values.nbytes if isinstance(array, RawArray) else len(array.data)


def _unpack(record: ArrayRecord) -> tuple[np.ndarray, np.ndarray]:
    """The arrays that travelled, for reading only: weights, and control or empty."""
    if list(record) not in ([_FLAT], [_FLAT, _CONTROL]):
        raise MessageError(f"expected the array `{_FLAT}`, perhaps `{_CONTROL}`, found {len(record)} arrays")
    return _unpack_one(record[_FLAT]), _unpack_one(record[_CONTROL]) if _CONTROL in record else np.zeros(0, np.float32)


def _unpack_one(array: Array) -> np.ndarray:
    if array.stype != RAW or array.dtype not in RAW_TYPES:
        raise MessageError(f"expected raw {' or '.join(RAW_TYPES)}, found {array.dtype} as {array.stype!r}")
    if isinstance(array, RawArray):
        return array.values
    values = np.frombuffer(array.data, np.dtype(RAW_TYPES[array.dtype]))
    if values.shape != tuple(array.shape):
        raise MessageError(f"expected {list(array.shape)} entries, as the message says, found {list(values.shape)}")
    return values


def _run_name(value: object) -> str:
    """A site has a folder of this name: it must not lead anywhere else. Raises MessageError."""
    if not isinstance(value, str) or not _RUN_NAME.fullmatch(value):
        raise MessageError(f"expected a run's name of up to 64 letters and digits, found {str(value)[:80]!r}")
    return value


def _metrics(message: Message, prefix: str = "") -> dict[str, float]:
    return cast(dict[str, float], dict(message.content.metric_records[prefix + METRICS]))


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise MessageError(f"`{name}`: expected a number of seconds, found {value}")
    return float(value)


def _site(message: Message, prefix: str = "") -> str:
    return cast(str, message.content.config_records[prefix + CONFIG]["site"])
