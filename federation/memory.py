"""Memory that one large tensor leaves to the next."""

import ctypes
import math
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class _Block:
    data: np.ndarray
    """uint8 [byte]."""
    user: "weakref.ref[np.ndarray]"
    """The part of it that the last tensor was made from. Only that tensor's storage holds it: they end together."""

    @property
    def is_free(self) -> bool:
        return self.user() is None


class TensorMemory:
    """Makes tensors, in memory that an earlier one no longer needs where there is some.

    A batch of crops takes some ten megabytes, the weights of a model a hundred. Given back to the system each time,
    filling the next one is mostly the system handing out zeroed pages again (docs/benchmarks.md, "Loading"). What is
    kept is no more than the largest tensors that ever lived at the same time.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU that shares memory with no other in use, its values whatever they were."""
        size = math.prod(shape) * dtype.itemsize
        if not size:  # a part of no bytes has no order that torch could view as another type
            return torch.empty(tuple(shape), dtype=dtype)
        free = sorted((block for block in self._blocks if block.is_free), key=lambda block: len(block.data))
        fitting = next((block for block in free if len(block.data) >= size), None)
        data = np.empty(size, np.uint8) if fitting is None else fitting.data
        # A larger block takes the place of the smallest that is free.
        for given_up in [fitting] if fitting else free[:1]:
            self._blocks.remove(given_up)
        part = data[:size]
        self._blocks.append(_Block(data, weakref.ref(part)))
        return torch.from_numpy(part).view(dtype).view(tuple(shape))


tensor_memory = TensorMemory()
"""Of this process. Processes that it starts have their own."""


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of glibc's settings (mallopt(3))."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees for what it asks for next; does nothing where that is not glibc.

    Given back to the system, an array of a hundred megabytes is zeroed page by page when the next one comes, and huge
    pages are first looked for where memory is full of files: most of the time of a strategy's arithmetic, a fifth of
    that of training. For a process that makes arrays of the same size again and again; what is kept is about what it
    used at once, with gaps, a fifth more where batches differ in size (docs/benchmarks.md).
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
