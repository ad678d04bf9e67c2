"""How many float32 values become bytes and come back: exact, bfloat16, int8 in blocks, the largest alone.

A coder knows nothing of models. `pack` gives the bytes and the values that the other side will read from them;
`unpack` takes bytes that anyone may have made and raises CodecError for whatever does not fit. The formulas and their
bounds are in docs/communication.md.
"""

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from federation.weights import all_finite

_LEVELS, _FEWER_LEVELS = 127, 63
_MOST_BYTES_A_VALUE = 0.98
"""What int8 may take; more than that and 7 bits a value are used, so that a quarter of float32 is never exceeded."""
_ROWS_AT_ONCE = 4096
"""Blocks that are quantised together: a part that stays in the processor's cache."""
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class CodecError(ValueError):
    """Weights that cannot be coded, or a payload that cannot be read; says what was expected and what came."""


class Coder(Protocol):
    """One way to write float32 values as bytes."""

    @property
    def name(self) -> str: ...

    @property
    def codes_differences(self) -> bool:
        """Whether the values are differences from the reference; else they are the weights themselves."""
        ...

    @property
    def feeds_back(self) -> bool:
        """Whether what a round leaves out is added to the next."""
        ...

    def setting(self, size: int) -> int:
        """The number that both sides must agree on for so many values, beside the name."""
        ...

    def pack(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 bytes of finite float32 values, and the float32 values that `unpack` makes of them."""
        ...

    def unpack(self, body: np.ndarray, size: int) -> np.ndarray:
        """float32 [size] from uint8 bytes. Raises CodecError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Float32:
    """The weights themselves, bit for bit."""

    name: str = "fp32"
    codes_differences: bool = False
    feeds_back: bool = False

    def setting(self, size: int) -> int:
        return 0

    def pack(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return as_bytes(values), values

    def unpack(self, body: np.ndarray, size: int) -> np.ndarray:
        check_length(body, size * 4, f"{size} float32 values")
        return body.view("<f4")


@dataclass(frozen=True, kw_only=True)
class Bfloat16:
    """Differences rounded to bfloat16: 8 significant bits, float32's range."""

    name: str = "bf16"
    codes_differences: bool = True
    feeds_back: bool = False

    def setting(self, size: int) -> int:
        return 0

    def pack(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounded = torch.from_numpy(values).to(torch.bfloat16)
        sent = rounded.float().numpy()
        if not all_finite(sent):
            raise CodecError("expected differences within bfloat16's range; has the training diverged?")
        return as_bytes(rounded.view(torch.int16).numpy()), sent

    def unpack(self, body: np.ndarray, size: int) -> np.ndarray:
        check_length(body, size * 2, f"{size} bfloat16 values")
        # The upper half of a float32 is the bfloat16.
        return (body.view("<u2").astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, kw_only=True)
class Int8Blocks:
    """Differences as whole multiples of their block's scale, largest magnitude / 127; then Huffman's code (deflate).

    A byte for each value and a scale for each block would take more than a quarter of float32; the entropy of real
    differences is below 8 bits, and where it is not, 63 steps instead of 127 fit into 7.
    """

    block_size: int = 256
    name: str = "int8"
    codes_differences: bool = True
    feeds_back: bool = True

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise CodecError(f"expected a block size of 1 or more, found {self.block_size}")

    def setting(self, size: int) -> int:
        return self.block_size

    def pack(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for levels in (_LEVELS, _FEWER_LEVELS):
            scales, steps = _quantise(values, self.block_size, levels)
            body = np.concatenate([as_bytes(scales), np.array([levels], np.uint8), _deflate(steps)])
            if body.size <= _MOST_BYTES_A_VALUE * values.size:
                break
        return body, _multiply(scales, steps, self.block_size)

    def unpack(self, body: np.ndarray, size: int) -> np.ndarray:
        scale_bytes = -(-size // self.block_size) * 4
        if body.size <= scale_bytes:
            raise CodecError(f"int8: expected more than {scale_bytes} bytes for {size} values, found {body.size}")
        scales, levels = body[:scale_bytes].view("<f4"), int(body[scale_bytes])
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise CodecError("int8: expected finite scales of zero or more, found others")
        if levels not in (_LEVELS, _FEWER_LEVELS):
            raise CodecError(f"int8: expected {_LEVELS} or {_FEWER_LEVELS} levels, found {levels}")
        steps = _inflate(body[scale_bytes + 1 :], size)
        if size and (steps.min() < -levels or steps.max() > levels):
            raise CodecError(f"int8: expected steps from -{levels} to {levels}, found others")
        return _multiply(scales, steps, self.block_size)


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The differences of largest magnitude, exact, with their positions; the others as zero."""

    kept_fraction: float = 0.05
    name: str = "topk"
    codes_differences: bool = True
    feeds_back: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.kept_fraction <= 1:
            raise CodecError(f"expected a kept fraction above 0 and at most 1, found {self.kept_fraction}")

    def setting(self, size: int) -> int:
        """How many are kept."""
        return min(size, int(np.ceil(self.kept_fraction * size)))

    def pack(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if values.size > 2**32:
            raise CodecError(f"topk: expected at most 2^32 values, found {values.size}; use int8")
        positions = _largest(values, self.setting(values.size))
        kept = values[positions]
        sent = np.zeros_like(values)
        sent[positions] = kept
        return np.concatenate([as_bytes(positions.astype(np.uint32)), as_bytes(kept)]), sent

    def unpack(self, body: np.ndarray, size: int) -> np.ndarray:
        count = self.setting(size)
        check_length(body, count * 8, f"{count} positions and values")
        positions, values = body[: count * 4].view("<u4").astype(np.int64), body[count * 4 :].view("<f4")
        if count and positions[-1] >= size:
            raise CodecError(f"topk: expected positions below {size}, found {positions[-1]}")
        if (np.diff(positions) <= 0).any():
            raise CodecError("topk: expected strictly increasing positions, found others")
        read = np.zeros(size, np.float32)
        read[positions] = values
        return read


def as_bytes(array: np.ndarray) -> np.ndarray:
    """uint8 view of an array, little-endian on every machine."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).view(np.uint8)


def check_length(body: np.ndarray, expected: int, what: str) -> None:
    """Raises CodecError where a body is not exactly as long as what it holds."""
    if body.size != expected:
        raise CodecError(f"expected {expected} bytes for {what}, found {body.size}")


def _quantise(values: np.ndarray, block_size: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 scale of every block and int8 steps; the last block may be shorter."""
    whole = values.size // block_size * block_size
    rows = values[:whole].reshape(-1, block_size)
    parts = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    parts += [values[whole:].reshape(1, -1)] if whole < values.size else []
    scales, steps, filled = np.empty(-(-values.size // block_size), np.float32), np.empty(values.size, np.int8), 0
    for part in parts:
        scale = np.maximum(part.max(axis=1), -part.min(axis=1)) / np.float32(levels)
        # Below float32's normal range a scale loses its digits; such a block is sent as zeros.
        scale[scale < _SMALLEST_SCALE] = 0
        divided = part / np.where(scale == 0, np.float32(np.inf), scale)[:, None]
        steps[filled : filled + part.size] = np.rint(divided, out=divided).reshape(-1)
        scales[filled // block_size : filled // block_size + len(part)] = scale
        filled += part.size
    return scales, steps


def _multiply(scales: np.ndarray, steps: np.ndarray, block_size: int) -> np.ndarray:
    """float32: every step times its block's scale."""
    whole = steps.size // block_size * block_size
    values = steps.astype(np.float32)
    rows = values[:whole].reshape(-1, block_size)
    rows *= scales[: len(rows), None]
    if whole < steps.size:
        values[whole:] *= scales[-1]
    return values


def _deflate(steps: np.ndarray) -> np.ndarray:
    # Noise does not repeat itself: Huffman's code alone is faster than a search for matches, and no longer.
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(packer.compress(steps.data) + packer.flush(), np.uint8)


def _inflate(stream: np.ndarray, size: int) -> np.ndarray:
    """int8 [size]; never more memory than for one value too many, whatever the stream claims."""
    reader = zlib.decompressobj()
    try:
        read = reader.decompress(np.ascontiguousarray(stream).data, size + 1)
    except zlib.error as error:
        raise CodecError(f"int8: expected a deflated stream of {size} steps, found a damaged one ({error})") from None
    if len(read) != size or not reader.eof:
        raise CodecError(f"int8: expected a deflated stream of {size} steps, found {'fewer' if reader.eof else 'more'}")
    if reader.unused_data:
        raise CodecError(f"int8: expected nothing after the steps, found {len(reader.unused_data)} bytes")
    return np.frombuffer(read, np.int8)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest magnitudes, increasing; of equal ones the first."""
    if count == values.size:
        return np.arange(count)
    magnitudes = np.abs(values)
    least = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > least)
    equal = np.flatnonzero(magnitudes == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))
