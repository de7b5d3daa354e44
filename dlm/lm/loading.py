"""Loads a model with its tokenizer and all that it was trained with."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Pretrained
from dlm.errors import ConfigError
from dlm.model.adapt import init_new_token_rows
from dlm.model.attention import attention_implementation
from dlm.model.checkpoint import Sidecar, read_sidecar
from dlm.model.loading import load_model, usable_positions
from dlm.model.locate import base_of, check_name, has_tokenizer, is_adapter, resolve
from dlm.model.lora import load_merged
from dlm.model.precision import Precision
from dlm.model.public import Family, find
from dlm.model.time_embedding import TimeEmbedding, load_time_embedding
from dlm.model.tokenizer import build_tokenizer, check_rows, special_ids
from dlm.model.weights import Held


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, as `DiffusionLM` takes it.

    Attributes:
        model: The network.
        tokenizer: Its tokenizer.
        sidecar: How it was trained; None where that is not written down.
        precision: What it computes in.
        time_embedding: What tells it the time; None for a network that takes no time.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sidecar: Sidecar | None
    precision: Precision | Literal["auto"]
    time_embedding: TimeEmbedding | None


def load(model: str | Path, held: Held, attention: str, mask_token: str | int | None) -> Loaded:
    """Loads a run's best checkpoint, a checkpoint, or a model of the Hub; see `DiffusionLM.from_pretrained`.

    Args:
        model: Which.
        held: What its weights are held in, and where.
        attention: As `model.attention` in the configuration.
        mask_token: The text or the id of the mask, where its tokenizer does not register one.

    Returns:
        The model.

    Raises:
        CheckpointError: There is no such model, it is damaged, or it has no mask.
        ConfigError: The model says itself that its mask is another; or the weights cannot be quantised here, or they
            are adapters.
    """
    path = resolve(model)
    sidecar, home = read_sidecar(path), path
    held.check()
    if sidecar is None and is_adapter(path):  # such as peft writes them: what is not there is that of their model
        home = base_of(path)
        check_name(home)
        sidecar = read_sidecar(home)
    family = find(home) if sidecar is None else None
    speller = path if home == path or has_tokenizer(path) else home
    tokenizer = build_tokenizer(Pretrained(speller, mask_token), lambda: (), adds_mask=sidecar is not None)
    ids = special_ids(tokenizer)
    if sidecar is not None and mask_token is not None and ids.mask != sidecar.mask_id:
        raise ConfigError(
            f"--mask-token: {path} was trained with the mask {sidecar.mask_id}, got {mask_token!r}, which is "
            f"{ids.mask}: leave it out"
        )
    how = attention_implementation(attention, held.device, sidecar.context if sidecar else 512)
    if is_adapter(path):
        network = load_merged(path, tokenizer, how, held, sidecar.base_checksum if sidecar else None)
        sidecar = replace(sidecar, base_checksum=None) if sidecar else None  # merged, it belongs to no other model
    else:
        network = load_model(path, how, held=held)
    size = int(network.config.vocab_size)
    check_rows(tokenizer, size)
    if sidecar is None and ids.mask < size <= ids.pad:  # the padding is no part of what the model was trained with
        init_new_token_rows(network, [ids.pad], ids.pad + 1)
    if sidecar is None and family is None and mask_token is None and type(network).__name__.endswith("ForCausalLM"):
        warnings.warn(
            f"{path} is a causal language model whose tokenizer has a mask, and nothing in it says that it was trained "
            "to fill masks: what it writes and its likelihoods may mean nothing",
            stacklevel=2,
        )
    if family is not None:
        sidecar = _sidecar_of(family, home, network, tokenizer)
    timed = sidecar is not None and sidecar.formulation.timed
    embedding = load_time_embedding(home, network).to(held.device) if timed else None
    return Loaded(network, tokenizer, sidecar, "fp32" if held.dtype == "fp32" else "auto", embedding)


def _sidecar_of(family: Family, path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sidecar:
    """What `dlm.yaml` would say beside a published model."""
    positions = (usable_positions(model) or family.context) - (family.first is not None)
    mask_id = special_ids(tokenizer).mask
    return Sidecar(family.formulation(path), min(family.context, positions), mask_id, family=family)
