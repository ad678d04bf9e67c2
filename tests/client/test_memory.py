"""Memory that one batch leaves to the next, and huge pages."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.memory import BatchMemory

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


def test_filling_a_second_batch_takes_no_new_pages() -> None:
    assert _page_faults(BatchMemory().empty) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages of this kind are Linux's")
def test_large_tensors_lie_in_huge_pages() -> None:
    """Counted in a process of its own, because torch decides at its first tensor."""

    def page_faults(call: str) -> int:
        code = (
            f"import resource; from client.memory import use_huge_pages; {call}; import torch; torch.ones(1); "
            "count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = count(); "
            "torch.ones(25_000_000); print(count() - before)"
        )
        environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    if "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this system gives huge pages to everybody or to nobody")
    assert page_faults("use_huge_pages()") < 1000 < page_faults("pass")


def test_tensors_in_use_share_no_memory() -> None:
    memory, kept = BatchMemory(), []
    for number in range(4):
        made = memory.empty((3, 7), torch.float32)
        kept.append(made.fill_(number)[1:].T)  # a view keeps the memory as well
        del made
    assert [each.unique().tolist() for each in kept] == [[0.0], [1.0], [2.0], [3.0]]
    addresses = {each.untyped_storage().data_ptr() for each in kept}
    assert len(addresses) == 4
    kept.clear()
    assert {memory.empty((2, 2), torch.int64).data_ptr() for _ in range(3)} <= addresses


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    memory = BatchMemory()
    for size in (10, 4, 30, 20, 30, 1, 25):
        alive = [memory.empty((size + extra,), torch.uint8) for extra in range(3)]
        assert [len(each) for each in alive] == [size, size + 1, size + 2]
        del alive
    assert len(memory._blocks) == 3
