"""Memory that one large tensor leaves to the next."""

import platform
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from federation.memory import TensorMemory

SHAPE = (5, 20, 10, 1, 100, 200)


def _page_faults(make: Callable[..., Tensor]) -> int:
    """Pages that the system hands out while 20 MB are filled and freed twenty times, after three times."""

    def count() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for _ in range(3):
        make(SHAPE, dtype=torch.uint8).fill_(1)
    before = count()
    for _ in range(20):
        make(SHAPE, dtype=torch.uint8).fill_(1)
    return count() - before


def test_filling_another_tensor_takes_no_new_pages() -> None:
    # Of 100,000 that were filled; what else this process does takes a few.
    assert _page_faults(TensorMemory().empty) < 1000


def test_tensors_in_use_share_no_memory() -> None:
    memory, kept = TensorMemory(), []
    for number in range(4):
        made = memory.empty((3, 7), torch.float32)
        kept.append(made.fill_(number)[1:].T)  # a view keeps the memory as well
        del made
    assert [each.unique().tolist() for each in kept] == [[0.0], [1.0], [2.0], [3.0]]
    addresses = {each.untyped_storage().data_ptr() for each in kept}
    assert len(addresses) == 4
    kept.clear()
    assert {memory.empty((2, 2), torch.int64).data_ptr() for _ in range(3)} <= addresses


def test_memory_does_not_grow_with_the_number_of_tensors() -> None:
    memory = TensorMemory()
    for size in (10, 4, 30, 20, 30, 1, 25):
        alive = [memory.empty((size + extra,), torch.uint8) for extra in range(3)]
        assert [len(each) for each in alive] == [size, size + 1, size + 2]
        del alive
    assert len(memory._blocks) == 3


def test_a_tensor_without_entries_is_one_too() -> None:
    """Stays have none of what a part leaves out: regions without radiographs."""
    memory = TensorMemory()
    assert memory.empty((2, 0, 4), torch.float32).shape == (2, 0, 4)
    assert memory.empty((0,), torch.int64).dtype == torch.int64


def test_what_a_process_frees_stays_its_own() -> None:
    """In a process of its own, because the setting lasts as long as that."""
    code = """
import resource
import numpy as np
from federation.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    np.ones(30_000_000, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(30_000_000, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if platform.libc_ver()[0] == "glibc":
        assert int(done.stdout) < 1000, "each array of 120 MB would otherwise be new pages, huge ones or 29,297"
