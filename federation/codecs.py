"""A model's flat weights as one array of bytes, and back: what a site's update costs on the line.

Both sides hold the same reference, the global model that the round began with, and the same `ModelEntries`. Of an
update travel the trained entries alone, so that a frozen network costs nothing; running statistics of batch norm travel
exact. What a lossy codec leaves out stays at the site as its residual and is added to the next round's difference
(error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847). docs/communication.md has the formulas.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from federation.coders import Bfloat16, CodecError, Coder, Float32, Int8Blocks, TopK, as_bytes, check_length
from federation.sections import CommunicationSettings
from federation.selection import Entries, ModelEntries
from federation.weights import all_finite

CODECS = ("fp32", "bf16", "int8", "topk")
"""Names of the codecs."""

VERSION = 1
"""Of the payload's format; another one is refused."""

_MAGIC = b"DPFC"
_CHECKED = struct.Struct("<I20sQQQQQ")  # version, codec, total, compressed, exact, setting, length of the body
_START = struct.Struct("<4sI")  # magic, CRC-32 of everything behind it


@dataclass(frozen=True, kw_only=True)
class Payload:
    """An update on the line: what it is, and its bytes."""

    codec: str
    """Name of the codec."""
    version: int
    """Version of the format."""
    total: int
    """Length of the flat array that this stands for."""
    num_compressed: int
    """Trained entries that the codec wrote."""
    num_exact: int
    """Running statistics, which travel as float32."""
    setting: int
    """Block size of int8, number of kept entries of top-k, else 0."""
    body: np.ndarray
    """uint8: exact entries first, then the codec's bytes."""

    @property
    def num_bytes(self) -> int:
        """All bytes of the array that travels, header included."""
        return _START.size + _CHECKED.size + self.body.size

    def to_array(self) -> np.ndarray:
        """uint8 [num_bytes], which Flower's Array takes as it is."""
        name = self.codec.encode()
        numbers = (self.total, self.num_compressed, self.num_exact, self.setting, self.body.size)
        checked = _CHECKED.pack(self.version, name, *numbers)
        start = _START.pack(_MAGIC, zlib.crc32(self.body.data, zlib.crc32(checked)))
        return np.concatenate([np.frombuffer(start + checked, np.uint8), self.body])

    @classmethod
    def from_array(cls, array: np.ndarray) -> "Payload":
        """What `to_array` made. Raises CodecError for another kind, version or length, and for damaged bytes."""
        if array.dtype != np.uint8 or array.ndim != 1:
            raise CodecError(f"expected a payload as uint8 [bytes], found {array.dtype} {list(array.shape)}")
        begin = _START.size + _CHECKED.size
        if array.size < begin:
            raise CodecError(f"expected a payload of at least {begin} bytes, found {array.size}")
        header, body = array[:begin].tobytes(), np.ascontiguousarray(array[begin:])
        magic, checksum = _START.unpack_from(header)
        if magic != _MAGIC:
            raise CodecError("expected a payload, found an array that does not begin as one; do both sides use codecs?")
        version, name, *numbers, length = _CHECKED.unpack_from(header, _START.size)
        if version != VERSION:
            raise CodecError(f"expected a payload of version {VERSION}, found {version}; update the older side")
        check_length(body, length, "the payload's body, as its header says")
        if zlib.crc32(body.data, zlib.crc32(header[_START.size :])) != checksum:
            raise CodecError("expected a whole payload, found one damaged on its way: its checksum does not fit")
        total, num_compressed, num_exact, setting = numbers
        return cls(
            codec=name.rstrip(b"\0").decode("ascii", errors="replace"),
            version=version,
            total=total,
            num_compressed=num_compressed,
            num_exact=num_exact,
            setting=setting,
            body=body,
        )


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Writes updates of one model and reads them; the same object at the server and at every site."""

    coder: Coder
    compressed: Entries
    """Trained entries but running statistics."""
    exact: Entries
    """Running statistics that are trained. Rounded, a variance could fall below zero; they are 0.2 % of the model."""

    def encode(
        self, weights: np.ndarray, reference: np.ndarray, residual: np.ndarray | None
    ) -> tuple[Payload, np.ndarray | None]:
        """The payload of these weights, and the residual that the site keeps for its next round.

        `residual` is None in a site's first round, and always where the codec keeps none. Raises CodecError.
        """
        self._check_weights(weights, "weights")
        self._check_weights(reference, "reference")
        values = self.compressed.take(weights)
        with np.errstate(over="ignore"):  # what overflows is refused below
            if self.coder.codes_differences:
                values -= self.compressed.take(reference)
            if residual is not None:
                self._check_residual(residual)
                values += residual
        if not all_finite(values):
            raise CodecError("expected finite differences from the global model; has the training diverged?")
        written, sent = self.coder.pack(values)
        payload = Payload(
            codec=self.coder.name,
            version=VERSION,
            total=self.compressed.total,
            num_compressed=self.compressed.size,
            num_exact=self.exact.size,
            setting=self.coder.setting(self.compressed.size),
            body=np.concatenate([as_bytes(self.exact.take(weights)), written]),
        )
        return payload, np.subtract(values, sent, out=values) if self.coder.feeds_back else None

    def decode(self, payload: Payload, reference: np.ndarray) -> np.ndarray:
        """The weights, new; what is not trained is the reference's, bit for bit. Raises CodecError."""
        self._check_weights(reference, "reference")
        self._check_header(payload)
        num_exact_bytes = self.exact.size * 4
        if payload.body.size < num_exact_bytes:
            raise CodecError(f"expected {num_exact_bytes} bytes of exact entries, found {payload.body.size}")
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            values = self.coder.unpack(payload.body[num_exact_bytes:], self.compressed.size)
            if self.coder.codes_differences:
                values = values + self.compressed.take(reference)
        weights = reference.copy()
        self.compressed.put(weights, values)
        self.exact.put(weights, payload.body[:num_exact_bytes].view("<f4"))
        self._check_weights(weights, "weights in the payload")
        return weights

    def _check_header(self, payload: Payload) -> None:
        expected = {
            "codec": self.coder.name,
            "version": VERSION,
            "total": self.compressed.total,
            "num_compressed": self.compressed.size,
            "num_exact": self.exact.size,
            "setting": self.coder.setting(self.compressed.size),
        }
        for name, value in expected.items():
            if (found := getattr(payload, name)) != value:
                raise CodecError(
                    f"expected a payload of {name} {value}, found {found}; do both sides agree on settings?"
                )

    def _check_weights(self, flat: np.ndarray, what: str) -> None:
        if flat.dtype != np.float32 or flat.shape != (self.compressed.total,):
            raise CodecError(
                f"expected {what} as float32 [{self.compressed.total}], found {flat.dtype} {list(flat.shape)}"
            )
        if not all_finite(flat):
            raise CodecError(f"expected finite {what}, found {int((~np.isfinite(flat)).sum())} that are not")

    def _check_residual(self, residual: np.ndarray) -> None:
        if not self.coder.feeds_back:
            raise CodecError(
                f"{self.coder.name} keeps no residual, but one came; was the codec changed during the run?"
            )
        if residual.dtype != np.float32 or residual.shape != (self.compressed.size,):
            raise CodecError(
                f"expected a residual as float32 [{self.compressed.size}], found {residual.dtype} "
                f"{list(residual.shape)}; a site's residual belongs to one model and one selection"
            )


def make_codec(name: str, entries: ModelEntries, *, block_size: int = 256, kept_fraction: float = 0.05) -> Codec:
    """The codec of a name for a model. Raises CodecError for another name or a setting without sense."""
    coders: dict[str, Coder] = {
        "fp32": Float32(),
        "bf16": Bfloat16(),
        "int8": Int8Blocks(block_size=block_size),
        "topk": TopK(kept_fraction=kept_fraction),
    }
    if name not in coders:
        raise CodecError(f"expected a codec of {', '.join(CODECS)}, found {name!r}")
    exact = entries.trained.both(entries.statistics)
    return Codec(coder=coders[name], compressed=entries.trained.without(exact), exact=exact)


def codec_of(settings: CommunicationSettings, entries: Callable[[], ModelEntries]) -> Codec | None:
    """The codec of a run; None where the whole model travels as it is, and nobody need look for its entries."""
    if settings.codec == "fp32":
        return None
    name = "fp32" if settings.codec == "trained" else settings.codec
    return make_codec(name, entries(), block_size=settings.block_size, kept_fraction=settings.kept_fraction)
