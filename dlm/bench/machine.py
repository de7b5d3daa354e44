"""The limits of the machine (matrix products, copies), and the memory that a program uses."""

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
"""Sides of the square matrices that are multiplied, with 8192 on a GPU; the fastest product is the peak."""

COPIED = 2**28
"""Bytes of a copy, far more than any cache holds."""


@dataclass(frozen=True)
class Machine:
    """The measured limits of a machine.

    Attributes:
        name: The name of the processor or the GPU.
        device: cpu, cuda or mps.
        threads: Number of CPU threads that torch uses.
        dtype: The type of the matrices' elements.
        peak: The fastest matrix product, in FLOP/s.
        bandwidth: Bytes/s of a copy, counting reads and writes.
        torch: The version of torch.
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
        device: The device to measure.
        dtype: The type of the matrices' elements.
        seconds: How long each size is repeated; the median is taken.

    Returns:
        The limits.
    """
    peak = 0.0
    for side in SIDES if device.type == "cpu" else (*SIDES, 8192):
        a, b, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        peak = max(peak, 2.0 * side**3 / median_seconds(partial(torch.mm, a, b, out=product), seconds))
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Machine(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        device=device.type,
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        peak=peak,
        bandwidth=2.0 * COPIED / median_seconds(lambda: target.copy_(source), seconds),
        torch=str(torch.__version__),
    )


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """The median time of a call, including the work it starts on CUDA.

    Args:
        work: The function; it is called many times.
        seconds: How long it is repeated.

    Returns:
        Seconds a call.
    """
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=seconds).median)


def peak_tensor_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The peak memory of a function's tensors, beyond what was allocated before.

    Args:
        work: The function; it is called once.
        device: The device it computes on.

    Returns:
        Bytes, without memory outside of torch and what torch's allocator keeps in reserve.
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


def peak_memory(device: torch.device) -> int:
    """The peak memory of this program so far, in bytes: on CUDA that of tensors, else that of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
