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


@pytest.mark.parametrize(
    "text", ["to be\r\nor not\u2028", "x<|mask|>y<|unknown|>", "\U0001f600 \xe9 is not known", "", "   "]
)
def test_characters_are_looked_up_to_what_the_tokenizer_gives(text: str) -> None:
    """A corpus may be one text: its ids are looked up, and are those that the backend gives in 50 times the memory."""
    tokenizer = build_tokenizer(Characters(), lambda: ["to be\r\nor not\u2028<|mask>xyi kw"])
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    assert encode(tokenizer, [text, text]) == [backend.encode(text, add_special_tokens=False).ids] * 2
    tokenizer.add_tokens(["be"])  # which is a token of its own from here on
    assert encode(tokenizer, ["to be"]) == [backend.encode("to be", add_special_tokens=False).ids]
    assert len(encode(tokenizer, ["to be"])[0]) == 4
