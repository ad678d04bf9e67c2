"""Messages say the same after Flower has carried them, and a fault is named with its site."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

# Flower creates messages for the task that its process works on; a test's process is no task, so it says it is one.
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from dipro_model.vocabulary import SPLITS
from federation.duplicates import SALT_BYTES, hash_patients
from federation.messages import (
    CONFIG,
    RAW,
    EvaluateReply,
    Instruction,
    JoinReply,
    MessageError,
    TrainReply,
    raw_record,
)
from federation.results import SplitResult
from tests.federation.test_agreement import raw_values
from tests.federation.test_agreement import site as disclosing

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def _task() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _instruction() -> Instruction:
    return Instruction(
        server_round=3,
        code_digest="c0de",
        layout_digest="1a70",
        salt=b"salt",
        agreement="{}",
        run="0a1B",
        together="a line",
        weights=np.arange(5, dtype=np.float32),
        splits=("val", "test"),
        final=True,
    )


def _sent(node: int = 7) -> Message:
    return Message(_instruction().record(), dst_node_id=node, message_type="train")


def test_an_instruction_survives_the_way() -> None:
    parsed = Instruction.parse(_sent())
    np.testing.assert_array_equal(parsed.weights, np.arange(5, dtype=np.float32))
    assert (parsed.server_round, parsed.splits, parsed.final) == (3, ("val", "test"), True)
    assert (parsed.code_digest, parsed.layout_digest) == ("c0de", "1a70")
    assert (parsed.salt, parsed.agreement, parsed.run, parsed.together) == (b"salt", "{}", "0a1B", "a line")


@pytest.mark.parametrize("run", ["../..", "/etc", "a/b", "a b", "", "x" * 65, "a\n", 7])
def test_the_name_of_a_run_leads_to_no_other_folder(run: str | int) -> None:
    message = _sent()
    message.content.config_records[CONFIG]["run"] = run
    if run == "":  # where nothing is kept
        assert Instruction.parse(message).run == ""
        return
    with pytest.raises(MessageError, match="expected a run's name"):
        Instruction.parse(message)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(site=NAMES, counts=st.tuples(*[st.integers(0, 10**9)] * 3))
def test_a_join_survives_the_way(site: str, counts: tuple[int, int, int]) -> None:
    reply = JoinReply(
        site=site,
        num_samples=dict(zip(SPLITS, counts, strict=True)),
        statistics=disclosing(site, raw_values(1)),
        clock=1.7e9 + 1 / 3,
        seconds=0.25,
        patients=hash_patients(counts, b"s" * SALT_BYTES),
        runs_on=("torch 2.13.0", site),
    )
    assert JoinReply.parse(Message(reply.record(), reply_to=_sent())) == reply


@settings(deadline=None, derandomize=True, max_examples=30)
@given(site=NAMES, values=st.lists(FINITE, min_size=1, max_size=9), losses=st.dictionaries(NAMES, FINITE))
def test_a_train_reply_survives_the_way(site: str, values: list[float], losses: dict[str, float]) -> None:
    weights = np.array(values, np.float32)
    reply = TrainReply(
        site=site,
        num_samples=4,
        weights=weights,
        losses=losses,
        seconds=1.5,
        server_round=3,
        code_digest="c",
        layout_digest="d",
        agreement_digest="a",
    )
    parsed = TrainReply.parse(Message(reply.record(), reply_to=_sent()))
    np.testing.assert_array_equal(parsed.weights, weights)
    assert (parsed.site, parsed.num_samples, parsed.losses, parsed.seconds) == (site, 4, losses, 1.5)


RESULTS = st.builds(
    SplitResult,
    num_samples=st.integers(0, 10**6),
    losses=st.dictionaries(NAMES, FINITE),
    metrics=st.dictionaries(st.sampled_from(["f1", "f1/lung opacity", "auroc"]), FINITE | st.none()),
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(splits=st.dictionaries(st.sampled_from(SPLITS), RESULTS, min_size=1))
def test_an_evaluation_survives_the_way_undefined_metrics_too(splits: dict[str, SplitResult]) -> None:
    reply = EvaluateReply(site="north", splits=splits, seconds=0.25)
    parsed = EvaluateReply.parse(Message(reply.record(), reply_to=_sent()))
    assert parsed == reply
    assert list(parsed.splits) == [split for split in SPLITS if split in splits]


@pytest.mark.parametrize(
    "values", [np.arange(3_000_000, dtype=np.float32), np.zeros(0, np.uint8)], ids=["large", "empty"]
)
def test_arrays_are_written_as_flowers_own(values: np.ndarray) -> None:
    """A server with a database refuses every kind of object but Flower's."""
    plain = Array(dtype=str(values.dtype), shape=values.shape, stype=RAW, data=values.tobytes())
    own = raw_record({"weights": values})["weights"]
    assert own.deflate() == plain.deflate()
    assert list(own.children or ()) == list(plain.children)


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("label", ["numpy.ndarray", "raw, little-endian"])
def test_a_pickle_in_place_of_weights_is_refused_unread(tmp_path: Path, label: str) -> None:
    payload = pickle.dumps(np.array([Exploit(tmp_path / "gained")], dtype=object))
    arrays = ArrayRecord()
    arrays["weights"] = Array(dtype="object", shape=(1,), stype=label, data=payload)
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1, "seconds": 1.0})}
    reply = Message(RecordDict({**content, "config": ConfigRecord({"site": "north"})}), reply_to=_sent())
    with pytest.raises(MessageError, match="expected raw"):
        TrainReply.parse(reply)
    assert not (tmp_path / "gained").exists()
    pickle.loads(payload)
    assert (tmp_path / "gained").exists(), "it would have"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["clock", "seconds"])
def test_a_clock_that_says_no_number_is_refused(name: str, value: float | None) -> None:
    reply = JoinReply(
        site="north",
        num_samples={"train": 1},
        statistics=disclosing("north", raw_values(1)),
        clock=1.7e9,
        seconds=0.5,
    )
    record = reply.record()
    if value is None:
        del record.metric_records["metrics"][name]
    else:
        record.metric_records["metrics"][name] = value
    expected = "expected a reply to join" if value is None else f"`{name}`: expected a number of seconds"
    with pytest.raises(MessageError, match=expected):
        JoinReply.parse(Message(record, reply_to=_sent()))
