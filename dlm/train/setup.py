"""What a run is made of before its first step: its processes, its tokenizer, its network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Config, Pretrained, Tokenizer
from dlm.data.run_data import RunData
from dlm.distributed import without_accelerator
from dlm.errors import ConfigError, DataError
from dlm.model.adapt import check_length, init_new_token_rows, is_decoder
from dlm.model.attention import attention_implementation
from dlm.model.checkpoint import read_sidecar
from dlm.model.loading import build_model, load_model
from dlm.model.locate import CHECKPOINTS, check_there, follow, is_adapter, resolve
from dlm.model.lora import add_adapter, restore_adapter
from dlm.model.precision import Precision, fastest_precision
from dlm.model.public import find
from dlm.model.tokenizer import Affixes, fingerprint, new_ids, special_ids, text_ids_from
from dlm.paths import expand
from dlm.train.run import Progress
from dlm.train.sharding import sharding

if TYPE_CHECKING:
    from peft import PeftModel

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


def tokenizer_of(config: Config, checkpoint: Path | None) -> Tokenizer:
    """Which tokenizer a run makes or loads; a resumed run loads that of its checkpoint, where it cannot have changed.

    Args:
        config: The run's configuration.
        checkpoint: Where a resumed run goes on from.

    Returns:
        The tokenizer's configuration.

    Raises:
        DlmError: The pretrained model whose tokenizer is wanted is not there.
    """
    if checkpoint is not None:
        return Pretrained(str(checkpoint))
    if isinstance(config.tokenizer, Pretrained):
        return replace(config.tokenizer, path=starting_point(config.tokenizer.path))
    return config.tokenizer


def affixes_before(config: Config, checkpoint: Path | None) -> Affixes | None:
    """The special tokens that a run's model has had around every text so far.

    Args:
        config: The run's configuration.
        checkpoint: Where a resumed run goes on from.

    Returns:
        Those of the checkpoint, or of a model of `dlm` that the run starts from; None where it starts from neither.

    Raises:
        DlmError: The pretrained model is not there.
    """
    if checkpoint is None and config.model.path is None:
        return None
    sidecar = read_sidecar(str(checkpoint) if checkpoint else starting_point(str(config.model.path)))
    return sidecar.affixes if sidecar else None


def micro_batches(config: Config, accelerator: Accelerator) -> list[range]:
    """The positions of this process in the global batch, a range for each of its micro-batches."""
    total, world, rank = config.train.batch_size, accelerator.num_processes, accelerator.process_index
    mine = range(rank * total // world, (rank + 1) * total // world)
    size = config.train.micro_batch_size or len(mine)
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def starting_point(path: str) -> str:
    """The pretrained model at a path.

    Args:
        path: A folder or a Hub name; a run folder stands for its best checkpoint.

    Returns:
        A folder or a Hub name.

    Raises:
        ConfigError: The folder holds adapters only.
        CheckpointError: There is no such folder, and the Hub does not answer; or the model cannot be loaded.
    """
    if path.startswith("~"):
        path = str(expand(path))
    here, found = Path(path), path
    if (here / CHECKPOINTS).is_dir():
        found = resolve(path)
    elif here.is_file():
        found = str(follow(here))
    check_there(found)
    if is_adapter(found):
        raise ConfigError(f"{path} holds adapters of another model: `dlm merge {path} FOLDER` makes it a model")
    find(found)  # refuses a model that no one can train, before the text is read
    return found


def run_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    checkpoint: Path | None,
    note: Callable[[str], None],
) -> "tuple[PreTrainedModel, PeftModel | None]":
    """The network at the start of a run, and its adapters where only they are trained.

    A resumed run loads the pretrained model again only where it trains adapters.

    Args:
        config: The run's configuration.
        tokenizer: Its tokenizer.
        accelerator: The accelerator of the run.
        checkpoint: The checkpoint that a resumed run continues from.
        note: Is told of what the model does not know.

    Returns:
        The network, its adapters included, and the adapters by themselves.

    Raises:
        DlmError: There is no such model, or it does not support what the configuration asks for.
    """
    ids, length = special_ids(tokenizer), config.data.length + config.model.shift
    bf16, lora = accelerator.mixed_precision == "bf16", config.model.lora
    attention = attention_implementation(config.model.attention, accelerator.device, length, bf16=bf16, learns=True)
    if config.model.path is None:
        special = {"pad_token_id": ids.pad, "eos_token_id": ids.end, "mask_token_id": ids.mask}
        model = build_model(
            config.model.architecture,
            config.model.sizes,
            vocabulary=len(tokenizer),
            length=length,
            special_ids=special,
            attention=attention,
            seed=config.seed,
        )
        return model, None
    if lora and config.formulation.timed:
        raise ConfigError("model.lora: adapters go with a network that takes no time; train every weight")
    fresh: list[int] = []
    source = starting_point(config.model.path) if checkpoint is None or lora else str(checkpoint)
    model = load_model(source, attention, config.model.sizes)
    if checkpoint is None or lora:
        check_goes_on(config, source)
        named = isinstance(config.tokenizer, Pretrained) and config.tokenizer.mask_token is not None
        fresh = [id_ for id_ in new_ids(tokenizer, source) if not (named and id_ == ids.mask)]
        if untrained := text_ids_from(tokenizer, rows := int(model.config.vocab_size)):
            note(
                f"{source} has {rows} rows and its tokenizer {len(tokenizer)} ids: the rows of {untrained} tokens of "
                "text are new, and begin as the mean of the others; is it the model's own tokenizer?"
            )
        init_new_token_rows(model, fresh, max(tokenizer.get_vocab().values()) + 1)
    check_length(model, length)
    if config.model.annealing and not is_decoder(model):
        raise ConfigError(f"model.annealing: {config.model.path} is an encoder, which sees the whole text already")
    if lora is None:
        return model, None
    adapter = add_adapter(model, lora, source, fresh, config.seed)
    if checkpoint is not None:
        restore_adapter(checkpoint, adapter)
    return model, adapter


def check_goes_on(config: Config, source: str) -> None:
    """Refuses to read a diffusion model's predictions in other places than it was trained to make them in.

    Args:
        config: The run's configuration.
        source: The pretrained model that it starts from.

    Raises:
        ConfigError: `model.shift` is not that of the model, or `model.annealing` would close its attention first.
    """
    family, sidecar = find(source), read_sidecar(source)
    known = sidecar.formulation if sidecar else family.formulation if family else None
    if known is None:
        return
    if known.shift != config.model.shift:
        where = "one position earlier" if known.shift else "in place"
        raise ConfigError(
            f"model.shift: {source} is a diffusion model whose predictions are read {where}; "
            f"set it to {str(known.shift).lower()}, got {str(config.model.shift).lower()}"
        )
    if config.model.annealing:
        raise ConfigError(
            f"model.annealing: {source} is a diffusion model and sees the whole text already; set it to 0, "
            f"got {config.model.annealing}"
        )


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
    found, before = (data.tokens, data.checksum), (progress.train_tokens, progress.train_checksum)
    if found != before:
        raise DataError(
            f"the training text has changed since {folder} was begun: it has {found[0]} tokens now and had "
            f"{before[0]}; put the old text back, or begin another run"
        )
    if progress.validation_checksum not in (None, data.validation.tokens.checksum):
        raise DataError(
            f"the validation text has changed since {folder} was begun, so that its bounds could not be compared; "
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
