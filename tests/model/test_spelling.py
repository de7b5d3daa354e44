"""What tokens spell: the bytes of a text, and languages that accept strings of tokens by their texts."""

import random
import re
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.config import Bpe, Bytes, Characters
from dlm.errors import ConfigError, DataError
from dlm.model.spelling import Spelling
from dlm.model.text import decode
from dlm.model.tokenizer import all_special_ids, build_tokenizer, id_count, is_byte
from tests.support.fixtures import Refused
from tests.support.tokenizers import like_bert, like_llama, like_roberta

TEXT = "the cat saw the mat 0123 4567 1234 h\u00e9\u00e9\n"
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bytes": lambda: build_tokenizer(Bytes(), lambda: ()),
    "characters": lambda: build_tokenizer(Characters(), lambda: [TEXT]),
    "bpe": lambda: build_tokenizer(Bpe(size=320), lambda: [TEXT] * 20),
    "roberta": like_roberta,
    "llama": like_llama,
    "unigram": lambda: like_llama(unigram=True),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def spelling(request: pytest.FixtureRequest) -> Spelling:
    tokenizer = TOKENIZERS[request.param]()
    return Spelling(tokenizer, id_count(tokenizer), all_special_ids(tokenizer) | {tokenizer.unk_token_id})


def strings(spelling: Spelling, seed: int, count: int = 1500) -> list[list[int]]:
    chance, ids = random.Random(seed), [*spelling.bytes_of]
    return [chance.choices(ids, k=chance.randint(0, 5)) for _ in range(count)]


def test_the_bytes_of_tokens_are_those_of_the_decoded_text(spelling: Spelling) -> None:
    name_of = spelling.tokenizer.backend_tokenizer.id_to_token
    for ids in strings(spelling, 0):
        if ids and is_byte(name_of(ids[0])) and spelling.strips:
            continue  # whether a blank of a byte token is taken from the beginning, decoders do not agree on
        text = b"".join(map(spelling.bytes_of.__getitem__, ids)).decode("utf-8", "replace")
        found = decode(spelling.tokenizer, ids)
        assert found == (text.removeprefix(" ") if spelling.strips else text) or "\ufffd" in found


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("expression", ["[0-9]{1,4}", "(a|the| cat)?", ".{0,3}", r"\w+ \w+", "[^a]*"])
def test_a_language_of_tokens_is_that_of_their_texts(spelling: Spelling, expression: str, *, stripped: bool) -> None:
    automaton = spelling.automaton(expression, stripped=stripped)
    name_of, longest = spelling.tokenizer.backend_tokenizer.id_to_token, 0
    for ids in strings(spelling, 1):
        spelled = [spelling.bytes_of[id_] for id_ in ids]
        if stripped and any(each == b" " and is_byte(name_of(id_)) for each, id_ in zip(spelled, ids, strict=True)):
            continue
        whole = b"".join(spelled)
        try:
            text = (whole.removeprefix(b" ") if stripped else whole).decode()
            matches = re.fullmatch(expression, text) is not None
        except UnicodeDecodeError:
            matches = False
        assert automaton.accepts(ids) == matches, (ids, whole)
        longest = max(longest, len(ids) if matches else 0)
        assert not matches or len(ids) in automaton.lengths(5)


@pytest.mark.parametrize("lead", [" ", "\n", " t", "the "])
def test_what_is_held_to_a_beginning_has_it_and_more(spelling: Spelling, lead: str) -> None:
    begun = 0
    for ids in strings(spelling, 2):
        spelled = [spelling.bytes_of[id_] for id_ in ids]
        if not ids or b"" in spelled:
            continue
        whole, (count, automaton) = b"".join(spelled), spelling.beginning(lead, len(ids))
        expected = whole.startswith(lead.encode()) and len(whole) > len(lead.encode())
        assert automaton.accepts(ids[:count]) == expected, whole
        assert not expected or automaton.first_V(count)[ids[0]]
        begun += expected
    assert begun or len(lead) > 1 or lead == "\n"


@pytest.mark.parametrize("expression", ["(a|the| cat)?", r"\w{0,3}", "[^a]*"])
def test_a_language_behind_a_text_begins_with_it(spelling: Spelling, expression: str) -> None:
    automaton, matched = spelling.automaton(expression, lead=" "), 0
    blanks = [id_ for id_, spelled in spelling.bytes_of.items() if spelled[:1] == b" "]
    bare = next(id_ for id_, spelled in spelling.bytes_of.items() if spelled == b" ")
    likely = [[id_] for id_, spelled in spelling.bytes_of.items() if spelled in (b" a", b"a", b"t", b"the", b" the")]
    drawn = ([blanks[n % len(blanks)], *rest] if n % 3 else rest for n, rest in enumerate(strings(spelling, 3)))
    for ids in [*drawn, *([bare, *rest] for rest in likely), *likely, [bare]]:
        try:
            text = b"".join(map(spelling.bytes_of.__getitem__, ids)).decode()
        except UnicodeDecodeError:
            continue
        expected = text[:1] == " " != text and re.fullmatch(expression, text[1:]) is not None
        assert automaton.accepts(ids) == expected, text
        matched += expected
    assert matched


def test_a_string_may_begin_with_what_some_string_of_as_many_tokens_begins_with(spelling: Spelling) -> None:
    """Enumerated: of the strings of one token, and of two."""
    automaton = spelling.automaton("( t|the |0)[a-z0]?")
    ids = [*spelling.bytes_of]
    assert {id_ for id_ in ids if automaton.first_V(1)[id_]} == {id_ for id_ in ids if automaton.accepts([id_])}
    other = {id_ for id_ in ids if any(automaton.accepts([id_, second]) for second in ids)}
    assert {id_ for id_ in ids if automaton.first_V(2)[id_]} == other


def test_tokens_go_on_behind_blanks_where_they_hold_words() -> None:
    joins = {name: make() for name, make in TOKENIZERS.items()}
    found = {
        name: Spelling(each, id_count(each), all_special_ids(each) | {each.unk_token_id})
        for name, each in joins.items()
    }
    for name, spelling in found.items():
        assert spelling.joins(" ") == spelling.goes_on(" ") == (name not in ("bytes", "characters")), name
        assert not spelling.joins("\n") and not spelling.goes_on("\n")


def test_tokens_that_may_stand_for_each_other_are_one_class() -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    found = Spelling(tokenizer, id_count(tokenizer), all_special_ids(tokenizer)).automaton("[0-9]{4}")
    assert found.classes == 1 and int((found.class_V == 0).sum()) == 10


def test_without_the_tokens_for_it_a_language_is_empty(refused: Refused) -> None:
    tokenizer = build_tokenizer(Characters(), lambda: ["abc"])
    spelling = Spelling(tokenizer, id_count(tokenizer), all_special_ids(tokenizer))
    assert spelling.automaton("[a-z]").accepts([0])
    with refused(DataError, "no tokens of this model's tokenizer spell a text that /[0-9]/ matches"):
        spelling.automaton("[0-9]")


def test_tokens_without_blanks_are_refused(refused: Refused) -> None:
    tokenizer = like_bert()
    with refused(ConfigError, "has no blanks in its tokens"):
        Spelling(tokenizer, id_count(tokenizer), all_special_ids(tokenizer)).automaton("a")
