"""Large arrays that travel beside Flower's messages: a message then names them by their SHA-256.

Flower carries each byte of a message through six processes and a database (docs/benchmarks.md, "A federated round over
the network"). Beside it a model is a file, which the proxy hands out and takes in. The message itself still comes
through Flower's node authentication, so whatever fits its digest is what the sender meant, wherever it lay meanwhile.
Flower also carries every record and array of a message by a call of its own, so what is left becomes one record.
What the names stand for is docs/deployment.md, "What travels beside".
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as PackedRecords
from google.protobuf.message import DecodeError

from federation.messages import RAW_TYPES, RawArray

LEAST_BYTES = 64 * 1024
"""What is smaller stays in its message."""
PART_BYTES = 8 * 2**20
"""A site sends its arrays in parts of so many bytes, so that a link that breaks costs one of them."""
NUM_PLACES = 256
"""Parts that fit a dock: two gigabytes, which no site can exceed."""

_FREIGHT, _CONTENT = "freight", "content"
"""Key of the one record of a packed message, which may name hold and dock, and in it of what the message says."""
_LABEL = "freight, SHA-256"
"""In an array's `stype`: its data is the digest of the bytes that it stands for."""
_NAME = re.compile(r"[0-9a-f]{32}")


class FreightError(ValueError):
    """An array that did not come as its message says; says what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class Dock:
    """Where a site finds what a message names, and where it leaves what its reply names.

    Both names are random and told in the message alone: who did not get it can neither read nor write there.
    """

    hold: str
    name: str

    @classmethod
    def of(cls, content: RecordDict) -> "Dock | None":
        """The one that a message names; None where all of it is in the message. Raises FreightError."""
        if _FREIGHT not in content:
            return None
        record = content.config_records[_FREIGHT]
        hold, name = (str(record.get(key, "")) for key in ("hold", "dock"))
        if not _NAME.fullmatch(hold) or not _NAME.fullmatch(name):
            raise FreightError("expected the names of a hold and a dock, 32 hexadecimal digits each, found others")
        return cls(hold=hold, name=name)


@dataclass(frozen=True, kw_only=True)
class Item:
    """An array as its message names it."""

    digest: str
    """SHA-256 of its bytes, hexadecimal."""
    num_bytes: int

    def check(self, content: np.ndarray) -> None:
        """Raises FreightError where these bytes, uint8 [byte], are others."""
        found = digest_of(content)
        if found != self.digest:
            raise FreightError(
                f"expected {self.num_bytes:,} bytes with the SHA-256 {self.digest[:12]}…, found {found[:12]}…: they "
                "were changed or mixed up on the way"
            )


def digest_of(content: np.ndarray) -> str:
    return hashlib.sha256(content.data).hexdigest()


def unloaded(content: RecordDict, send: Callable[[np.ndarray], str]) -> RecordDict:
    """The same message with every large array's digest in its place; `send` takes its bytes away, and gives that.

    It is called in the order of the arrays, with uint8 [byte].
    """
    return _with_arrays(content, lambda array: _named(array, send) if _is_large(array) else array)


def loaded(content: RecordDict, fetch: Callable[[Item], np.ndarray]) -> RecordDict:
    """The message as it was before `unloaded`; `fetch` gives the bytes of an item, in the same order.

    Raises FreightError for an array that no message can name.
    """
    return _with_arrays(content, lambda array: _filled(array, fetch) if array.stype == _LABEL else array)


def packed(content: RecordDict, dock: Dock | None = None) -> RecordDict:
    """The message as one record of bytes (Flower's own form of a record), which names the dock of the reply to it."""
    where: dict[str, ConfigRecordValues] = {} if dock is None else {"hold": dock.hold, "dock": dock.name}
    return RecordDict({_FREIGHT: ConfigRecord({**where, _CONTENT: recorddict_to_proto(content).SerializeToString()})})


def unpacked(message: RecordDict) -> RecordDict:
    """What was packed. Raises FreightError where it is no packed message."""
    record = message.get(_FREIGHT)
    content = record.get(_CONTENT) if isinstance(record, ConfigRecord) else None
    if not isinstance(content, bytes):
        raise FreightError(f"expected a message packed into the record `{_FREIGHT}`, found {sorted(message)[:8]}")
    try:
        return recorddict_from_proto(PackedRecords.FromString(content))
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise FreightError(f"expected records in Flower's own form, found {len(content):,} other bytes") from error


def parts(content: np.ndarray) -> Iterator[np.ndarray]:
    """An item as a site sends it."""
    return (content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES))


def places() -> Iterator[str]:
    """Names of the parts of a dock, in the order of the arrays and of what they hold."""
    return (f"{place:02x}" for place in range(NUM_PLACES))


def _is_large(array: Array) -> bool:
    return isinstance(array, RawArray) and array.values.nbytes >= LEAST_BYTES


def _named(array: Array, send: Callable[[np.ndarray], str]) -> Array:
    assert isinstance(array, RawArray), "no other is large"
    digest = send(array.values.reshape(-1).view(np.uint8))
    return Array(dtype=array.dtype, shape=tuple(array.shape), stype=_LABEL, data=bytes.fromhex(digest))


def _filled(array: Array, fetch: Callable[[Item], np.ndarray]) -> Array:
    if array.dtype not in RAW_TYPES or len(array.shape) != 1 or len(array.data) != hashlib.sha256().digest_size:
        raise FreightError(
            f"expected one row of {' or '.join(RAW_TYPES)} and a SHA-256, found {array.dtype} {list(array.shape)} and "
            f"{len(array.data)} bytes"
        )
    kind = np.dtype(RAW_TYPES[array.dtype])
    num_bytes = int(array.shape[0]) * kind.itemsize
    if not 0 < num_bytes <= NUM_PLACES * PART_BYTES:
        raise FreightError(f"expected at most {NUM_PLACES * PART_BYTES:,} bytes beside a message, found {num_bytes:,}")
    return RawArray(fetch(Item(digest=array.data.hex(), num_bytes=num_bytes)).view(kind))


def _with_arrays(content: RecordDict, change: Callable[[Array], Array]) -> RecordDict:
    changed = RecordDict()
    for key, record in content.items():
        changed[key] = _each(record, change) if isinstance(record, ArrayRecord) else record
    return changed


def _each(record: ArrayRecord, change: Callable[[Array], Array]) -> ArrayRecord:
    changed = ArrayRecord()
    for name, array in record.items():
        changed[name] = change(array)
    return changed
