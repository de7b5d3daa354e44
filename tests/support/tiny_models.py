"""Random models of every architecture that take a millisecond, and ids to ask them about."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.model.loading import build_model

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""Sizes of a qwen3 for a byte vocabulary."""

SMALLEST = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
"""Sizes of a qwen3 that trains in a second."""

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}
SIZES: dict[str, dict[str, Any]] = {
    "qwen3": GROUPED,
    "llama": GROUPED,
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "modernbert": {**SMALL, "local_attention": 4},
    "bert": SMALL,
    "roberta": SMALL,
    "eurobert": GROUPED,
}
ENCODERS = ("modernbert", "bert", "roberta", "eurobert")
VOCABULARY, LENGTH = 40, 16
SPECIAL = {"pad_token_id": 37, "eos_token_id": 38, "mask_token_id": 39}


def build(architecture: str, sizes: Mapping[str, Any] | None = None, attention: str = "eager", seed: int = 0) -> Any:
    """A model of `VOCABULARY` ids and a context of `LENGTH`."""
    return build_model(
        architecture,
        SIZES[architecture] if sizes is None else sizes,
        vocabulary=VOCABULARY,
        length=LENGTH,
        special_ids=SPECIAL,
        attention=attention,
        seed=seed,
    ).eval()


def text(*shape: int, key: str = "text") -> Tensor:
    """Random ids, none of them special."""
    return torch.randint(0, 37, shape, generator=generator(0, key))
