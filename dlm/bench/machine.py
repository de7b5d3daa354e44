"""What the machine can do at best: its matrix products, its copies, and the memory that a program holds."""

import platform
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

SIDES = (512, 1024, 2048, 4096)
"""Sides of the square matrices that are multiplied, and 8192 on a GPU; the fastest product is the peak."""

COPIED = 2**28
"""Bytes of a copy, well beyond any cache."""


@dataclass(frozen=True)
class Machine:
    """A machine's own limits, as they were measured.

    Attributes:
        name: Of the processor or the GPU.
        device: cpu, cuda or mps.
        threads: Threads that torch computes with, on processors.
        dtype: What the matrices are made of.
        peak: The fastest matrix product, in FLOP/s.
        bandwidth: Of a copy, in bytes/s, what is read and what is written counted.
        torch: Its version.
    """

    name: str
    device: str
    threads: int
    dtype: str
    peak: float
    bandwidth: float
    torch: str


def measure_machine(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> Machine:
    """Measures the peak of matrix products and the bandwidth of copies.

    Args:
        device: Where.
        dtype: Of the matrices.
        seconds: How long each size is repeated; the median counts.

    Returns:
        The limits.
    """
    peak = 0.0
    for side in SIDES if device.type == "cpu" else (*SIDES, 8192):
        a, b, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        peak = max(peak, 2.0 * side**3 / _seconds(partial(torch.mm, a, b, out=product), seconds))
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Machine(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        device=device.type,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        peak=peak,
        bandwidth=2.0 * COPIED / _seconds(lambda: target.copy_(source), seconds),
        torch=str(torch.__version__),
    )


def held_by(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that some work holds at a time, beyond those that were held before it.

    Args:
        work: Called once.
        device: Where it computes.

    Returns:
        Bytes. What is held outside of torch, and what its allocator keeps for later, is not counted.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def most_held(device: torch.device) -> int:
    """The most bytes that this program has held so far: on CUDA torch's own, else all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(work: Callable[[], object], seconds: float) -> float:
    """The median time of a call; CUDA is waited for."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=seconds).median)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
