"""Small pretrained models of the kinds that the Hub has, made on the spot: an encoder with a mask, a causal decoder."""

import random
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far")
LETTERS = sorted({letter for word in WORDS for letter in word} | {" "})
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
LENGTH = 32
Kind = Literal["encoder", "decoder"]


def sentences(words: int, seed: int = 0) -> str:
    """Words in any order: easy to spell, hard to foresee."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """Characters, with the special tokens that such models have: a decoder has no mask and no padding."""
    specials = ["[PAD]", "[UNK]", "[SEP]", "[MASK]"] if kind == "encoder" else ["<end>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *LETTERS])}
    unknown = "[UNK]" if kind == "encoder" else "<end>"
    backend = Backend(models.WordLevel(vocab=vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if kind == "encoder":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", mask_token="[MASK]"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@cache
def trained(kind: Kind) -> Any:
    """A model that has learned to spell, by plain transformers, in two seconds."""
    spell = tokenizer(kind)
    stream = torch.tensor(spell(sentences(4000), add_special_tokens=False)["input_ids"])
    torch.manual_seed(0)
    if kind == "encoder":
        special: dict[str, Any] = {"pad_token_id": 0, **dict.fromkeys(("bos_token_id", "eos_token_id"), 2)}
        special |= dict.fromkeys(("cls_token_id", "sep_token_id"), 2)
        model: Any = ModernBertForMaskedLM(ModernBertConfig(vocab_size=len(spell), **special, **SIZES))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(spell), num_key_value_heads=2, **SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(600):
        starts = torch.randint(len(stream) - LENGTH, (16, 1))
        x_BL = stream[starts + torch.arange(LENGTH)]
        if kind == "encoder":
            masked_BL = torch.rand(x_BL.shape) < torch.rand(16, 1) * 0.6
            labels_BL = x_BL.masked_fill(~masked_BL, -100)
            loss = model(input_ids=x_BL.masked_fill(masked_BL, spell.mask_token_id), labels=labels_BL).loss
        else:
            loss = model(input_ids=x_BL, labels=x_BL).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def save(kind: Kind, folder: Path) -> Path:
    """A folder as the Hub has them: config.json, safetensors, a tokenizer."""
    trained(kind).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
