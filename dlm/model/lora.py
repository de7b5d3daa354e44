"""Low-rank adapters of a pretrained model, by `peft`: added, written, restored and merged."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Lora
from dlm.errors import CheckpointError, ConfigError, one_line
from dlm.model.adapt import init_new_token_rows
from dlm.model.loading import load_model
from dlm.model.locate import ADAPTER, base_of
from dlm.model.tensors import ADAPTER_WEIGHTS, read_tensors, weights_checksum
from dlm.model.tokenizer import id_count, new_ids
from dlm.model.weights import Held
from dlm.paths import quoted

if TYPE_CHECKING:
    from peft import PeftModel


def add_adapter(model: PreTrainedModel, lora: Lora, base: str, fresh: Sequence[int], seed: int) -> "PeftModel":
    """Freezes a model and gives it adapters, in place.

    Args:
        model: A pretrained model.
        lora: The adapters' configuration.
        base: The folder or Hub name of the model, which is written beside the adapters.
        fresh: Ids it was not trained with; their rows of the embeddings are trained too.
        seed: The adapters' first weights follow from it.

    Returns:
        The model with its adapters; its `save_pretrained` writes the adapters only.

    Raises:
        ConfigError: `peft` is not installed, or the model has no such modules.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("model.lora needs the package peft: pip install 'dlm[lora]', or pip install peft") from error
    table: Any = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        trainable_token_indices={name.rpartition(".")[2]: list(fresh)} if fresh else None,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"model.lora: {one_line(error)}") from error
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    return cast("PeftModel", adapter)


def write_adapter(folder: Path, adapter: "PeftModel", weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapters, without the model they belong to.

    Args:
        folder: An existing folder.
        adapter: The model with its adapters.
        weights: The weights to write, by their names in the base model; by default those of `adapter`.
    """
    state = None if weights is None else {f"base_model.model.{name}": weight for name, weight in weights.items()}
    adapter.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)  # "auto" would ask the Hub
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card


def restore_adapter(folder: Path, adapter: "PeftModel") -> None:
    """Loads what `write_adapter` wrote.

    Args:
        folder: The checkpoint.
        adapter: The model with its adapters; changed in place.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    from peft import set_peft_model_state_dict

    read_tensors(folder / ADAPTER_WEIGHTS, partial(set_peft_model_state_dict, adapter))


def load_merged(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    attention: str,
    held: Held | None = None,
    base_checksum: str | None = None,
) -> PreTrainedModel:
    """Loads adapters and the model that they belong to, as one plain model.

    Args:
        path: A folder that `write_adapter` wrote.
        tokenizer: The tokenizer in the same folder.
        attention: As in `attention_implementation`.
        held: What its weights are held in, and where; by default float32 on the CPU.
        base_checksum: The checksum of the model that they were trained with, where one is known.

    Returns:
        The model, with the adapters merged into its weights.

    Raises:
        CheckpointError: The base model is missing or another than it was, the adapters are damaged, or `peft` is not
            installed.
        ConfigError: The weights are to be quantised, which merging would round once more.
    """
    if held is not None and held.load is not None:
        raise ConfigError(
            f"load {held.load}: {path} holds adapters, which are merged into weights that are not quantised: "
            f"`dlm merge {quoted(path)} FOLDER` makes it one model, which can be"
        )
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(
            f"{path} holds adapters, which need the package peft: pip install 'dlm[lora]', or pip install peft"
        ) from error
    try:
        written = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
        base, fresh = base_of(path), _fresh_ids(written)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}/{ADAPTER} is damaged: {error}") from error
    try:
        model = load_model(base, attention, held=held)
        new_ids(tokenizer, base)  # refuses the tokenizer of another model
        init_new_token_rows(model, fresh, id_count(tokenizer))
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds adapters of {base}, which is not to be had: {error}") from error
    check_base(path, base, base_checksum)
    try:
        merged = PeftModel.from_pretrained(model, path).merge_and_unload()
    except Exception as error:  # peft, safetensors and torch raise different types
        raise CheckpointError(f"the adapters in {path} cannot be read: {one_line(error)}") from error
    return cast(PreTrainedModel, merged.eval())


def check_base(path: str, base: str, checksum: str | None) -> str | None:
    """Refuses adapters whose model has other weights than they were trained with.

    Args:
        path: The adapters, for the message.
        base: The folder or Hub name of the model.
        checksum: What `weights_checksum` gave when they were trained; None where it is not known.

    Returns:
        What it gives now.

    Raises:
        CheckpointError: It is another, or the weights cannot be read.
    """
    found = weights_checksum(base)
    if None not in (found, checksum) and found != checksum:
        raise CheckpointError(
            f"{path} holds adapters of {base}, whose weights have changed since: put the old ones back there, or train "
            "the adapters again"
        )
    return found


def _fresh_ids(written: Mapping[str, Any]) -> list[int]:
    """The ids whose rows were new to the model, which are those that the adapters train.

    A token can be new to the tokenizer alone, such as a mask whose row the model has already.
    """
    named = written.get("trainable_token_indices") or []
    rows = named.values() if isinstance(named, dict) else [named]
    return sorted({int(id_) for ids in rows for id_ in ids})
