"""Bytes, processor seconds and errors of the codecs at the size of the published model, on one thread.

    python benchmarks/codecs.py [--num-weights 31000000]

The update is noise, normal and of Adam's shape (signs times the learning rate with a little noise), because what a
codec does depends on the distribution of the differences alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from federation.codecs import CODECS, Payload, make_codec
from federation.selection import Entries, ModelEntries

_Result = TypeVar("_Result")
_REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-weights", type=int, default=31_000_000)
    size = parser.parse_args().num_weights
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    reference = random.normal(scale=0.05, size=size).astype(np.float32)
    entries = _everything_trained(size, num_statistics=54_656)
    print(f"{size} weights, {4 * size / 1e6:.0f} MB as fp32; best of {_REPEATS}, processor seconds of one thread")
    print("codec  update  bytes/fp32  encode s  decode s   carry s  relative rms error")
    for kind, difference in (("normal", _normal(random, size)), ("adam", _adam(random, size))):
        weights = reference + difference
        for name in CODECS:
            _measure(name, kind, entries, weights, reference)


def _measure(name: str, kind: str, entries: ModelEntries, weights: np.ndarray, reference: np.ndarray) -> None:
    codec = make_codec(name, entries)
    encode_seconds, (payload, residual) = _best(lambda: codec.encode(weights, reference, None))
    if residual is not None:  # every round but the first adds one
        encode_seconds, _ = _best(lambda: codec.encode(weights, reference, residual))
    carry_seconds, _ = _best(lambda: Payload.from_array(payload.to_array()))
    decode_seconds, decoded = _best(lambda: codec.decode(payload, reference))
    error = np.sqrt(np.mean(np.square(decoded - weights), dtype=np.float64))
    relative = error / np.sqrt(np.mean(np.square(weights - reference), dtype=np.float64))
    share = payload.num_bytes / weights.nbytes
    seconds = f"{encode_seconds:9.3f} {decode_seconds:9.3f} {carry_seconds:9.3f}"
    print(f"{name:6} {kind:7} {share:10.4f} {seconds} {relative:19.1e}")


def _best(work: Callable[[], _Result]) -> tuple[float, _Result]:
    seconds = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def _everything_trained(size: int, *, num_statistics: int) -> ModelEntries:
    def between(start: int, end: int) -> Entries:
        return Entries(total=size, runs=((start, end),))

    edge, middle = size - num_statistics, size - num_statistics // 2
    return ModelEntries(
        trained=between(0, size),
        parameters=between(0, edge),
        means=between(edge, middle),
        variances=between(middle, size),
        batch_norm=between(edge, size),
    )


def _normal(random: np.random.Generator, size: int) -> np.ndarray:
    return random.standard_normal(size, dtype=np.float32) * np.float32(1e-3)


def _adam(random: np.random.Generator, size: int) -> np.ndarray:
    noise = random.standard_normal(size, dtype=np.float32)
    return (np.sign(noise) + np.float32(0.1) * noise) * np.float32(1e-4)


if __name__ == "__main__":
    main()
