"""Which of several processes this one is: on GPUs, and on processors alone."""

import torch
import torch.distributed as dist
from accelerate import PartialState


def without_accelerator() -> bool:
    """Whether this machine computes on its processors; Accelerate must be told, or each process would run alone."""
    if not torch.accelerator.is_available():
        return True
    found = torch.accelerator.current_accelerator()
    return found is not None and found.type == "mps"  # which has no float64, in which likelihoods are summed


def process_state() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; joined up at the first call."""
    return PartialState(cpu=without_accelerator())


def leave_process_group() -> None:
    """Leaves the other processes, once all is done; threads that still talk to them abort a program at its end."""
    if dist.is_initialized():
        dist.destroy_process_group()
