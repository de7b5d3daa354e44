"""What the program asks of its own process, before anything is computed."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Two settings of glibc's `mallopt`."""

LARGE, KEPT = 2**25, 2**30
"""Bytes of a block that goes back to the system as soon as it is freed, and of free memory of which some goes back."""

OF_GLIBC = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
"""Variables by which glibc is told already what to keep."""


def settle() -> None:
    """Settles how threads wait, where freed memory goes, and which libraries keep silent.

    What the environment says already is left as it is.
    """
    # Threads that wait for each other spin, and where another program holds a core they spin for milliseconds at
    # every operation: training was seen to fall to a tenth of its speed. This many turns, then they sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which weighs memory, says when it starts
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and warns of what was there before it
    if not OF_GLIBC & os.environ.keys():
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep up to `KEPT` bytes of memory that is freed, for what the main thread computes next.

    By itself it gives the memory of tensors back to the system at once, so that those of every step are fetched anew,
    cleared page by page. On a CPU that was measured to cost up to half of a forward pass, and a tenth of a training
    step; the most memory that training took was the same. Blocks of `LARGE` bytes and more go back as they did. Other
    systems and other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGE):
        mallopt(M_TRIM_THRESHOLD, KEPT)
