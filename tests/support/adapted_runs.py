"""Runs that begin from a tiny pretrained model, with adapters or without."""

from pathlib import Path
from typing import Any

from dlm.config import Config
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.settings import parse_config
from dlm.train.trainer import Trainer
from tests.support import pretrained
from tests.support.pretrained import LENGTH, sentences

LORA = {"rank": 4, "alpha": 8.0}


def describe(folder: Path, source: Path | None, /, **changes: dict[str, Any]) -> Config:
    """A run on sentences from the model in `source`, or from a random one, with changes in parts of it."""
    text = folder / "sentences.txt"
    text.write_text(sentences(3000, seed=1), encoding="utf-8")
    speller = source or pretrained.save("decoder", folder / "tokenizer")
    begin: dict[str, Any] = {"sizes": {**pretrained.SIZES, "num_key_value_heads": 2}, "architecture": "llama"}
    if source is not None:
        begin = {"init": "pretrained", "path": str(source)}
    tree: dict[str, Any] = {
        "data": {
            "train": {"format": "text", "path": str(text)},
            "held_out": {"by": "tail", "share": 0.2},
            "length": LENGTH,
        },
        "tokenizer": {"name": "pretrained", "path": str(speller)},
        "model": begin,
        "objective": {"loss": "elbo", "levels": "even"},
        "optim": {"name": "adamw", "lr": 2e-3, "warmup": 4, "decay": "constant"},
        "train": {
            "steps": 60,
            "batch_size": 16,
            "precision": "fp32",
            "validate_every": 20,
            "validate_sequences": 32,
            "sample_length": 0,
            "keep": 10,
        },
    }
    for part, keys in changes.items():
        tree[part] = keys if part == "tokenizer" else tree[part] | keys
    return parse_config(tree)


def with_lora(folder: Path, model: Path, lora: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A run that trains adapters of a decoder."""
    changes.setdefault("optim", {})
    changes["optim"] |= {"lr": 1e-2}
    return describe(folder, model, model={"shift": True, "lora": lora or LORA}, **changes)


def initial_bound(trainer: Trainer) -> float:
    """The bound of the validation text, in nats a token, as the model is now."""
    return evaluate_likelihood(trainer.lm(), trainer.validation, rows=range(64), draws=8).nats_per_token
