"""Which of several processes this one is: on GPUs, and on processors alone."""

import torch
from accelerate import PartialState


def without_accelerator() -> bool:
    """Whether this machine computes on its processors; Accelerate must be told, or each process would run alone."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; joined up at the first call."""
    return PartialState(cpu=without_accelerator())
