"""What a network computes in: float32, or bfloat16 or float16 by autocast."""

from typing import Literal

import torch
from torch import Tensor, nn

from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer
from dlm.errors import RangeError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of torch by their names here."""


def bf16_is_native(device: torch.device | None = None) -> bool:
    """Whether a device, or else this machine, computes in bfloat16 rather than emulating it."""
    kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if kind == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def native_precision(device: torch.device) -> Precision:
    """The fastest precision that a device computes in and that has the range of float32: bfloat16 where it has it."""
    return "bf16" if bf16_is_native(device) else "fp32"


def fastest_precision(device: torch.device) -> Precision:
    """The fastest precision that a device computes in: float16 on a GPU without bfloat16, else `native_precision`."""
    return "fp16" if device.type == "cuda" and not bf16_is_native(device) else native_precision(device)


def working_precisions(
    asked: Precision | Literal["auto"], held: torch.dtype, device: torch.device
) -> tuple[Precision, Precision]:
    """What a network writes texts in, and what it scores them in.

    Args:
        asked: One precision for both; `auto` is that of weights of 16 bits, and with other weights the device's own
            for writing and float32 for scoring.
        held: The type of the weights.
        device: Where they are.

    Returns:
        Both precisions.
    """
    if asked != "auto":
        return asked, asked
    for name, dtype in DTYPES.items():
        if held == dtype and name != "fp32":
            return name, name
    return native_precision(device), "fp32"


def in_precision(module: nn.Module, precision: Precision) -> Network:
    """A module as a network that computes in a precision; what is made of the logits is float32 or wider.

    Args:
        module: A network.
        precision: What it computes in.

    Returns:
        The network. Where no gradient is wanted, float16 raises `RangeError` at a logit that is not finite.
    """

    def call(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        device = inputs.ids_BL.device.type

        def outside(logits_CV: Tensor, rows: slice) -> Reduced:
            assert reducer is not None
            with torch.autocast(device, enabled=False):
                return reducer(_checked(logits_CV, precision), rows)

        with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
            found: Tensor | Reduced = module(inputs, outside if reducer else None)
        return _checked(found, precision) if isinstance(found, Tensor) else found

    return call  # type: ignore[return-value]  # a closure cannot say that a reducer decides what is returned


def _checked(logits_NV: Tensor, precision: Precision) -> Tensor:
    """The logits. Training notices an overflow by its loss; nothing else would."""
    if precision == "fp16" and not torch.is_grad_enabled() and not logits_NV.isfinite().all():
        raise RangeError(
            "a prediction of this network is not finite in fp16, whose numbers end at 65,504: take bf16 or fp32"
        )
    return logits_NV
