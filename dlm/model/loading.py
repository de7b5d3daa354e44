"""HuggingFace models with fresh weights, or loaded from a folder or the Hub; decoders made bidirectional."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from dlm.errors import CheckpointError, ConfigError, one_line
from dlm.model.attention import open_attention
from dlm.model.locate import check_fetched, check_name
from dlm.model.public import Family, find, read_config
from dlm.model.time_embedding import TIMED, UNDERLYING
from dlm.model.weights import Held

PAD_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
    "xmod",
    "esm",
    "ibert",
    "longformer",
    "luke",
}
"""Architectures that number positions from the padding id on, and so need that many more position embeddings."""

POSITIVE = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "embedding_size",
    "max_position_embeddings",
}
"""Sizes of which a network has one or more, by the names that most architectures give them."""

OWNED = {
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "dtype",
    "is_causal",
    "is_decoder",
    "is_encoder_decoder",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "vocab_size",
}
"""Keys that follow from the tokenizer and the rest of a run's configuration, and so do all ids of special tokens."""

TRIED = ("eager", "sdpa")
"""Ways to compute attention that every device has."""

LIMIT = 300
"""The most characters to keep of an error message of transformers."""


def build_model(
    architecture: str,
    sizes: Mapping[str, Any],
    *,
    vocabulary: int,
    length: int,
    special_ids: Mapping[str, int],
    attention: str,
    seed: int,
) -> PreTrainedModel:
    """Makes a HuggingFace model with fresh weights.

    Args:
        architecture: A `model_type` with a masked-LM or a causal-LM head.
        sizes: Keys of its configuration.
        vocabulary: Number of ids.
        length: Longest sequence, for `max_position_embeddings` where `sizes` does not give it.
        special_ids: `pad_token_id`, `eos_token_id` and so on.
        attention: As in `attention_implementation`.
        seed: The weights follow from it.

    Returns:
        The model, bidirectional.

    Raises:
        ConfigError: There is no such architecture, key or combination of sizes.
    """
    config = _model_config(architecture, sizes, vocabulary, length, special_ids)
    factory = _auto_class(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = factory.from_config(config, attn_implementation=attention, trust_remote_code=False)
    except Exception as error:  # architectures raise different types
        how = "" if attention in TRIED else f" and model.attention {attention}"
        raise ConfigError(
            f"model: {architecture} cannot be built with these sizes{how}: {one_line(error, LIMIT)}"
        ) from error
    _try(model, attention)
    return cast(PreTrainedModel, model)


def load_model(
    path: str, attention: str, sizes: Mapping[str, Any] | None = None, held: Held | None = None
) -> PreTrainedModel:
    """Loads a HuggingFace model from a folder or the Hub and makes it bidirectional.

    Args:
        path: A folder with config.json and safetensors weights, whole or in shards, or a Hub name; also of a published
            diffusion model, whose tensors are renamed.
        attention: As in `attention_implementation`.
        sizes: Keys of its configuration that replace the stored ones, such as dropout.
        held: What its weights are held in, and where; by default float32 on the CPU.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: There is no such model, it is damaged, it has no head for masks, or it needs remote code.
        ConfigError: `sizes` has a key that the model does not have.
    """
    check_name(path)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"{path} holds no model: it has no config.json; copy it there from where the model is")
    try:
        family = find(path)
        config = _stored_config(path, family)
        factory = _auto_class(config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # json, the Hub and transformers raise different types
        raise CheckpointError(f"cannot load a model from {path}: {one_line(error, LIMIT)}") from error
    if sizes:
        _check_keys(config.model_type, config, sizes)
        config.update(dict(sizes))
        _check_heads(config)
    model = load_weights(
        factory,
        path,
        config=config,
        **(held or Held()).arguments(config),
        attn_implementation=attention,
        trust_remote_code=False,
        key_mapping=dict(family.keys) if family and family.keys else None,
    )
    if sizes:
        _try(model, attention)
    if family:
        vars(model).pop("_weight_conversions", None)  # or `save_pretrained` would write the publisher's names back
    return model


def _try(model: PreTrainedModel, attention: str) -> None:
    """Computes two tokens in training, because some sizes are refused no earlier: odd heads, or dropout above 1.

    Kernels for GPUs alone are not tried, since the model is still on the CPU.
    """
    if attention not in TRIED:
        return
    before = model.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.train()(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:  # architectures raise different types
        raise ConfigError(
            f"model.sizes: {model.config.model_type} cannot compute with these sizes: {one_line(error, LIMIT)}"
        ) from error
    finally:
        model.train(before)


def load_weights(factory: Any, path: str, **options: Any) -> PreTrainedModel:
    """Makes a model of the tensors in a folder or on the Hub, and checks that none is missing.

    Args:
        factory: The class of the model, or an auto class.
        path: A folder with safetensors weights, or a Hub name.
        **options: What `from_pretrained` is told.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The weights are damaged, missing or in another format, or not all there.
    """
    try:
        model, info = factory.from_pretrained(
            path,
            use_safetensors=True,  # other formats are pickles
            ignore_mismatched_sizes=True,  # it is refused here, by its shapes
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, json, the Hub and transformers raise different types
        folder = Path(path)
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            raise CheckpointError(
                f"the weights in {path} are pickles, which are never read: convert them to safetensors"
            ) from error
        check_fetched(path, "*.safetensors")
        for weights in folder.glob("*.safetensors"):
            if not os.access(weights, os.R_OK):  # which safetensors calls a file that is not there
                raise CheckpointError(f"{weights} may not be read: ask its owner") from error
        raise CheckpointError(f"cannot load a model from {path}: {one_line(error, LIMIT)}") from error
    if misfits := sorted(info["mismatched_keys"]):
        name, stored, wanted = misfits[0]
        raise CheckpointError(
            f"the weights in {path} do not fit its config.json: {name} has the shape {list(stored)} and the "
            f"configuration asks for {list(wanted)}{_others(len(misfits) - 1, 'do not fit')}"
        )
    if missing := sorted(info["missing_keys"]):
        found = f"{missing[0]} is missing{_others(len(missing) - 1, 'are missing')}"
        raise CheckpointError(f"the weights in {path} are not whole: {found}")
    return cast(PreTrainedModel, model.eval())


def usable_positions(model: PreTrainedModel) -> int | None:
    """The longest text that a model has positions for.

    RoBERTa and its kin number positions from the padding id of the model on, so that 514 rows are 512 positions.

    Args:
        model: A model.

    Returns:
        The number of tokens; None if it has no limit.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    tables = (module for name, module in model.named_modules() if name.endswith("embeddings.position_embeddings"))
    if positions is None or (table := next(tables, None)) is None:
        return positions
    padding_id: int | None = getattr(table, "padding_idx", None)
    return positions if padding_id is None else positions - padding_id - 1


def _others(count: int, what: str) -> str:
    """What else is wrong, besides the tensor that is named."""
    return f", and {count} others {what}" if count > 1 else ", and one other with it" if count else ""


def _model_config(
    architecture: str, sizes: Mapping[str, Any], vocabulary: int, length: int, special_ids: Mapping[str, int]
) -> PreTrainedConfig:
    """The architecture's configuration, once every key is checked."""
    try:
        blank = AutoConfig.for_model(architecture)
    except ValueError:
        known = sorted({c.model_type for c in (*MODEL_FOR_MASKED_LM_MAPPING, *MODEL_FOR_CAUSAL_LM_MAPPING)})
        near = difflib.get_close_matches(architecture, known, n=3)
        raise ConfigError(
            f"model.architecture: transformers has no {architecture!r}; "
            + (f"near it: {', '.join(near)}" if near else "for example qwen3, llama, modernbert, bert")
        ) from None
    names = _check_keys(architecture, blank, sizes)
    offset = special_ids["pad_token_id"] + 1 if architecture in PAD_OFFSET_POSITIONS else 0
    unset = {name: None for name in names if name.endswith("_token_id")}  # defaults point into another vocabulary
    given = {"max_position_embeddings": length + offset, **unset, **special_ids, **sizes, "vocab_size": vocabulary}
    try:
        config = AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if k in names})
    except Exception as error:  # architectures raise different types
        raise ConfigError(f"model.sizes: {architecture} refuses these sizes: {one_line(error, LIMIT)}") from error
    _check_heads(config)
    return config


def _check_heads(config: PreTrainedConfig) -> None:
    """Checks that the heads of attention share its width, and the keys and values, evenly."""
    width, heads, key_heads, head_width = (
        getattr(config, name, None)
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if not isinstance(heads, int):
        return  # each layer has its own
    if isinstance(key_heads, int) and heads % key_heads:
        raise ConfigError(
            f"model.sizes of {config.model_type}: num_attention_heads must be a multiple of num_key_value_heads, "
            f"got {heads} and {key_heads}"
        )
    if isinstance(width, int) and head_width is None and width % heads:
        raise ConfigError(
            f"model.sizes of {config.model_type}: hidden_size must be a multiple of num_attention_heads, "
            f"got {width} and {heads}"
        )


def _check_keys(architecture: str, config: PreTrainedConfig, sizes: Mapping[str, Any]) -> list[str]:
    """Checks that an architecture's configuration has the keys of `sizes`, above zero; returns all of its keys."""
    names = sorted(set(config.to_dict()) | set(config.attribute_map))
    common = {own: name for name, own in config.attribute_map.items()}
    for key in sizes:
        if OWNED & {key, common.get(key), config.attribute_map.get(key)} or key.endswith("token_id"):
            raise ConfigError(
                f"model.sizes.{key} is no size: it follows from the tokenizer and the other keys; leave it out"
            )
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            raise ConfigError(
                f"unknown configuration key model.sizes.{key}: "
                + (f"did you mean {near[0]}?" if near else f"{architecture} has no such key")
            )
    for key, value in sizes.items():
        if common.get(key, key) in POSITIVE and isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"model.sizes.{key} of {architecture} must be above zero, got {value}")
    return names


def _stored_config(path: str, family: Family | None) -> PreTrainedConfig:
    """A checkpoint's configuration; a time-conditioned one gets its architecture's own name back."""
    if family is not None:
        return family.config(read_config(path))
    tree, _ = PreTrainedConfig.get_config_dict(path)
    if tree.get("model_type") != TIMED:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    architecture = tree.pop(UNDERLYING)
    config: PreTrainedConfig = CONFIG_MAPPING[architecture].from_dict({**tree, "model_type": architecture})
    return config


def _auto_class(config: PreTrainedConfig) -> Any:
    """The class of an architecture's models; a decoder's attention is opened."""
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return AutoModelForMaskedLM
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        open_attention(config)
        return AutoModelForCausalLM
    raise ConfigError(f"the architecture {config.model_type} has neither a masked-LM nor a causal-LM head")
