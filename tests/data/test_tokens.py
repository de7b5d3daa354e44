"""A checksum of tokens tells any two of them apart that a run would learn differently."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dlm.config import Pretrained, Source
from dlm.data.corpus import corpus
from dlm.data.reading import read
from dlm.data.tokens import Tokens
from dlm.diffusion.formulation import Formulation
from dlm.lm.layout import Layout
from dlm.model.checkpoint import Sidecar
from dlm.model.text import chat_continues, decode, encode
from dlm.model.tokenizer import build_tokenizer, id_count, special_ids
from tests.support.tokenizers import like_llama


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


def stored(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as a run loads it, with a mask and padding of its own."""
    tokenizer.save_pretrained(folder / "tokenizer")
    return build_tokenizer(Pretrained(str(folder / "tokenizer")), lambda: ())


def test_ids_beyond_a_gap_in_the_vocabulary_are_kept(tmp_path: Path) -> None:
    """The width on the disk follows from the largest id, not from how many there are."""
    tokenizer = like_llama()
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["model"]["vocab"]["z"] = 70_000
    gapped = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(tree)), unk_token="<unk>", eos_token="</s>"
    )
    assert len(gapped) < 2**16 < id_count(gapped) == 70_001
    (tmp_path / "a.txt").write_text("az", encoding="utf-8")
    tokens = corpus(
        stored(gapped, tmp_path), read(Source("text", str(tmp_path / "a.txt")), "data.train"), 8, "pack"
    ).tokens
    assert 70_000 in tokens.ids.tolist()


@pytest.mark.parametrize("unigram", [False, True])
def test_a_response_goes_on_with_its_prompt(tmp_path: Path, unigram: bool) -> None:
    """`foo.` and `x,` are `foo.x,`, with no blank between; a response to nothing begins a text."""
    tokenizer = like_llama(unigram=unigram)
    rows = [("foo.", "x,"), ("", "x,"), (None, "x,"), ("foo.", " x,")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"p": p, "r": r}) + "\n" for p, r in rows), encoding="utf-8")
    source = Source("jsonl", str(path), prompt="p", response="r")
    own = stored(tokenizer, tmp_path)
    layout = Layout(own, Sidecar(Formulation(), 32, special_ids(own).mask))
    tokens = corpus(own, read(source, "data.train"), 32, "pad").tokens
    for number, (prompt, response) in enumerate(rows):
        row = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1] - 1].tolist()
        assert decode(tokenizer, row) == (prompt or "") + response
        assert row == encode(tokenizer, [(prompt or "") + response])[0]
        assert tokens.given[number] == (len(encode(tokenizer, [prompt])[0]) if prompt else 0)
        canvas = layout.answered(prompt, response)  # as it is scored
        assert canvas.ids[canvas.start :] == [*row, special_ids(layout.tokenizer).end]


ASKS = "{{ '(assistant)' if add_generation_prompt }}"


@pytest.mark.parametrize(
    ("template", "continues"),
    [
        ("{% for m in messages %}({{ m['role'] }}){{ m['content'] }}{% endfor %}" + ASKS, True),
        ("{% for m in messages %}({{ m['role'] }}) {{ m['content'] }}{% endfor %}" + ASKS, False),
        ("{{ raise_exception('no') }}", False),
    ],
)
def test_the_chat_template_says_whether_an_answer_goes_on(template: str, continues: bool) -> None:
    tokenizer = like_llama()
    assert not chat_continues(tokenizer)
    tokenizer.chat_template = template
    assert chat_continues(tokenizer) == continues


def test_the_same_tokens_have_the_same_checksum_on_the_disk(tmp_path: Path, many: Tokens) -> None:
    np.save(tmp_path / "ids.npy", many.ids)
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert replace(many, ids=ids).checksum == replace(many, ids=many.ids.copy()).checksum == many.checksum
