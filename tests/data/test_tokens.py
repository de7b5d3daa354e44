"""A checksum of tokens tells any two of them apart that a run would learn differently."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from dlm.config import Source
from dlm.data.corpus import corpus
from dlm.data.reading import read
from dlm.data.tokens import Tokens


def tokens_of(folder: Path, tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> Tokens:
    path = folder / f"{prompt}.jsonl"
    path.write_text(json.dumps({"p": prompt, "r": response}) + "\n", encoding="utf-8")
    return corpus(tokenizer, read(Source("jsonl", str(path), prompt="p", response="r"), "data.train"), 32, "pad").tokens


def test_the_border_between_prompt_and_response_is_in_the_checksum(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    one, other = (tokens_of(tmp_path, byte_tokenizer, *pair) for pair in (("ab", "c"), ("a", "bc")))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.checksum != other.checksum
    assert one.earlier_checksum == other.earlier_checksum == zlib.crc32(one.ids.tobytes())


COUNT = 2**23 + 5  # of so many ids, earlier versions read every other one


@pytest.fixture(scope="module")
def many() -> Tokens:
    ids = np.random.default_rng(0).integers(0, 2**16, COUNT, dtype=np.uint16)
    return Tokens(ids, np.array([0, 9, COUNT]), np.array([8, COUNT - 10]), np.array([3, 0]))


@pytest.mark.parametrize("at", [0, 1, COUNT // 2, COUNT // 2 + 1, COUNT - 2, COUNT - 1])
def test_every_id_is_in_the_checksum(many: Tokens, at: int) -> None:
    ids = many.ids.copy()
    ids[at] ^= 1
    assert replace(many, ids=ids).checksum != many.checksum


@pytest.mark.parametrize("change", [{"offsets": [0, 8, COUNT]}, {"sizes": [8, COUNT]}, {"given": [4, 0]}])
def test_the_documents_are_in_the_checksum(many: Tokens, change: dict[str, list[int]]) -> None:
    arrays: dict[str, Any] = {name: np.array(value) for name, value in change.items()}
    assert replace(many, **arrays).checksum != many.checksum


def test_the_checksum_of_earlier_versions_is_what_it_was(many: Tokens) -> None:
    assert many.earlier_checksum == zlib.crc32(many.ids[::2].tobytes())


def test_the_same_tokens_have_the_same_checksum_on_the_disk(tmp_path: Path, many: Tokens) -> None:
    np.save(tmp_path / "ids.npy", many.ids)
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert replace(many, ids=ids).checksum == replace(many, ids=many.ids.copy()).checksum == many.checksum
