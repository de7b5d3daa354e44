"""Ctrl-C and the system's request to stop, heard after a step and obeyed by all processes after the same one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


@contextmanager
def stop_signals(*, alone: bool) -> Iterator[list[int]]:
    """Listens for signals to stop.

    Args:
        alone: Whether this is the only process, so that a second Ctrl-C stops at once. With several, the terminal and
            the launcher both pass on the same Ctrl-C.

    Yields:
        The signals received so far.

    Raises:
        KeyboardInterrupt: A second signal was received.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and alone:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether a flag is set on any process; all of them must call it, and get the same answer."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())
