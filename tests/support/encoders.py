"""Random encoders of transformers' own, whose tokenizers put special tokens around a text."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from tests.support.tokenizers import like_bert, like_roberta

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
LENGTH = 24
"""Tokens of the longest text, its special tokens included."""


def encoder(kind: str, folder: Path) -> Path:
    """A random encoder of transformers' own, saved to a folder as the Hub has them."""
    torch.manual_seed(0)
    if kind == "bert":
        tokenizer = like_bert()
        bert = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, pad_token_id=0, **SIZES)
        model: Any = BertForMaskedLM(bert)
    else:
        tokenizer = like_roberta()
        roberta = RobertaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=LENGTH + 2, pad_token_id=1, type_vocab_size=1, **SIZES
        )
        model = RobertaForMaskedLM(roberta)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
