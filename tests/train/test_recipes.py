"""The files of published recipes start as they are, on made-up text and at a small size."""

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from dlm.config import Source
from dlm.data.reading import read, read_splits
from dlm.data.windows import Wrapped
from dlm.lm import DiffusionLM
from dlm.model.text import decode
from dlm.train.own_text import sequences_of
from tests.support.commands import dlm, refusal
from tests.support.tokenizers import like_bert

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = ("you", "we", "very", "much", "saw", "cats", "loving", "it", "all", "i")
LETTERS = " abcdefghijklmnopqrstuvwxyz"
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
SETTINGS = [
    *(f"model.sizes.{key}={value}" for key, value in SMALL.items()),
    *("train.steps=2", "train.batch_size=4", "train.micro_batch_size=2", "train.validate_every=2"),
    *("train.compile=false", "train.precision=fp32", "train.validate_sequences=4", "optim.warmup=1"),
]


def scored(folder: Path, *words: str) -> dict[str, Any]:
    with contextlib.chdir(folder):
        found: dict[str, Any] = json.loads(dlm("eval", *words, "--draws", "4", "--json")[0])
    return found


def trained(folder: Path, name: str, *settings: str) -> DiffusionLM:
    with contextlib.chdir(folder):
        dlm("train", CONFIGS / f"{name}.yaml", *(word for each in (*SETTINGS, *settings) for word in ("--set", each)))
    return DiffusionLM.from_pretrained(folder / "runs" / name)


def test_text8_is_scored_a_character_a_token(tmp_path: Path) -> None:
    """27 characters; and no end of text is in a full row, so that bits a token are bits a character."""
    draws = random.Random(0)
    text = "".join(draws.choices(LETTERS, k=10_000))
    for part, (start, stop) in {"train": (0, 9000), "valid": (9000, 9500), "test": (9500, 10_000)}.items():
        (tmp_path / f"text8.{part}.txt").write_text(text[start:stop])
    lm = trained(tmp_path, "text8")
    assert lm.config is not None and lm.context == 256
    assert [lm.tokenizer.decode([id_]) for id_ in range(27)] == sorted(LETTERS)
    found = scored(tmp_path, "runs/text8", "--data", "text8.test.txt", "--wrap")
    assert (found["tokens"], found["length"], found["dropped_tokens"]) == (256, 256, 501 - 256)
    row = read(Source("text", str(tmp_path / "text8.test.txt")), "test")
    (ids,) = Wrapped.of(sequences_of(lm, row)).batch([0]).x0_BL.tolist()
    assert decode(lm.tokenizer, ids) == text[9500:9756]
    assert found["bits_per_token"] == pytest.approx(found["nats_per_token"] / math.log(2))


def test_one_billion_words_are_learned_as_people_write_them(tmp_path: Path) -> None:
    """A sentence in each row, in training and as it is scored; brackets of the published tokens close up."""
    like_bert().save_pretrained(tmp_path / "bert")
    lines = [f"I love ( {word} ) a cat ." for word in WORDS]
    for room, name in (("training", "news.en-00001-of-00100"), ("heldout", "news.en.heldout-00000-of-00050")):
        folder = tmp_path / f"lm1b/{room}-monolingual.tokenized.shuffled"
        folder.mkdir(parents=True)
        (folder / name).write_text("\n".join(lines))
    lm = trained(tmp_path, "lm1b", "tokenizer.path=bert", "data.held_out.share=0.4")
    assert lm.config is not None and lm.context == 128
    with contextlib.chdir(tmp_path):
        splits = read_splits(lm.config.data)
    written = {f"I love ({word}) a cat." for word in WORDS}
    assert {*splits.train.texts()} | {*splits.validation.texts()} == written
    heldout = (
        "--data",
        "lm1b/heldout-monolingual.tokenized.shuffled/*",
        "--format",
        "text",
        "--documents",
        "line",
        "--detokenize",
        "lm1b",
    )
    found = scored(tmp_path, "runs/lm1b", *heldout)
    assert (found["documents"], found["sequences"], found["packing"]) == (len(WORDS), len(WORDS), "pad")
    assert found["bytes"] == sum(map(len, lines))  # of the text as it was published
    own = scored(tmp_path, "runs/lm1b")
    assert own["bytes"] == sum(map(len, splits.validation.texts()))
    with contextlib.chdir(tmp_path):
        assert "--documents is of other text" in refusal("eval", "runs/lm1b", "--documents", "line")
        assert "has undone the tokens of its own text" in refusal("eval", "runs/lm1b", "--detokenize", "lm1b")
