"""Text that is none is refused, whichever way it comes."""

import pytest

from dlm.config import Bytes, Characters, Tokenizer
from dlm.errors import DataError
from dlm.lm import DiffusionLM
from dlm.model.text import encode, encode_chat
from dlm.model.tokenizer import build_tokenizer

HALF = b"caf\xe9".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("spec", [Bytes(), Characters()])
def test_half_of_a_character_is_refused(spec: Tokenizer) -> None:
    tokenizer = build_tokenizer(spec, lambda: ["cafe"])
    with pytest.raises(DataError, match=r"'\\udce9' at 3, which is half of a character"):
        encode(tokenizer, ["cafe", HALF])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match=r"'\\udce9' at 3, which is half of a character"):
        encode_chat(tokenizer, [{"role": "user", "content": HALF}])
    assert encode(tokenizer, ["cafe"]) == [encode_chat(tokenizer, [{"role": "user", "content": "cafe"}])]


def test_a_model_refuses_it_wherever_it_takes_text(tiny_lm: DiffusionLM) -> None:
    for use in (
        lambda: tiny_lm.generate(HALF),
        lambda: tiny_lm.infill(f"{HALF}[MASK:1]"),
        lambda: tiny_lm.nelbo([HALF]),
        lambda: tiny_lm.score("a", HALF),
    ):
        with pytest.raises(DataError, match="half of a character"):
            use()
