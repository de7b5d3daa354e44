"""What the program asks of its own process, before anything is computed."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Two settings of glibc's `mallopt`."""


def settle() -> None:
    """Settles how threads wait, where freed memory goes, and which libraries keep silent.

    What the environment says already is left as it is.
    """
    # Threads that wait for each other spin, and where another program holds a core they spin for milliseconds at
    # every operation: training was seen to fall to a tenth of its speed. This many turns, then they sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which weighs memory, says when it starts
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # and warns of what was there before it
    if not any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Has glibc keep memory that is freed, for what is computed next.

    It gives large blocks back to the system at once, and every large tensor of every step is fetched anew, cleared
    page by page. On a CPU that was measured to cost up to half of a forward pass, and an eighth of a training step;
    the most memory that training took was the same.

    Returns:
        Whether there is a glibc, and it agreed.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
