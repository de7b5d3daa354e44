"""Times of repeated work, on a CPU or a GPU."""

import statistics
import time

import torch


class Stopwatch:
    """A context manager that times each pass: by events on CUDA, else by the clock.

    Attributes:
        seconds: The time of each pass so far.
    """

    def __init__(self, device: torch.device) -> None:
        """Makes a stopwatch for work on a device."""
        self._cuda = device.type == "cuda"
        self.seconds: list[float] = []

    def __enter__(self) -> "Stopwatch":
        if self._cuda:
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        passed = time.perf_counter() - self._began
        if self._cuda:
            self._events[1].record()
            self._events[1].synchronize()
            passed = self._events[0].elapsed_time(self._events[1]) / 1000.0
        self.seconds.append(passed)

    def median(self) -> float:
        """The median time of a pass."""
        return statistics.median(self.seconds)
