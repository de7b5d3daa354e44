"""What a run is made of before its first step: its processes and their shares, and that all read the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from dlm.config import Config
from dlm.data.run_data import RunData
from dlm.diffusion.readings import Masked
from dlm.distributed import without_accelerator
from dlm.errors import ConfigError, DataError
from dlm.model.backbone import Backbone
from dlm.model.precision import Precision, fastest_precision
from dlm.model.tokenizer import fingerprint
from dlm.train.run import Progress
from dlm.train.sharding import sharding

TIMEOUT = timedelta(days=1)
"""How long the other processes wait for the first, which may have to download and tokenise a corpus."""


def join(config: Config, folder: Path) -> Accelerator:
    """Sets up Accelerate for this process and those that run with it.

    Args:
        config: The run's configuration.
        folder: The run folder, where experiment trackers write.

    Returns:
        The accelerator, which knows all processes.

    Raises:
        ConfigError: The configuration or the launcher asks for something that is not available here.
    """
    ready = {str(tracker.value) for tracker in get_available_trackers()}
    for name in config.train.trackers:
        if name not in ready:
            raise ConfigError(
                f"train.trackers: {name!r} is not one that Accelerate knows, or its package is not installed; "
                f"ready here: {', '.join(sorted(ready)) or 'none'}"
            )
    plugin = sharding()
    accelerator = Accelerator(
        cpu=without_accelerator(),
        # Not "fp16", with which Accelerate would scale the loss its own way, and on GPUs alone.
        mixed_precision="bf16" if run_precision(config) == "bf16" else "no",
        log_with=list(config.train.trackers) or None,
        project_dir=folder,
        fsdp_plugin=plugin,
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(f"dlm runs on several processes by DDP or FSDP2, got {accelerator.distributed_type.value}")
    if plugin is not None and not accelerator.is_fsdp2:
        raise ConfigError(
            "Accelerate spreads weights (FSDP2) over several GPUs alone, and here it has "
            f"{where(accelerator)}: take another file, such as configs/accelerate/ddp.yaml"
        )
    if accelerator.is_fsdp2 and config.train.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is no multiple of the {accelerator.num_processes} processes, "
            "which must take part in every forward of a sharded network: choose one that is"
        )
    if config.train.batch_size < accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is less than one sequence for each of the "
            f"{accelerator.num_processes} processes: raise it, or start fewer processes"
        )
    return accelerator


def run_precision(config: Config) -> Precision:
    """What a run computes in; `auto` is the fastest of this machine."""
    if config.train.precision != "auto":
        return config.train.precision
    return fastest_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def first_of_machine_first(accelerator: Accelerator) -> Iterator[None]:
    """Runs a block on the first process of each machine, then on the others, which find its caches filled.

    The others wait by gloo and with a long timeout: NCCL gives up after ten minutes.

    Args:
        accelerator: The accelerator of the run.

    Yields:
        None, once this process may go on.
    """
    together = accelerator.num_processes > 1
    waiting = dist.new_group(backend="gloo", timeout=TIMEOUT) if together else None
    if together and not accelerator.is_local_main_process:
        dist.barrier(waiting)
    yield
    if together and accelerator.is_local_main_process:
        dist.barrier(waiting)


def where(accelerator: Accelerator) -> str:
    """The devices of a run, such as `cpu` or `4 x cuda`."""
    processes, kind = accelerator.num_processes, accelerator.device.type
    return kind if processes == 1 else f"{processes} x {kind}"


def micro_batches(config: Config, accelerator: Accelerator) -> list[range]:
    """The positions of this process in the global batch, a range for each of its micro-batches."""
    total, world, rank = config.train.batch_size, accelerator.num_processes, accelerator.process_index
    mine = range(rank * total // world, (rank + 1) * total // world)
    size = config.train.micro_batch_size or len(mine)
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def fit_out(backbone: Backbone, config: Config) -> None:
    """Gives a network what a run asks of it: masks of documents, gradient checkpointing, compiled layers.

    Args:
        backbone: Changed in place.
        config: The run's configuration.

    Raises:
        ConfigError: It does not support one of them.
    """
    if config.data.attend == "document":
        backbone.check_masks(config.data.length, "data.attend to row")
    elif not isinstance(config.readings, Masked):
        backbone.check_masks(config.data.length, "readings to masked")
    if config.train.gradient_checkpointing:
        checkpoint_gradients(backbone.model)
    if config.train.compile:
        backbone.compile_layers()


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Turns on gradient checkpointing: the backward pass computes activations again, which takes less memory.

    Args:
        model: Changed in place.

    Raises:
        ConfigError: The model does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"train.gradient_checkpointing: {model.config.model_type} does not know how")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_agreement(folder: Path, progress: Progress, data: RunData) -> None:
    """Refuses a text that has changed since the run was begun, and machines that read different files.

    All processes must call it.

    Args:
        folder: The run folder.
        progress: Where this process finds the run.
        data: What this process reads.

    Raises:
        DataError: The training or validation text has changed, or the processes read different ones.
        ConfigError: The processes find the run after different steps.
    """
    same = progress.train_checksum in (data.checksum, data.earlier_checksum)
    if data.tokens != progress.train_tokens or not same:
        raise DataError(
            f"the training text has changed since {folder} was begun, or this version makes other tokens of it: it has "
            f"{data.tokens} tokens now and had {progress.train_tokens}; put the old text back, or begin another run"
        )
    validation = data.validation.tokens
    if progress.validation_checksum not in (None, validation.checksum, validation.earlier_checksum):
        raise DataError(
            f"the validation text, or what this version makes of it, has changed since {folder} was begun, so that its "
            "bounds could not be compared; "
            "put the old text back, or begin another run"
        )
    seen = gather_object([(progress.step, data.checksum, fingerprint(data.tokenizer))])
    if len(steps := sorted({step for step, *_ in seen})) > 1:
        raise ConfigError(
            f"the processes of this run find {folder} after different steps, {steps}: "
            "put it on a disk that all machines share"
        )
    if len(set(seen)) > 1:
        raise DataError("the processes of this run read different training texts: give every machine the same")
