"""Memory that a batch leaves behind."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from client.memory import reuse_freed_memory
{call}
def fill():
    torch.ones(20_000_000, dtype=torch.uint8)
for _ in range(3): fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(call: str) -> int:
    """Pages that the system hands out while 20 MB are filled and freed twenty times."""
    code = _FAULTS.format(call=call)
    # Fixed from outside, the C library does not adapt its threshold to what was freed before.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory in their own ways")
def test_filling_a_second_batch_takes_no_new_pages() -> None:
    assert _page_faults("reuse_freed_memory()") < 20 < _page_faults("pass")
