"""Sharded weights (FSDP2): Accelerate's settings for them, and tensors gathered and sharded again."""

import os
from collections.abc import Mapping

from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from dlm.errors import ConfigError


def sharding() -> FullyShardedDataParallelPlugin | None:
    """The settings by which Accelerate shards the weights, where its launcher asked for that; it does so only on GPUs.

    Weights are gathered in float32 and computed with under autocast, as they are without sharding. So the same run has
    the same losses either way.

    Returns:
        Accelerate's own settings, except for the precision; None where nothing is sharded.

    Raises:
        ConfigError: The launcher asked for a kind of sharding that `dlm` does not support.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("dlm shards by FSDP2: put `fsdp_version: 2` under `fsdp_config` in the Accelerate file")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise ConfigError("take fsdp_activation_checkpointing out of the Accelerate file: train.gradient_checkpointing")
    # Every process builds the whole network from the seed, so the first need not send its weights to the others.
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; all processes must call it. A tensor that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a full tensor, sharded like another one; every process has the full one, so nothing is sent."""
    copy = tensor.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return copy
    return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Full tensors without their gradients; those that were sharded are in CPU memory.

    All processes must call it. A tensor that has two names is again one tensor with both.

    Args:
        tensors: By name, in the same order on every process.
        keep: Whether this process needs them.

    Returns:
        The tensors by the same names; none where they are not needed.
    """
    found: dict[int, Tensor] = {}
    for tensor in {id(tensor): tensor for tensor in tensors.values()}.values():
        full = full_tensor(tensor.detach())
        if keep:  # moved to the CPU one at a time, so that the accelerator need not hold all of them
            found[id(tensor)] = full.cpu() if isinstance(tensor, DTensor) else full
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def reshard(network: nn.Module) -> None:
    """Leaves each process with its own shards, as after a step; a forward without a backward keeps full weights."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
