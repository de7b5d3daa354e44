"""What the program asks of its own process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
{first}
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes, blocks = [ctypes.c_void_p], [0] * 8
def fill():
    for i in range(8):
        blocks[i] = library.malloc({size})
        ctypes.memset(blocks[i], 1, {size})
    for block in blocks:
        library.free(block)
for _ in range(20):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

SETTLE = "from dlm.cli.process import settle; settle()"
SIZE = 24 * 2**20


def pages_fetched(first: str, **environment: str) -> int:
    """How many pages the system clears for eight blocks, written and freed ten times after twenty before."""
    code = FAULTS.format(first=first, size=SIZE)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", code]
    return int(subprocess.run(words, env=given | environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such setting")
def test_memory_that_a_tensor_leaves_is_there_for_the_next() -> None:
    pages = SIZE // os.sysconf("SC_PAGE_SIZE")
    assert pages_fetched("") > 5 * pages
    assert pages_fetched(SETTLE) < pages // 10


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such setting")
@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_memory_that_the_environment_speaks_of_is_left_to_it(variable: str) -> None:
    told = {variable: "glibc.malloc.trim_threshold=131072" if variable == "GLIBC_TUNABLES" else "131072"}
    assert pages_fetched(SETTLE, **told) > 5 * SIZE // os.sysconf("SC_PAGE_SIZE")
