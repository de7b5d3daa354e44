"""The sentinels of fill-in-the-middle in tokenizers of every kind."""

from pathlib import Path

import pytest

from dlm.config import Bytes, Characters, Pretrained
from dlm.model.sentinels import MIDDLE, PREFIX, SUFFIX, Sentinels, add_sentinels
from dlm.model.text import encode
from dlm.model.tokenizer import build_tokenizer, forbidden_ids, special_ids, special_token


@pytest.mark.parametrize("spec", [Bytes(), Characters()], ids=["bytes", "characters"])
def test_they_are_new_ids_that_no_text_holds(spec: Bytes | Characters) -> None:
    tokenizer = build_tokenizer(spec, lambda: ["<|fim_prefix|> and more"])
    size, known = len(tokenizer), special_ids(tokenizer)
    found = add_sentinels(tokenizer, "psm")
    assert found == Sentinels(size, size + 1, size + 2) and special_ids(tokenizer) == known
    assert set(found.all) <= set(forbidden_ids(tokenizer, len(tokenizer)))
    assert not set(encode(tokenizer, [PREFIX])[0]) & set(found.all)


def test_a_tokenizer_that_has_them_keeps_its_own_also_after_it_was_saved(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    found = add_sentinels(tokenizer, "spm")
    tokenizer.save_pretrained(tmp_path)
    again = build_tokenizer(Pretrained(str(tmp_path)), lambda: ())
    assert add_sentinels(again, "spm") == found and len(again) == len(tokenizer)
    assert [again.convert_ids_to_tokens(id_) for id_ in found.all] == [PREFIX, SUFFIX, MIDDLE]


def test_a_name_that_is_text_already_is_not_taken() -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    tokenizer.add_tokens([PREFIX])  # as text, and no special token
    text_id = tokenizer.convert_tokens_to_ids(PREFIX)
    found = special_token(tokenizer, PREFIX)
    assert found != text_id and tokenizer.convert_ids_to_tokens(found) == "<|fim_prefix_|>"
    assert special_token(tokenizer, PREFIX) == found
