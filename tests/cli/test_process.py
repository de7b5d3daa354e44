"""What the program asks of its own process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
{first}
def fill():
    torch.empty({size}, dtype=torch.uint8).fill_(1)
for _ in range(20):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

SETTLE = "from dlm.cli.process import settle; settle()"
SIZE = 64 * 2**20


def pages_fetched(first: str, **environment: str) -> int:
    """How many pages the system clears for ten tensors made and freed in turn, after twenty before them."""
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
def test_memory_that_the_environment_speaks_of_is_left_to_it() -> None:
    assert pages_fetched(SETTLE, MALLOC_MMAP_THRESHOLD_="1000000") > 5 * SIZE // os.sysconf("SC_PAGE_SIZE")
