"""Memory of tensors: in huge pages, and left by one batch to the next."""

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def use_huge_pages() -> None:
    """Let torch ask Linux for huge pages for tensors of 2 MB and more, here and in processes started from here.

    A weight array of 124 MB is then written in a quarter of the time, and large tensors leave no gaps between small
    ones (docs/benchmarks.md). Torch reads this at its first tensor; elsewhere than on Linux it changes nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@dataclass(eq=False)
class _Block:
    data: np.ndarray
    """uint8 [byte]."""
    user: "weakref.ref[np.ndarray]"
    """The part of it that the last tensor was made from. Only that tensor's storage holds it: they end together."""

    @property
    def is_free(self) -> bool:
        return self.user() is None


class BatchMemory:
    """Makes tensors, in memory that an earlier batch no longer needs where there is some.

    A batch of crops takes some ten megabytes. Given back to the system each time, filling the next batch is mostly the
    system handing out zeroed pages again (docs/benchmarks.md, "Loading"). What is kept is no more than the largest
    batches that ever lived at the same time.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU that shares memory with no other in use, its values whatever they were."""
        size = math.prod(shape) * dtype.itemsize
        free = sorted((block for block in self._blocks if block.is_free), key=lambda block: len(block.data))
        fitting = next((block for block in free if len(block.data) >= size), None)
        data = np.empty(size, np.uint8) if fitting is None else fitting.data
        # A larger block takes the place of the smallest that is free.
        for given_up in [fitting] if fitting else free[:1]:
            self._blocks.remove(given_up)
        part = data[:size]
        self._blocks.append(_Block(data, weakref.ref(part)))
        return torch.from_numpy(part).view(dtype).view(tuple(shape))


batch_memory = BatchMemory()
"""Of this process. Processes that read ahead for it have their own."""
