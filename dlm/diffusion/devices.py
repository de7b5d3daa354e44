"""Tensors on devices: how they get there, and what a device computes in."""

from functools import cache

import torch
from torch import Tensor


def copied(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a copy from the CPU's memory to a GPU's does not wait for what the GPU is computing."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.contiguous().pin_memory().to(device, non_blocking=True)  # an expanded tensor cannot be pinned
    return x.to(device)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's GPUs and some of Intel's do not."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum()
    except (RuntimeError, TypeError):  # devices refuse it by either
        return False
    return True
