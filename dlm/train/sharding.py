"""Weights that are spread over processes (FSDP2): how that is asked for, and tensors gathered and spread again."""

import os
from collections.abc import Mapping

from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from dlm.errors import ConfigError


def sharding() -> FullyShardedDataParallelPlugin | None:
    """How Accelerate is to spread the weights, where its launcher was told to; on GPUs alone it does.

    Weights are gathered in float32 and computed with under autocast, as they are where they are not spread: the same
    run has the same losses either way.

    Returns:
        Accelerate's own settings, but for the precision; None where nothing is to be spread.

    Raises:
        ConfigError: It was told to in a way that `dlm` does not support.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("dlm shards by FSDP2: put `fsdp_version: 2` under `fsdp_config` in the Accelerate file")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise ConfigError("take fsdp_activation_checkpointing out of the Accelerate file: train.gradient_checkpointing")
    # Every process builds the whole network from the seed, so none needs to be sent what the first has loaded.
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor on every process, all of which must ask for it; one that is not spread is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor that every process has whole, spread as another is; nothing is sent."""
    copy = tensor.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return copy
    return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors without their gradients, those that are spread made whole in the memory of the processor.

    All processes must call it. A tensor that stands under two names is one tensor under both again.

    Args:
        tensors: By name, in the same order on every process.
        keep: Whether this process wants them.

    Returns:
        The tensors by the same names; none where they are not wanted.
    """
    found: dict[int, Tensor] = {}
    for tensor in {id(tensor): tensor for tensor in tensors.values()}.values():
        made = full_tensor(tensor.detach())
        if keep:  # one by one into the processor's memory: the accelerator's need not hold them all
            found[id(tensor)] = made.cpu() if isinstance(tensor, DTensor) else made
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def reshard(network: nn.Module) -> None:
    """Lets each process hold its own part alone again, as after a step; a forward without a backward leaves more."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
