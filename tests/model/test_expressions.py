"""Expressions as automata: they accept exactly what `re.fullmatch` matches."""

import itertools
import random
import re

import pytest

from dlm.errors import DataError
from dlm.model.expressions import MOST_STATES, compile_expression
from tests.support.fixtures import Refused

ALPHABET = "ab0@. wordKk\u00e9\u00df\n\x1c\u0301\u0663\u212a\ud7ff\ue000\U00010000\U0010ffff"
EXPRESSIONS = [
    "",
    "a|ab",
    "(a|b)*a(a|b){3}",
    "[0-9]{1,3}",
    r"\d+",
    r"\w{1,3}",
    r"\W",
    r"[\s.]*",
    r"\S\s",
    ".{0,4}",
    "(?s:.){2}",
    "[^a]{1,2}",
    "a*?b??",
    "a{2,}b?",
    "(?P<one>ab|a)+",
    "(?i:k|\u00df)+",
    "(?a:\\w)+",
    "[a-b\u00e9\ue000-\U0010ffff]+",
    "(?:a|b|)(?:0|)",
    r"a\/b|@\.",
    "(?x) a  b # a comment",
    "(word|wor|wo)d?",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_accepts_what_python_matches(expression: str) -> None:
    automaton, python = compile_expression(expression), re.compile(expression)
    chance = random.Random(expression)
    texts = ["", *ALPHABET, *map("".join, itertools.product("ab0\u00e9", repeat=3))]
    texts += ["".join(chance.choices(ALPHABET, k=chance.randint(2, 6))) for _ in range(1000)]
    for text in texts:
        assert automaton.accepts(text) == bool(python.fullmatch(text)), text


@pytest.mark.parametrize("expression", [r"\w", r"\d", r"\s", ".", "[^a\u00e9]", "(?i:s)", r"[\W\d]"])
def test_a_class_has_the_characters_that_python_finds_in_it(expression: str) -> None:
    automaton = compile_expression(expression)
    characters = [chr(code) for code in itertools.chain(range(0xD800), range(0xE000, 0x110000))][::7]
    within = set(re.findall(expression, "".join(characters)))
    assert {each for each in characters if automaton.accepts(each)} == within


def test_no_bytes_are_accepted_but_those_of_utf_8() -> None:
    """Longer forms of a character, halves of one and what is above the last character are no text."""
    automaton = compile_expression("(?s:.)*")
    for text in (
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
    ):
        state = automaton.start
        for byte in text:
            state = int(automaton.next_SB[state, byte])
        assert not automaton.accepting_S[state]
    assert len(automaton.accepting_S) == 9  # one between characters, seven within one, one for what is none


@pytest.mark.parametrize(
    ("expression", "states"), [("a", 3), ("(a|b)*a(a|b){3}", 17), ("abc|abd|xbc|xbd", 5), ("a*", 2), ("(ab|ab)", 4)]
)
def test_equal_states_are_one(expression: str, states: int) -> None:
    """The fewest, with the one of what is no text: by hand, and for the fourth letter from the end 2^4."""
    assert len(compile_expression(expression).accepting_S) == states


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("(", "no regular expression: missing )"),
        ("a{3,2}", "no regular expression"),
        ("a(?=b)", "lookahead"),
        ("(?<!a)b", "lookbehind"),
        (r"(a)\1", "references to groups"),
        (r"(a)?(?(1)b|c)", "references to groups"),
        ("^a", "anchors"),
        ("a$", "anchors"),
        (r"\ba", "anchors"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        (r"[^\s\S]", "matches no text"),
        ("(a{1,90}){90}", f"more than {MOST_STATES} states"),
        (r".{0,3000}", f"more than {MOST_STATES} states"),
    ],
)
def test_what_no_automaton_knows_is_refused(expression: str, told: str, refused: Refused) -> None:
    with refused(DataError, told):
        compile_expression(expression)
