"""What a network computes in: float32, or bfloat16 by autocast."""

from typing import Literal

import torch
from torch import Tensor, nn

from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer

Precision = Literal["fp32", "bf16"]


def bf16_is_native(device: torch.device | None = None) -> bool:
    """Whether a device, or else this machine, computes in bfloat16 rather than emulating it."""
    kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if kind == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def native_precision(device: torch.device) -> Precision:
    """The fastest precision that a device computes in: bfloat16 where it has it."""
    return "bf16" if bf16_is_native(device) else "fp32"


def in_precision(module: nn.Module, precision: Precision) -> Network:
    """A module as a network that computes in a precision; what is made of the logits is float32 or wider."""

    def call(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        device = inputs.ids_BL.device.type

        def outside(logits_CV: Tensor, rows: slice) -> Reduced:
            assert reducer is not None
            with torch.autocast(device, enabled=False):
                return reducer(logits_CV, rows)

        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            found: Tensor | Reduced = module(inputs, outside if reducer else None)
        return found

    return call  # type: ignore[return-value]  # a closure cannot say that a reducer decides what is returned
