"""Memory of the process: what a batch leaves behind serves the next one."""

import ctypes
import os
import platform

# mallopt(3) of glibc: the parameters' names and the most that the first may be.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_MMAP_THRESHOLD = 32 * 2**20
_KEPT_BYTES = 512 * 2**20


def reuse_freed_memory() -> None:
    """Keep up to half a gigabyte of freed memory for the next batch, in huge pages where torch has no tensor yet.

    A batch of crops takes some ten megabytes. The C library gives them back to the system at once, so that filling the
    next batch is mostly the system handing out zeroed pages again (docs/benchmarks.md, "Loading"). A C library other
    than glibc keeps its own ways.
    """
    # torch reads it once, at the first tensor; processes started from here inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        c_library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
