"""What travels beside a message is what the message means, or it is refused."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

# Flower creates messages for the task that its process works on; a test's process is no task, so it says it is one.
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from federation.freight import LEAST_BYTES, Dock, FreightError, Item, digest_of, loaded, packed, unloaded, unpacked
from federation.messages import Instruction, MessageError, TrainReply, described

NAMES = {"hold": "a" * 32, "name": "b" * 32}


@pytest.fixture(autouse=True)
def _task() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _content(entries: int = LEAST_BYTES // 4, control: int = 0) -> RecordDict:
    weights = np.arange(entries, dtype=np.float32)
    reply = TrainReply(
        site="north",
        num_samples=4,
        weights=weights,
        control_change=np.ones(control, np.float32),
        losses={"total": 1.0},
        seconds=1.5,
        server_round=3,
        code_digest="c",
        layout_digest="d",
        agreement_digest="a",
    )
    return reply.record()


def _message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="train")


def test_large_arrays_leave_a_message_and_come_back() -> None:
    kept: dict[str, np.ndarray] = {}

    def send(content: np.ndarray) -> str:
        digest = digest_of(content)
        kept[digest] = content.copy()
        return digest

    content = _content(control=LEAST_BYTES)
    small = unloaded(content, send)
    assert len(kept) == 2
    assert sum(len(array.data) for record in small.array_records.values() for array in record.values()) == 64
    with pytest.raises(MessageError, match="expected raw"):  # nobody takes digests for weights
        TrainReply.parse(_message(small))
    again = loaded(small, lambda item: kept[item.digest])
    assert described(again) == described(content)
    parsed = TrainReply.parse(_message(again))
    np.testing.assert_array_equal(parsed.weights, np.arange(LEAST_BYTES // 4, dtype=np.float32))
    np.testing.assert_array_equal(parsed.control_change, np.ones(LEAST_BYTES, np.float32))


def test_small_arrays_stay() -> None:
    def send(content: np.ndarray) -> str:
        raise AssertionError(f"{content.nbytes} bytes were sent away")

    content = unloaded(_content(LEAST_BYTES // 4 - 1), send)
    assert TrainReply.parse(_message(content)).weights.size == LEAST_BYTES // 4 - 1


def test_other_bytes_than_the_digest_says_are_refused() -> None:
    content = np.zeros(100, np.uint8)
    item = Item(digest=digest_of(content), num_bytes=100)
    item.check(content)
    content[50] = 1
    with pytest.raises(FreightError, match="changed or mixed up"):
        item.check(content)


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("float32", (2**40,), bytes(32)),
        ("float32", (-1,), bytes(32)),
        ("float32", (0,), bytes(32)),
        ("float32", (10, 10), bytes(32)),
        ("object", (10,), bytes(32)),
        ("float32", (10,), b"../../etc/passwd"),
    ],
)
def test_what_no_server_sends_is_not_fetched(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    def fetch(item: Item) -> np.ndarray:
        raise AssertionError(f"{item} was fetched")

    arrays = ArrayRecord()
    arrays["weights"] = Array(dtype=dtype, shape=shape, stype="freight, SHA-256", data=data)
    with pytest.raises(FreightError, match="expected"):
        loaded(RecordDict({"arrays": arrays}), fetch)


def test_a_packed_message_is_one_record_and_says_the_same() -> None:
    content = _content(7, control=3)
    small = packed(content, Dock(**NAMES))
    objects = get_all_nested_objects(_message(small))
    assert len(objects) == 3, "the message, its dictionary, the record: each is a call of its own"
    assert len(get_all_nested_objects(_message(content))) > 6
    again = unpacked(small)
    assert described(again) == described(content)
    parsed = TrainReply.parse(_message(again))
    np.testing.assert_array_equal(parsed.weights, np.arange(7, dtype=np.float32))
    assert parsed.losses == {"total": 1.0}


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"freight": ArrayRecord()}),
        RecordDict({"freight": ConfigRecord({"content": "text"})}),
        RecordDict({"freight": ConfigRecord({"content": b"\x80\x04]\x94."})}),  # a pickle
        RecordDict({"freight": ConfigRecord({"content": b"\xff" * 40})}),
        _content(7),
    ],
)
def test_what_is_no_packed_message_is_refused(record: RecordDict) -> None:
    with pytest.raises(FreightError, match="expected"):
        unpacked(record)


def test_a_message_names_its_dock_or_none() -> None:
    dock = Dock(**NAMES)
    assert Dock.of(packed(RecordDict(), dock)) == dock
    assert (
        Dock.of(Instruction(server_round=1, code_digest="", layout_digest="", weights=np.zeros(0, np.float32)).record())
        is None
    )
    for name in ("../..", "B" * 32, "", "b" * 33):
        record = RecordDict({"freight": ConfigRecord({"hold": "a" * 32, "dock": name})})
        with pytest.raises(FreightError, match="32 hexadecimal digits"):
            Dock.of(record)
